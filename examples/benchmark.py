"""Time merges: mergekit's own method against ``lines`` around it, on checkpoints made here.

    python examples/benchmark.py --billions 0.84 --models 2 --rounds 3
    python examples/benchmark.py --models 2 --models 8 --dtype bfloat16 --dtype float32 --lora

Every round runs each of them in turn, as a whole ``mergekit-yaml`` process and as the merge alone
without imports, and then plain copying of the same bytes. Checkpoints are kept for the next time.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import _benchmark_floor as floor
import _benchmark_models as models
import _benchmark_server as server
import _benchmark_tables as tables
import click
from _benchmark_runs import ALPHA, BETA, METHODS, OWN, POSTPROCESS, Bench, Forks
from rich.console import Console
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent / "work" / "benchmark"
PACKAGES = ("mergekit-lines", "mergekit", "torch", "transformers", "safetensors", "accelerate")
SLACK = 100_000_000  # bytes on the disk for headers, logs and the file system's own
SIDES = ("mergekit", "lines")


def prepare(made: list[models.Checkpoint], outputs: int) -> None:
    """Make the checkpoints that are not there, if the disk takes them and ``outputs`` merges.

    Raises:
        click.ClickException: there is too little space.
    """
    missing = [checkpoint for checkpoint in made if not checkpoint.finished]
    shape, folder = made[0].shape, made[0].folder.parent
    wanted = sum(checkpoint.disk_bytes for checkpoint in missing) + SLACK
    wanted += outputs * shape.parameters * shape.item
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise click.ClickException(
            f"{folder} takes {wanted / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free there; "
            f"choose another --folder or a smaller model"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for checkpoint in missing:
        with tqdm(
            total=checkpoint.disk_bytes,
            desc=f"making {checkpoint.folder.name}",
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None,
        ) as bar:
            models.make(checkpoint, made[0], bar.update)


@contextmanager
def working(folder: Path) -> Iterator[Path]:
    """Give a folder for outputs that is gone afterwards, also after Ctrl-C or SIGTERM."""
    path = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def machine() -> dict[str, Any]:
    """Return what the numbers hang on beside the code."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    except OSError:
        names = []
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(floor.cores()),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "load_before": os.getloadavg()[0],
    }


def merges(
    bench: Bench,
    methods: Sequence[str],
    rounds: int,
    sides: Sequence[str],
    modes: Sequence[str],
    beside: bool,
) -> None:
    """Run all rounds: each method in every mode, both sides in turn, then the floor.

    Args:
        bench: keeps what is found.
        methods: names of mergekit's methods, and of ours that it does not have.
        rounds: how many.
        sides: which of :data:`SIDES`.
        modes: "whole", "alone", or both.
        beside: whether each round ends with the merges beside a busy neighbour.
    """
    pairs = {m: [side for side in sides if side == "lines" or m not in OWN] for m in methods}
    plan = [(m, mode, side) for m, own in pairs.items() for mode in modes for side in own]
    busy = [(m, "beside", side) for m, own in pairs.items() for side in own] if beside else []
    total = rounds * (len(plan) + len(busy) + 1)
    with tqdm(total=total, unit="run", leave=False, disable=None) as bar:

        def run(number: int, jobs: Sequence[tuple[str, str, str]]) -> None:
            for method, mode, side in jobs:
                bar.set_description(f"round {number}: {method}, {mode}, {side}")
                bench.merge(number, method, side, mode)
                bar.update()

        for number in range(1, rounds + 1):
            run(number, plan)
            bar.set_description(f"round {number}: plain copying")
            bench.plain_copy(number)
            bar.update()
            if busy:
                with floor.neighbour():
                    run(number, busy)


def readers(bench: Bench, rounds: int) -> list[dict[str, Any]]:
    """Read the base through every reader in turn; return what each reading took."""
    base = bench.made[0]
    found = []
    with tqdm(total=rounds * len(server.READERS), unit="run", leave=False, disable=None) as bar:
        for number in range(1, rounds + 1):
            for reader in server.READERS:
                bar.set_description(f"round {number}: {reader}")
                bench.settle()
                told = bench.ask(
                    {
                        "work": "read",
                        "reader": reader,
                        "folder": str(base.folder),
                        "index": models.INDEX,
                    }
                )
                if "error" in told:
                    raise click.ClickException(f"reading through {reader}: {told['error']}")
                found.append({"round": number, "reader": reader, **told})
                bar.update()
    return found


def show_setting(
    console: Console, bench: Bench, found: dict[str, Any], rounds: int, readers_only: bool
) -> None:
    """Say what is measured, and on what."""
    shape = bench.made[0].shape
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    what = "the base" if readers_only else bench.setting
    tables.say(
        console,
        f"LLaMA, {shape.layers} layers of {shape.hidden}: {shape.parameters / 1e9:.3f} B "
        f"parameters, {tables.size([shape.parameters * shape.item])} in {shape.dtype}; {what}; "
        f"rounds: {rounds}",
    )
    tables.say(
        console,
        f"{found['cpu']}, {found['cores']} cores, {found['system']}, load average "
        f"{found['load_before']:.2f} before; Python {found['python']}, {versions}",
    )
    if shape.filled:
        size = shape.filled * shape.item / 2**20
        tables.say(
            console,
            f"The inputs are sparse: the largest tensors are real, and the first {size:.0f} MiB of "
            f"each other; the rest are holes that read as zeros. Good for memory; times are not "
            f"those of a disk.",
        )
    if not bench.cached:
        tables.say(
            console, "The inputs do not fit into the page cache: they were not read before runs."
        )


def show_merges(console: Console, bench: Bench, methods: Sequence[str]) -> None:
    """Print every method's table, the floor, and what the neighbour costs."""
    for method in methods:
        console.print(tables.method_table(method, bench.runs))
    tables.show_floor(console, bench.runs, bench.floor, methods)
    tables.show_beside(console, bench.runs, [name for name in methods if name in OWN])
    tables.show_neighbour(console, bench.runs, methods)
    shape = bench.made[0].shape
    largest = shape.largest * 4
    tables.say(
        console,
        f"\nMedians (least–largest) of the rounds; ratios are taken within a round. whole process: "
        f"mergekit-yaml from its start; merge alone: without imports, in a fork of a process that "
        f"has made them. anonymous, "
        f"mapped: peaks of RssAnon and RssFile, sampled every {server.INTERVAL_S * 1000:.0f} ms. "
        f"beyond imports: what the merge adds to {tables.imports(bench.runs)} that its imports "
        f"hold; 4 × the largest tensor in fp32 + 300 MB are {(4 * largest + 3e8) / 1e6:.0f} MB.",
    )
    note = f"lines (alpha {ALPHA}, beta {BETA}) waits until its output is on the disk (fsync)"
    if any(run.side == "mergekit" for run in bench.runs):
        note += (
            "; mergekit does not, but where '+ fsync' or 'durable' says so. read, written: "
            "counted by lines; for mergekit the sizes of the files"
        )
    tables.say(console, f"{note}.")


def plans(
    settings: dict[str, models.Setting], methods: Sequence[str]
) -> dict[str, tuple[models.Setting, list[str]]]:
    """Return every setting that has something to run, with its methods.

    ``lines_postprocess`` has a setting with one model, and is left out of the others.
    """
    several = [name for name in methods if name != POSTPROCESS]
    found = {name: (setting, several) for name, setting in settings.items()}
    if POSTPROCESS in methods:
        first, setting = next(iter(settings.items()))
        one = first.replace(f"base + {setting.count}", "base + 1")
        setting, others = found.get(one, (dataclasses.replace(setting, count=1), []))
        found[one] = (setting, [*others, POSTPROCESS])
    return {name: plan for name, plan in found.items() if plan[1]}


METHOD = click.Choice(list(METHODS))


@click.command(context_settings={"show_default": True})
@click.option(
    "--billions",
    type=click.FloatRange(models.LEAST, models.MOST),
    default=0.84,
    help="Parameters of one model, at least.",
)
@click.option("--llama-7b", is_flag=True, help="The shapes of LLaMA-2-7B, in sparse files.")
@click.option(
    "--models",
    "counts",
    type=click.IntRange(1, 64),
    multiple=True,
    default=(2,),
    help="Models beside the base; further numbers are settings of their own.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(list(models.DTYPES)),
    multiple=True,
    default=("bfloat16",),
    help="Of inputs and output; further ones are settings of their own.",
)
@click.option("--lora", is_flag=True, help="A setting more: the models are adapters of the base.")
@click.option(
    "--small-tensors", is_flag=True, help="A setting more: matrices of 2^20 entries, as experts."
)
@click.option(
    "--method",
    "methods",
    type=METHOD,
    multiple=True,
    default=("ties", "dare_linear", "task_arithmetic", POSTPROCESS),
    help="Give it several times for several.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=3)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(["whole", "alone"]),
    multiple=True,
    default=("whole", "alone"),
    help="Whole processes, or the merge without imports.",
)
@click.option("--lines-only", is_flag=True, help="Leave mergekit's own methods out.")
@click.option("--neighbour", is_flag=True, help="Each round again with one core taken.")
@click.option("--readers", "only_readers", is_flag=True, help="Time ways to read, not merges.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=FOLDER,
    show_default="examples/work/benchmark",
    help="Where checkpoints are kept and outputs come and go.",
)
@click.option("--json", "raw", type=click.Path(dir_okay=False, path_type=Path), help="Raw numbers.")
@click.argument("flags", nargs=-1)
@click.pass_context
def main(
    context: click.Context,
    billions: float,
    llama_7b: bool,
    counts: tuple[int, ...],
    dtypes: tuple[str, ...],
    lora: bool,
    small_tensors: bool,
    methods: tuple[str, ...],
    rounds: int,
    modes: tuple[str, ...],
    lines_only: bool,
    neighbour: bool,
    only_readers: bool,
    folder: Path,
    raw: Path | None,
    flags: tuple[str, ...],
) -> None:
    """Time mergekit's own methods against `lines` around them, and merges of this package.

    FLAGS behind `--` go to mergekit-yaml on both sides: `-- --num-threads 1`.
    """
    given = context.get_parameter_source("billions") is not click.core.ParameterSource.DEFAULT
    if llama_7b and given:
        raise click.ClickException("--llama-7b has its own size; leave --billions out")
    if neighbour and (not hasattr(os, "sched_setaffinity") or len(floor.cores()) < 2):
        raise click.ClickException("--neighbour needs Linux and two cores")
    if neighbour and "alone" not in modes:
        raise click.ClickException("--neighbour is told against --mode alone; add that")
    methods, modes = tuple(dict.fromkeys(methods)), tuple(dict.fromkeys(modes))
    counts, dtypes = tuple(dict.fromkeys(counts)), tuple(dict.fromkeys(dtypes))
    if raw is not None and not os.access(raw.absolute().parent, os.W_OK):
        raise click.ClickException(f"--json {raw}: there is no such folder, or none to write to")
    if llama_7b and (len(counts) > 1 or len(dtypes) > 1 or lora or small_tensors):
        raise click.ClickException("--llama-7b is one setting; give it no others")
    settings = models.settings(billions, counts, dtypes, lora=lora, small_tensors=small_tensors)
    if llama_7b:
        settings = {f"base + {counts[0]}": models.Setting(models.LLAMA_7B, counts[0])}
    place, console, found = folder.absolute(), tables.console(), machine()
    content: dict[str, Any] = {"rounds": rounds, "settings": {}, "runs": [], "floor": []}
    sides = SIDES[1:] if lines_only else SIDES
    planned = plans(settings, methods)
    checkpoints = {
        name: setting.checkpoints(place, base_only=only_readers)
        for name, (setting, _) in planned.items()
    }
    for made in checkpoints.values():
        prepare(made, outputs=0 if only_readers else 2 if made[-1].adapter else 1)
    with working(place) as work, closing(Forks(work)) as forks:
        for name, (setting, own) in planned.items():
            bench = Bench(name, checkpoints[name], work, flags, forks)
            show_setting(console, bench, found, rounds, only_readers)
            if only_readers:
                content["readers"] = readers(bench, rounds)
                console.print(tables.reader_table(content["readers"], setting.shape.item))
            else:
                merges(bench, own, rounds, sides, modes, neighbour)
                show_merges(console, bench, own)
            content["settings"][name] = {
                "parameters": setting.shape.parameters,
                "largest_tensor": setting.shape.largest,
                "models": setting.count,
                "cached": bench.cached,
            }
            content["runs"] += bench.runs
            content["floor"] += bench.floor
    if "alone" in modes and not only_readers:
        console.print(tables.summary(content["runs"], content["floor"]))
    tables.say(console, f"The checkpoints are kept in {place}")
    if raw is not None:
        content["machine"] = {**found, "load_after": os.getloadavg()[0]}
        content["runs"] = [
            {**dataclasses.asdict(run), "beyond": run.beyond} for run in content["runs"]
        ]
        raw.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main(standalone_mode=False)
    except click.ClickException as problem:
        sys.exit(f"benchmark: {problem.format_message()}")
    except (click.Abort, KeyboardInterrupt):
        sys.exit("benchmark: interrupted; what was merged is removed, the checkpoints are kept.")
    except OSError as problem:
        sys.exit(f"benchmark: {problem}")
