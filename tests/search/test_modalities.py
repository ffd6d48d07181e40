"""Sweeps on what is no language model: images, and an encoder with its decoder.

Each measurement is held against the files of its merge, loaded by transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoProcessor

from mergekit_lines import sweep
from mergekit_lines.search.measuring.means import LINES, UNIFORM
from tests import models
from tests.e2e import runner

IMAGES = """
import torch

def loss(model, tokenizer, processor):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (6, 20, 24, 3), generator=generator, dtype=torch.uint8)
    pixels = processor(list(images.numpy()), return_tensors="pt").pixel_values
    classes = torch.arange(6) % 3
    logits = model(pixel_values=pixels).logits
    losses = torch.nn.functional.cross_entropy(logits.double(), classes, reduction="none")
    return {"loss": losses, "right": (logits.argmax(-1) == classes).long()}
"""
TRANSLATION = """
import torch

def loss(model, tokenizer):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 128, (5, 8), generator=generator)
    labels = torch.randint(4, 128, (5, 6), generator=generator)
    logits = model(input_ids=ids, labels=labels).logits.double()
    losses = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
    return {"loss": losses.mean(-1)}
"""
SPEECH = """
import torch

def loss(model, tokenizer):
    generator = torch.Generator().manual_seed(1)
    sound = torch.randn(4, 8, 64, generator=generator)
    labels = torch.randint(4, 128, (4, 6), generator=generator)
    logits = model(input_features=sound, labels=labels).logits.double()
    losses = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
    return {"loss": losses.mean(-1)}
"""


def vit(path: Path, *, seed: int) -> Path:
    """Save a vision transformer with the processor that makes its inputs of images."""
    models.vit(path, layers=2, seed=seed)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(path)
    return path


def t5(path: Path, *, seed: int) -> Path:
    """Save an encoder and a decoder of texts."""
    return models.t5(path, encoder_layers=2, decoder_layers=2, seed=seed)


def whisper(path: Path, *, seed: int) -> Path:
    """Save an encoder of sounds and a decoder of texts."""
    return models.whisper(path, encoder_layers=2, decoder_layers=2, seed=seed)


@pytest.mark.parametrize(
    ("make", "loader", "code"),
    [
        (vit, "AutoModelForImageClassification", IMAGES),
        (t5, "AutoModelForSeq2SeqLM", TRANSLATION),
        (whisper, "AutoModelForSpeechSeq2Seq", SPEECH),
    ],
    ids=["vit", "t5", "whisper"],
)
def test_a_sweep_measures_what_the_files_hold(
    make: Any, loader: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example has the number that it has on the files: points, a neighbour, the inputs."""
    module = f"{make.__name__}_probes"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    base = make(tmp_path / "base", seed=1)
    tuned = [models.finetuned(base, tmp_path / f"t{n}", seed=n, scale=0.05) for n in (2, 3)]
    recipe = {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(model)} for model in tuned],
        "parameters": {"wrap": "ties", "density": 0.5},
    }
    by = [f"loss=python:{module}:loss?direction=lower"]
    searched = sweep(recipe, ["beta=0.2,1"], by, "found", objective="-loss_loss", quiet=True)
    namespace: dict[str, Any] = {}
    exec(code, namespace)

    def of_files(folder: Path) -> dict[str, Any]:
        model = getattr(transformers, loader).from_pretrained(folder).eval()
        with torch.no_grad():
            images = {"processor": AutoProcessor.from_pretrained(folder)} if make is vit else {}
            numbers = namespace["loss"](model, None, **images)
        return {f"loss_{name}": tuple(map(float, each)) for name, each in numbers.items()}

    def examples(record: Any) -> dict[str, Any]:
        return {name: metric.examples for name, metric in record.metrics.items()}

    first, second = (point.records for point in searched.points)
    for name, record in (("0", first[LINES]), ("1", second[LINES]), ("flat", first[UNIFORM])):
        out = runner.in_process(record.recipe, tmp_path / "out" / name)
        assert examples(record) == of_files(out), name
    for name, record in searched.inputs.items():
        assert examples(record) == of_files(Path(name)), name
    assert len({record.metrics["loss_loss"].value for record in searched.inputs.values()}) == 3
