"""What only a GPU can show: its merges and live models against the CPU's, a soup of 7 B, times.

``bash tests/gpu.sh`` runs it. Every step that fails is told and the next one goes on; the exit
status is 1 if any did.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import _benchmark_models as made

from mergekit_lines import LiveModel
from tests import models
from tests.e2e.runner import BIN, environment, in_process, recipe_text
from tests.e2e.test_device import METHODS
from tests.live.compare import assert_as_files

# Directions of singular vectors turn with the last bits where singular values are close.
SPECTRAL = dict.fromkeys(("cart", "tsv_m", "iso_c", "iso_cts"), 1e-4)
WRAPS: dict[str, dict[str, Any]] = {**METHODS, **{wrap: {} for wrap in SPECTRAL}}
LAW = 1e-6  # of the largest entry
PLAIN: dict[str, Any] = {"copy_tokenizer": False, "write_model_card": False}
FLAGS = ("--quiet", "--no-copy-tokenizer", "--no-write-model-card")
POINTS = (0.0, 0.5, 1.0)


@dataclass
class Machine:
    """Where the steps run, and what they have measured.

    Attributes:
        device: of the side that is compared with the CPU.
        small: whether models are small enough for a test of these steps.
        folder: for checkpoints and outputs.
        rows: of the table at the end: the step, what was measured, its value.
    """

    device: str
    small: bool
    folder: Path
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def shape(self, billions: float) -> made.Shape:
        """Return a shape of about so many parameters, or a tiny one."""
        return made.shape_of(made.LEAST if self.small else billions)

    def made(self, shape: made.Shape, adapters: bool = False) -> list[str]:
        """Return the folders of a base and two models."""
        wanted = made.checkpoints(shape, 2, self.folder, adapters=adapters)
        for checkpoint in wanted:
            if not checkpoint.finished:
                made.make(checkpoint, wanted[0], lambda _: None, self.device)
        return [str(checkpoint.folder) for checkpoint in wanted]

    def out(self, name: str) -> Path:
        """Return where an output goes; what was there is gone."""
        path = self.folder / f"out-{name}"
        shutil.rmtree(path, ignore_errors=True)
        return path

    def tell(self, step: str, measured: str, value: str) -> None:
        """Keep a figure for the table, and print it now."""
        self.rows.append((step, measured, value))
        click.echo(f"{step}: {measured}: {value}")


def recipe(places: list[str], wrap: str = "task_arithmetic", **settings: Any) -> dict[str, Any]:
    """Return a recipe around a wrap."""
    base, *tuned = places
    words = {"wrap": wrap, "alpha": 0.3, "beta": 0.7, **WRAPS[wrap]}
    weights = {} if wrap in SPECTRAL else {"weight": 0.5}
    return {
        "merge_method": "lines",
        "base_model": base,
        "models": [{"model": model, "parameters": weights} for model in tuned],
        "parameters": words,
        "dtype": "bfloat16",
        **settings,
    }


def merges(machine: Machine) -> None:
    """Every wrap on the device against the CPU: the same masks, values to the law."""
    places = machine.made(machine.shape(0.02))
    base = models.read(places[0])
    for wrap, alpha in itertools.product(WRAPS, (0.3, "auto")):
        if alpha == "auto" and wrap not in ("task_arithmetic", "ties", "dare_linear"):
            continue
        document = recipe(places, wrap, dtype="float32")
        document["parameters"]["alpha"] = alpha
        want = models.read(in_process(document, machine.out("cpu"), **PLAIN))
        out = in_process(document, machine.out("device"), device=machine.device, **PLAIN)
        got, worst = models.read(out), 0.0
        assert set(got) == set(want)
        for name, tensor in want.items():
            if wrap not in SPECTRAL:
                masks = [each != base[name].float() for each in (got[name], tensor)]
                assert torch.equal(*masks), f"{wrap}: other entries of {name} changed"
            differ = float((got[name] - tensor).abs().max() / tensor.abs().max())
            worst = max(worst, differ)
        limit = SPECTRAL.get(wrap, LAW)
        machine.tell("merge", f"{wrap}, alpha {alpha}: largest difference", f"{worst:.1e}")
        assert worst <= limit, f"{wrap}: {worst} of the largest entry, at most {limit} are right"


def adapters(machine: Machine) -> None:
    """Adapters as inputs, on the device against the CPU."""
    shape = machine.shape(0.02)
    base = machine.made(shape)[0]
    loras = [f"{base}+{path}" for path in machine.made(shape, adapters=True)[1:]]
    document = recipe([base, *loras], dtype="float32")
    want = models.read(in_process(document, machine.out("cpu"), **PLAIN))
    out = in_process(document, machine.out("device"), device=machine.device, **PLAIN)
    for name, tensor in models.read(out).items():
        limit = LAW * float(want[name].abs().max())
        torch.testing.assert_close(tensor, want[name], rtol=0, atol=limit)


def live(machine: Machine) -> None:
    """A live model on the device, bit for bit what mergekit-yaml writes there."""
    places = machine.made(machine.shape(0.02))
    for wrap in ("task_arithmetic", "ties", "dare_linear"):
        with LiveModel(recipe(places, wrap), device=machine.device, **PLAIN) as model:
            for alpha, beta in ((0.2, 0.5), ("auto", 0.4)):
                model.set(alpha=alpha, beta=beta)
                out = machine.out("files")
                assert_as_files(
                    model, in_process(model.recipe, out, device=machine.device, **PLAIN)
                )
            model.set(alpha=1.0, beta=0.0)
            assert_as_files(model, command(model.recipe, machine.out("files"), machine.device))


def offloaded(machine: Machine) -> None:
    """A live model of which half lies on the device, and the rest in memory or on the disk."""
    shape = machine.shape(0.2)
    places = machine.made(shape)
    with LiveModel(recipe(places), device=machine.device, **PLAIN) as model:
        half = model.accounting.working + shape.parameters * shape.item // 2
    limits: dict[Any, Any] = {"cpu": half} if machine.device == "cpu" else {0: half, "cpu": "64GiB"}
    with LiveModel(recipe(places), max_memory=limits, **PLAIN) as model:
        model.set(alpha=0.2, beta=0.5)
        homes = {str(home) for home in model.model.hf_device_map.values()}
        assert len(homes) == 2, f"found weights on {homes}, wanted two places"
        assert_as_files(model, command(model.recipe, machine.out("files"), machine.device))
        logits = model.model(torch.arange(8)[None].to(machine.device)).logits
        assert logits.isfinite().all()


def command(document: Any, out: Path, device: str) -> Path:
    """Run the stock command on a device."""
    path = out.with_suffix(".yml")
    path.write_text(recipe_text(document), encoding="utf-8")
    words = [str(BIN / "mergekit-yaml"), str(path), str(out), *FLAGS, "--device", device]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def rewarded_soup(machine: Machine) -> None:
    """Three points of a soup of LLaMA-2-7B's shape: set the weights, then write 32 tokens to 8."""
    shape = machine.shape(0) if machine.small else replace(made.LLAMA_7B, filled=None)
    start = time.perf_counter()
    places = machine.made(shape)
    machine.tell("soup", "making the three models, s", f"{time.perf_counter() - start:.0f}")
    peak = Peak(machine.device)
    start = time.perf_counter()
    prompts = torch.arange(8 * 16).view(8, 16).to(machine.device)
    with LiveModel(
        recipe(places), device=machine.device, memory_budget=0, quiet=True, **PLAIN
    ) as model:
        machine.tell("soup", "opening, s", f"{time.perf_counter() - start:.1f}")
        for c in POINTS:
            start = time.perf_counter()
            model.set(weights=[c, 1 - c])
            peak.wait()
            written = time.perf_counter()
            model.model.generate(prompts, max_new_tokens=32, do_sample=False, pad_token_id=0)
            peak.wait()
            ended = time.perf_counter()
            seconds = f"{written - start:.1f} + {ended - written:.1f}"
            machine.tell("soup", f"c = {c:g}: setting + generating, s", seconds)
    weights = shape.parameters * shape.item / 1e9
    machine.tell("soup", f"peak on the device, GB (weights {weights:.2f})", peak.gigabytes())
    for place in places if not machine.small else []:
        shutil.rmtree(place)  # the disk is wanted for the next step


class Peak:
    """The most that torch held on a device since this was made."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        """Wait until the device has done all that it was asked."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def gigabytes(self) -> str:
        """Return the peak as text; of a CPU torch does not tell."""
        return f"{torch.cuda.max_memory_allocated() / 1e9:.2f}" if self.device == "cuda" else "-"


def times(machine: Machine) -> None:
    """Whole processes in turn: mergekit on the device, lines there, and lines on the CPU."""
    places = machine.made(machine.shape(0.84))
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(1 if machine.small else 2):
        for wrap in ("ties", "task_arithmetic"):
            ours = recipe(places, wrap)
            theirs = {**ours, "merge_method": wrap, "parameters": WRAPS[wrap]}
            sides = {
                f"mergekit, {machine.device}": (theirs, machine.device),
                f"lines, {machine.device}": (ours, machine.device),
                "lines, cpu": (ours, "cpu"),
            }
            for side, (document, device) in sides.items():
                out = machine.out("timed")
                start = time.perf_counter()
                command(document, out, device)
                seconds.setdefault((wrap, side), []).append(time.perf_counter() - start)
    for (wrap, side), values in seconds.items():
        value = f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"
        machine.tell("whole process, s", f"{wrap}: {side}", value)


STEPS: dict[str, Callable[[Machine], None]] = {
    "merges": merges,
    "adapters": adapters,
    "live": live,
    "offloaded": offloaded,
    "times": times,
    "soup": rewarded_soup,
}


@contextmanager
def working(folder: Path | None) -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=folder) as path:
        yield Path(path)


@click.command(context_settings={"show_default": True})
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
@click.option("--small", is_flag=True, help="Small models, for a test of these steps.")
@click.option(
    "--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Scratch space."
)
@click.argument("steps", nargs=-1, type=click.Choice(list(STEPS)))
def main(device: str, small: bool, folder: Path | None, steps: tuple[str, ...]) -> None:
    """Run STEPS, all by default."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("torch sees no CUDA device; --device cpu --small runs without")
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    click.echo(f"{card}, {os.cpu_count()} cores, torch {torch.__version__}")
    failures = []
    with working(folder) as place:
        machine = Machine(device, small, place)
        for name in steps or STEPS:
            start = time.perf_counter()
            try:
                STEPS[name](machine)
            except Exception:
                traceback.print_exc()
                failures.append(name)
            gc.collect()
            result = "FAILED" if name in failures else "passed"
            machine.tell(name, result, f"{time.perf_counter() - start:.0f} s")
    table = Table("step", "measured", "value", title=card)
    for row in machine.rows:
        table.add_row(*row)
    Console(width=100).print(table)
    if failures:
        raise click.ClickException(f"failed: {', '.join(failures)}")


if __name__ == "__main__":
    main()
