"""Time the points of a soup on a live model against merging, writing and loading each of them.

    python examples/live_benchmark.py [BASE FIRST SECOND]

The three are folders of checkpoints; without them a base and two models of the size of
SmolLM2-135M are made here. Every point is done three ways in turn: by the command mergekit-yaml
with mergekit's own task_arithmetic, whose output is then loaded with transformers; by the same
merge without the command's imports, in this process; and by setting the weights of a model that is
held. Nothing is evaluated. Then the live model's memory is measured in a process of its own.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import _benchmark_models as models
import _benchmark_tables as tables
import click
import torch
import transformers
import yaml
from _benchmark_server import INTERVAL_S, resident
from rich.table import Table
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent / "work" / "live-benchmark"
SMOLLM2 = models.Shape(hidden=576, intermediate=1536, vocabulary=49152, layers=30, heads=9)
ALPHA, BETA = 1.0, 1.0
BUDGET = 0  # of task vectors: a soup is a plain sum, and keeps none


def checkpoints(folders: tuple[Path, ...]) -> list[str]:
    """Return the base and two models, made here if none are given."""
    if folders:
        return [str(folder.absolute()) for folder in folders]
    made = models.checkpoints(SMOLLM2, 2, FOLDER)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for checkpoint in made:
        if not checkpoint.finished:
            print(f"making {checkpoint.folder.name}", flush=True)
            models.make(checkpoint, made[0], lambda _: None)
    return [str(checkpoint.folder) for checkpoint in made]


def recipe(places: list[str], c: float, *, lines: bool) -> dict[str, Any]:
    """Return the recipe of a point; both sides give every block the same coefficient."""
    base, *policies = places
    entries = [
        {"model": model, "parameters": {"weight": weight}}
        for model, weight in zip(policies, (c, 1 - c), strict=True)
    ]
    made: dict[str, Any] = {"base_model": base, "models": entries, "dtype": "bfloat16"}
    if lines:
        return made | {"merge_method": "lines", "parameters": {"alpha": ALPHA, "beta": BETA}}
    gradient = {"lambda": [ALPHA, ALPHA + BETA]}
    return made | {"merge_method": "task_arithmetic", "parameters": gradient}


def by_mergekit(places: list[str], c: float, out: Path) -> None:
    """Merge a point, write it, and load it."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    config = MergeConfiguration.model_validate(recipe(places, c, lines=False))
    run_merge(config, str(out), options)
    transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")


def by_command(places: list[str], c: float, out: Path) -> None:
    """Merge a point with the command mergekit-yaml, and load it."""
    path = out.with_suffix(".yml")
    path.write_text(yaml.safe_dump(recipe(places, c, lines=False)), encoding="utf-8")
    program = Path(sys.executable).with_name("mergekit-yaml")
    flags = ("--quiet", "--no-copy-tokenizer", "--no-write-model-card")
    subprocess.run([program, path, out, *flags], check=True, capture_output=True)
    transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")


def timed(work: Any, *arguments: Any, **named: Any) -> float:
    """Return the seconds that a call takes."""
    gc.collect()
    start = time.perf_counter()
    work(*arguments, **named)
    return time.perf_counter() - start


@contextmanager
def peak() -> Iterator[list[int]]:
    """Sample this process's anonymous memory; the list's only entry is its peak."""
    found, stop = [0], threading.Event()

    def sample() -> None:
        while not stop.wait(INTERVAL_S):
            now = resident("self")
            found[0] = max(found[0], now[0] if now else 0)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def memory(places: list[str], points: int) -> None:
    """Print what the live model takes, as JSON: for a process of its own."""
    from mergekit_lines import LiveModel

    before = resident("self")
    with (
        peak() as found,
        LiveModel(
            recipe(places, 0.0, lines=True), memory_budget=BUDGET, quiet=True, copy_tokenizer=False
        ) as live,
    ):
        for number in range(points):
            c = number / (points - 1)
            live.set(weights=[c, 1 - c])
        told = live.accounting
    anonymous = found[0] - before[0] if before else None
    weights = sum(told.weights.values())
    print(json.dumps({"anonymous": anonymous, "weights": weights, "working": told.working}))


@click.command()
@click.option("--points", type=click.IntRange(2), default=11, show_default=True, help="Of c.")
@click.option("--only-memory", is_flag=True, hidden=True)
@click.argument("folders", nargs=-1, type=click.Path(exists=True, path_type=Path))
def main(points: int, only_memory: bool, folders: tuple[Path, ...]) -> None:
    """Time the points of a soup, live against merged, written and loaded."""
    if len(folders) not in (0, 3):
        raise click.UsageError("wanted three folders (BASE FIRST SECOND), or none")
    places = checkpoints(folders)
    if only_memory:
        memory(places, points)
        return
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from mergekit_lines import LiveModel

    settings: dict[str, Any] = {"memory_budget": BUDGET, "quiet": True, "copy_tokenizer": False}
    seconds: dict[str, list[float]] = {"command": [], "mergekit": [], "live": []}
    with tempfile.TemporaryDirectory(dir=Path(places[0]).parent) as work:
        out = Path(work, "out")
        by_mergekit(places, 0.5, out)  # both sides have done everything once
        start = time.perf_counter()
        live = LiveModel(recipe(places, 0.5, lines=True), **settings)
        opening = time.perf_counter() - start
        for number in tqdm(range(points), unit="point", leave=False, disable=None):
            c = number / (points - 1)
            for way, work_of in (("command", by_command), ("mergekit", by_mergekit)):
                shutil.rmtree(out, ignore_errors=True)
                seconds[way].append(timed(work_of, places, c, out))
            seconds["live"].append(timed(live.set, weights=[c, 1 - c]))
        count = sum(parameter.numel() for parameter in live.model.parameters())
        live.close()
    command = [sys.executable, __file__, "--only-memory", "--points", str(points), *places]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    taken = json.loads(told.stdout.splitlines()[-1])
    show(seconds, opening, taken, count)


def show(
    seconds: dict[str, list[float]], opening: float, taken: dict[str, int], count: int
) -> None:
    """Print the table, the ratio and the memory."""
    table = Table(title=f"seconds per point, {count / 1e6:.0f} M parameters in bf16")
    for header in ("way", "median", "least", "largest"):
        table.add_column(header)
    names = {
        "command": "mergekit-yaml, then load",
        "mergekit": "the same without imports",
        "live": "mergekit-lines: set the live model",
    }
    for side, values in seconds.items():
        numbers = (statistics.median(values), min(values), max(values))
        table.add_row(names[side], *(f"{value:.3f}" for value in numbers))
    console = tables.console()
    console.print(table)
    for way, text in (("command", "mergekit-yaml and loading"), ("mergekit", "without imports")):
        pairs = zip(seconds[way], seconds["live"], strict=True)
        ratios = sorted(theirs / ours for theirs, ours in pairs)
        tables.say(
            console,
            f"{len(ratios)} points against {text}: {statistics.median(ratios):.1f} times as fast "
            f"({ratios[0]:.1f} to {ratios[-1]:.1f}).",
        )
    tables.say(
        console,
        f"Opening the live model took {opening:.2f} s. {torch.get_num_threads()} threads.",
    )
    if taken["anonymous"] is not None:
        whole = taken["weights"] + taken["working"] + BUDGET
        tables.say(
            console,
            f"memory beyond imports, at most {taken['anonymous'] / 1e6:.0f} MB; the model "
            f"{taken['weights'] / 1e6:.0f}, the largest group at work "
            f"{taken['working'] / 1e6:.0f}, the budget {BUDGET / 1e6:.0f}: together "
            f"{whole / 1e6:.0f} MB.",
        )


if __name__ == "__main__":
    main()
