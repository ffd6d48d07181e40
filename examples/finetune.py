"""A text encoder of 12 blocks, fine-tuned on one task after another, for each seed: shared steps.

    python examples/finetune.py [--tiny] [--seeds 3]

makes what forgetting.py and many_tasks.py merge, in ``examples/work/encoder``: the pre-trained
encoder, and for every seed its split of the texts and a fine-tuned encoder of each task. All
weights are trained; the labels' embeddings stay the pre-trained encoder's. A folder that is whole
and made with the same settings is not made again.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _accuracy
import _base  # before transformers: it says where the Hub's library keeps its files
import _e5
import _small
import data
import torch
from _accuracy import FOLDER, LABELS, TEXTS
from _base import WORK, fingerprint, finished, making, say
from _model import run, save
from _nearest import SCALE
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

ENCODER = "multilingual-e5-small, a BERT of 12 blocks, 384 wide"
WARM_UP = 8  # steps; AdamW knows nothing of the gradients' size yet


class Size(NamedTuple):
    """How much of everything; texts are counted for each task."""

    tasks: tuple[str, ...]
    validation: int
    test: int
    training: int
    steps: int
    batch: int
    learning_rate: float
    small: bool = False  # a random model, and made-up texts
    guessed: tuple[str, ...] = ()  # the pre-trained model is hardly better than chance

    def controls(self, target: str) -> list[str]:
        """Return what a model that was fine-tuned on a task may have forgotten."""
        return [task for task in self.tasks if task not in (target, *self.guessed)]


NAME = "encoder"
FULL = Size(tuple(data.TASKS), 40, 80, 480, 40, 16, 3e-4, guessed=("candidates", "books"))
TINY = Size(("animals", "plants", "tools"), 12, 24, 48, 20, 8, 3e-3, small=True)
SEEDS = 3


def words(size: Size) -> dict[str, list[str]]:
    """Return what a text of each class is said to be, by task."""
    tasks = _small.TASKS if size.small else {**data.TASKS, **data.SHIFTED}
    return {task: list(tasks[task].prompts.values()) for task in size.tasks}


def arguments(text: str) -> argparse.ArgumentParser:
    """Return a parser of what every story of the encoder is told."""
    parser = _base.arguments(text)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many, from 0 on")
    parser.add_argument("--num-threads", type=int, help="threads that compute")
    return parser


def begin(options: argparse.Namespace, name: str, sizes: tuple[Size, Size]) -> Size:
    """Go into the folder of a story, and return how much of everything there is.

    Args:
        options: what was asked for.
        name: of the folder in ``examples/work``.
        sizes: how much in full, and in the tiny form.
    """
    _base.enter(options.folder or WORK / (f"tiny-{name}" if options.tiny else name))
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    return sizes[options.tiny]


# --- 1. the pre-trained encoder ------------------------------------------------------------------


def base_made_from(size: Size) -> str:
    return fingerprint(Path((_small if size.small else _e5).__file__).read_text(encoding="utf-8"))


def get_base(size: Size) -> None:
    made_from = base_made_from(size)
    if finished(Path("base"), made_from):
        return
    with making(Path("base"), {"made_from": made_from}) as part:
        if size.small:
            _small.make(part)
        else:
            print(f"   {_e5.E5} (91 MB)", flush=True)
            _e5.make(WORK / "downloads", part)


def load(folder: Path) -> tuple[Any, Any]:
    """Return an encoder and its tokenizer."""
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


# --- 2. texts and labels -------------------------------------------------------------------------


def splits_of(size: Size, seed: int) -> dict[str, dict[str, list[tuple[str, int]]]]:
    """Return texts and classes of every task's splits; validation and test are filled first."""
    sizes = {"validation": size.validation, "test": size.test, "train": size.training}
    splits = {
        task: _small.split(task, sizes, seed)
        if size.small
        else data.split(task, WORK / "downloads", sizes, seed)
        for task in size.tasks
    }
    return {
        task: {part: [(each.text, each.label) for each in rows] for part, rows in of_task.items()}
        for task, of_task in splits.items()
    }


def get_texts(size: Size, seed: int) -> str:
    """Make the folder of a seed's texts and of the labels' embeddings; return its fingerprint."""
    folder, splits = Path(f"seed-{seed}") / FOLDER, splits_of(size, seed)
    prompts = words(size)
    code = [inspect.getsource(each) for each in (_accuracy.inputs, _accuracy.embed)]
    read = (_accuracy.PREFIX, _accuracy.LENGTH, code)
    made_from = fingerprint(base_made_from(size), splits, prompts, read)
    if not finished(folder, made_from):
        model, tokenizer = load(Path("base"))
        with torch.no_grad(), making(folder, {"made_from": made_from}) as part:
            (part / TEXTS).write_text(json.dumps(splits, indent=1), encoding="utf-8")
            labels = {
                task: _accuracy.embed(model, _accuracy.inputs(tokenizer, texts))
                for task, texts in prompts.items()
            }
            save_file(labels, part / LABELS)
    return made_from


# --- 3. fine-tuning ------------------------------------------------------------------------------


def tune(size: Size, seed: int, task: str, texts_made_from: str, name: str | None = None) -> dict:
    """Fine-tune the encoder on a task; return what was seen.

    Args:
        size: how long, and at which rate.
        seed: of the order of its batches; its texts lie in this seed's folder.
        task: by which it is called, unless it has a name of its own.
        texts_made_from: the fingerprint of the texts.
        name: of this one among several of the task.
    """
    settings = (size.steps, size.batch, size.learning_rate, SCALE, WARM_UP)
    made_from = fingerprint(texts_made_from, task, settings, inspect.getsource(steps))
    folder = Path(f"seed-{seed}", name or task)

    def begin() -> Training:
        texts = folder.parent / FOLDER
        rows = json.loads((texts / TEXTS).read_text(encoding="utf-8"))[task]["train"]
        labels = load_file(texts / LABELS)[task]
        model, tokenizer = load(Path("base"))

        def loss_of(batch: Sequence[tuple[str, int]]) -> torch.Tensor:
            batch_texts, classes = zip(*batch, strict=True)
            cosines = _accuracy.embed(model, _accuracy.inputs(tokenizer, batch_texts)) @ labels.T
            return torch.nn.functional.cross_entropy(SCALE * cosines, torch.tensor(classes))

        losses = steps(list(model.parameters()), rows, loss_of, size, seed)
        return Training(losses, lambda part: save(model, tokenizer, part))

    return trained(folder, made_from, size.steps, begin)


class Training(NamedTuple):
    """The losses of the steps, which are taken as they are asked for, and what saves the model."""

    losses: Iterator[float]
    save: Callable[[Path], object]


def trained(folder: Path, made_from: str, count: int, begin: Callable[[], Training]) -> dict:
    """Make the folder of a trained model, unless it is whole; return what was seen.

    Args:
        folder: of the model.
        made_from: the fingerprint of all that it is made from.
        count: of the steps.
        begin: prepares the training.
    """
    if note := finished(folder, made_from):
        return note | {"reused": True}
    training = begin()
    started = time.process_time()
    with tqdm(total=count, desc=f"   {folder.name}", leave=False, disable=None) as bar:
        losses = [_show(loss, bar) for loss in training.losses]
    note = {
        "made_from": made_from,
        "losses": losses,
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    # In fp32: a step of bf16 is as large as much of what so short a training changes.
    with making(folder, note) as part:
        training.save(part)
    return note


def _show(loss: float, bar: tqdm) -> float:
    bar.set_postfix(loss=f"{loss:.2f}")
    bar.update()
    return loss


def steps(
    parameters: Sequence[torch.nn.Parameter],
    rows: Sequence[Any],
    loss_of: Callable[[Sequence[Any]], torch.Tensor],
    size: Size,
    seed: int,
) -> Iterator[float]:
    """Take steps of AdamW on batches of the rows, and yield the loss of each."""
    optimizer = torch.optim.AdamW(parameters, lr=size.learning_rate, weight_decay=0.0)
    draw, left = random.Random(seed), []
    for number in range(size.steps):
        if len(left) < size.batch:
            left = draw.sample(rows, len(rows))
        batch, left = left[: size.batch], left[size.batch :]
        # Up in some steps, then down in a straight line.
        share = min((number + 1) / WARM_UP, 1 - number / size.steps)
        optimizer.param_groups[0]["lr"] = size.learning_rate * share
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def get_tuned(size: Size, seeds: int, tasks: Sequence[str]) -> None:
    """Make everything that a story begins with, seed by seed."""
    say(f"1/4  the pre-trained encoder{'' if size.small else f': {ENCODER}'}")
    get_base(size)
    say(f"2/4  fine-tuned on {', '.join(tasks)}: {seeds} seeds, {size.steps} steps")
    for seed in range(seeds):
        made_from = get_texts(size, seed)
        for task in tasks:
            show_losses(f"seed {seed}, {task:10}", tune(size, seed, task, made_from))


def show_losses(what: str, note: dict) -> None:
    reused = " (already there)" if "reused" in note else ""
    losses = f"{note['losses'][0]:.2f} -> {note['losses'][-1]:.2f}"
    print(f"   {what} loss {losses}{reused}", flush=True)


def main() -> None:
    options = arguments(__doc__).parse_args()
    size = begin(options, NAME, (FULL, TINY))
    get_tuned(size, options.seeds, size.tasks)
    print(f"\n   all of it: {Path.cwd()}")


if __name__ == "__main__":
    run(main, "to go on from the last whole step")
