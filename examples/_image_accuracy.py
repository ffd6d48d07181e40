"""Images as the text encoder's stories classify texts: by heads that are never trained with it.

A task's head is fitted once, on what the pre-trained model makes of a few of the task's images,
and stays so: a model that is fine-tuned on one task can still be asked about every other. ``tasks``
is for ``python:_image_accuracy:tasks``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FOLDER = Path("images")  # in the directory where it is measured
IMAGES, HEADS = "images.safetensors", "heads.safetensors"  # in that folder
BATCH = 100
PENALTY = 1e-2  # of a head's squared weights


def inputs(pixels: torch.Tensor) -> torch.Tensor:
    """Return images of 8 bits [images, height, width] as a model takes them: -1 to 1."""
    return pixels[:, None].float() / 127.5 - 1


def features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return what a model makes of images [images, width]: what it pools, or its first token."""
    outputs = model(pixel_values=inputs(pixels))
    pooled = outputs.pooler_output
    return outputs.last_hidden_state[:, 0] if pooled is None else pooled


def classified(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Return a head's logits [images, classes]; its last column is added to them."""
    return states @ head[:, :-1].T + head[:, -1]


def fitted(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the head of a multinomial logistic regression [classes, width + 1].

    Args:
        states: features of the pre-trained model [images, width].
        labels: classes [images], from 0 on.
    """
    mean, spread = states.mean(0), states.std(0) + 1e-6
    scaled = ((states - mean) / spread).double()
    weights = torch.zeros(int(labels.max()) + 1, states.shape[1] + 1, dtype=torch.float64)
    weights.requires_grad_()
    search = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        wrong = torch.nn.functional.cross_entropy(classified(scaled, weights), labels)
        value = wrong + PENALTY * weights[:, :-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        search.step(loss)
    own = weights.detach()[:, :-1] / spread
    shift = weights.detach()[:, -1] - own @ mean.double()
    return torch.cat([own, shift[:, None]], dim=1).float()


def name_of(task: str, split: str, what: str) -> str:
    return f"{task}.{split}.{what}"


@functools.cache
def _stored(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return load_file(folder / IMAGES), load_file(folder / HEADS)


@torch.no_grad()
def tasks(model: Any, tokenizer: Any, split: str) -> dict[str, list[float]]:  # noqa: ARG001
    """Return for each task and image whether its class was found: 1 or 0."""
    images, heads = _stored(FOLDER.resolve())
    right: dict[str, list[float]] = {}
    for task, head in heads.items():
        pixels, labels = (images[name_of(task, split, what)] for what in ("pixels", "labels"))
        logits = [classified(features(model, batch), head) for batch in pixels.split(BATCH)]
        right[task] = (torch.cat(logits).argmax(1) == labels).float().tolist()
    return right
