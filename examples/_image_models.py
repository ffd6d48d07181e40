"""A ViT and a ConvNeXt, small, pre-trained here, and fine-tuned on one task after another.

All weights are trained; a task's head stays what was fitted on the pre-trained model's features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _image_accuracy
import _images
import numpy as np
import torch
import transformers
from _base import WORK, fingerprint, finished, making
from _image_accuracy import FOLDER, HEADS, IMAGES, classified, features, fitted, name_of
from finetune import Size, Training, show_losses, steps, trained
from safetensors.torch import load_file, save_file

HEAD_SHARE = 20  # percent of the number of images that are trained on
TURNS = 4  # the models are pre-trained to tell a garment's kind, and by how many quarters it turned


class Architecture(NamedTuple):
    """A class of transformers, what it takes beside a config, its config, and how it is tuned."""

    model: Any
    options: dict[str, Any]
    config: Callable[[bool], Any]  # small or not
    learning_rate: float  # of fine-tuning

    def load(self, folder: Path) -> Any:
        return self.model.from_pretrained(folder, dtype=torch.float32, **self.options).eval()


def _vit(small: bool) -> transformers.ViTConfig:
    """Return the settings of 12 blocks, 96 wide, for patches of 7 x 7 pixels."""
    width, blocks = (32, 2) if small else (96, 12)
    return transformers.ViTConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=width // 32,
        image_size=_images.SIDE,
        patch_size=7,
        num_channels=1,
    )


def _convnext(small: bool) -> transformers.ConvNextConfig:
    """Return the settings of 12 blocks in four stages, 24 to 192 wide."""
    width, depths = (8, [1, 1, 1, 1]) if small else (24, [2, 2, 6, 2])
    return transformers.ConvNextConfig(
        hidden_sizes=[width * 2**stage for stage in range(4)],
        depths=depths,
        patch_size=2,
        num_channels=1,
        layer_scale_init_value=0.1,  # 1e-6, as usual, is for trainings a hundred times as long
    )


ARCHITECTURES = {
    "ViT": Architecture(transformers.ViTModel, {"add_pooling_layer": False}, _vit, 5e-4),
    "ConvNeXt": Architecture(transformers.ConvNextModel, {}, _convnext, 1e-3),
}


def get_base(name: str, how: Size) -> str:
    """Make the folder of a pre-trained model; return its fingerprint.

    Args:
        name: of the architecture.
        how: how long it is trained, and at which rate; nothing of the tasks is used.
    """
    kind = ARCHITECTURES[name]
    config = kind.config(how.small)
    settings = (how.steps, how.batch, how.learning_rate, TURNS)
    code = [Path(_images.__file__).read_text("utf-8"), *map(inspect.getsource, (steps, features))]
    made_from = fingerprint(config.to_dict(), code, settings)

    def begin() -> Training:
        garments = _images.pretraining(WORK / "downloads", small=how.small)
        torch.manual_seed(0)
        model = kind.model(config, **kind.options)
        width = features(model, torch.zeros(1, _images.SIDE, _images.SIDE)).shape[1]
        head = torch.nn.Linear(width, TURNS * (int(garments.labels.max()) + 1))

        def loss_of(batch: Sequence[int]) -> torch.Tensor:
            pairs = [divmod(row, TURNS) for row in batch]
            pixels = np.stack([np.rot90(garments.pixels[row], turn) for row, turn in pairs])
            classes = [TURNS * int(garments.labels[row]) + turn for row, turn in pairs]
            logits = head(features(model, torch.from_numpy(pixels)))
            return torch.nn.functional.cross_entropy(logits, torch.tensor(classes))

        weights = [*model.parameters(), *head.parameters()]
        rows = range(TURNS * len(garments.labels))
        return Training(steps(weights, rows, loss_of, how, 0), model.save_pretrained)

    show_losses("pre-trained:", trained(Path("base"), made_from, how.steps, begin))
    return made_from


@torch.no_grad()
def get_images(name: str, size: Size, seed: int, base_made_from: str) -> str:
    """Make the folder of a seed's images and of the tasks' heads; return its fingerprint."""
    folder, sizes = Path(f"seed-{seed}") / FOLDER, _sizes(size)
    code = Path(_image_accuracy.__file__).read_text("utf-8")
    made_from = fingerprint(base_made_from, size.tasks, sizes, seed, code)
    if finished(folder, made_from):
        return made_from
    model, images, heads = ARCHITECTURES[name].load(Path("base")), {}, {}
    for task in size.tasks:
        for part, own in _images.split(task, WORK / "downloads", sizes, seed).items():
            images[name_of(task, part, "pixels")] = torch.from_numpy(own.pixels)
            images[name_of(task, part, "labels")] = torch.from_numpy(own.labels).long()
        pixels, labels = (images[name_of(task, "head", what)] for what in ("pixels", "labels"))
        heads[task] = fitted(features(model, pixels), labels)
    with making(folder, {"made_from": made_from}) as part:
        save_file(images, part / IMAGES)
        save_file(heads, part / HEADS)
    return made_from


def _sizes(size: Size) -> dict[str, int]:
    """Return how many images a split has; heads are fitted on ``head``, which is nothing else."""
    sizes = {"validation": size.validation, "test": size.test}
    return {**sizes, "head": HEAD_SHARE * size.training // 100, "train": size.training}


def tune(name: str, size: Size, seed: int, task: str, images_made_from: str) -> dict:
    """Fine-tune the pre-trained model on a task; return what was seen."""
    settings = (size.steps, size.batch, size.learning_rate, inspect.getsource(steps))
    folder = Path(f"seed-{seed}", task)

    def begin() -> Training:
        stored = load_file(folder.parent / FOLDER / IMAGES)
        pixels, labels = (stored[name_of(task, "train", what)] for what in ("pixels", "labels"))
        head = load_file(folder.parent / FOLDER / HEADS)[task]
        model = ARCHITECTURES[name].load(Path("base"))

        def loss_of(rows: Sequence[int]) -> torch.Tensor:
            logits = classified(features(model, pixels[rows]), head)
            return torch.nn.functional.cross_entropy(logits, labels[rows])

        losses = steps(list(model.parameters()), range(len(labels)), loss_of, size, seed)
        return Training(losses, model.save_pretrained)

    return trained(folder, fingerprint(images_made_from, task, settings), size.steps, begin)


def get_tuned(name: str, size: Size, how: Size, seeds: int, tasks: Sequence[str]) -> None:
    """Make everything that the story begins with, seed by seed."""
    base = get_base(name, how)
    size = size._replace(learning_rate=ARCHITECTURES[name].learning_rate)
    for seed in range(seeds):
        images = get_images(name, size, seed, base)
        for task in tasks:
            show_losses(f"seed {seed}, {task:8}", tune(name, size, seed, task, images))
