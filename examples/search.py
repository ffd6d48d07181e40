"""What proposals bring over a grid: a sweep and searches of as many points, on one merge.

The policies are the quickstart's; everything is made in ``examples/work/search`` (``--tiny``: in
``examples/work/tiny-search``). All is measured by the commands that are printed; a run that was
interrupted goes on behind what they have measured. See search.sh.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _base  # before transformers: it says where the Hub's library keeps its files
import learn
import numpy as np
import yaml
from _base import WORK, say
from _model import SYSTEM, fail, run
from _stories import over_seeds
from _styles import STYLES, conversations
from transformers import AutoTokenizer

import mergekit_lines
from mergekit_lines.console import new_table, open_console, print_table
from mergekit_lines.search.store import BEST, Record, read_results, record_key

RECIPE = Path("search.yml")
SWEEP, FIRST = "sweep", "tpe-0"  # those beside which uniform coefficients are measured
# Four topics each: none is in both, nor in what the policies were trained on.
SPLITS = ("validation", "test")
RANGES = ("alpha=0:1.2", "beta=0:1.5")
UNIFORM = "0:2"


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    grid: tuple[str, ...]
    trials: int
    seeds: int


FULL = Size(("alpha=0.2:1.0:0.2", "beta=0:1.2:0.3"), 25, 3)
TINY = Size(("alpha=0.5,1", "beta=0,0.5,1"), 6, 1)


def write_inputs(models: Path) -> None:
    """Write the recipe, and conversations that no policy was trained on, split by their topics."""
    recipe = {
        "merge_method": "lines",
        "base_model": str(models / "base"),
        "models": [{"model": str(models / style)} for style in STYLES],
        "parameters": {"wrap": "task_arithmetic", "alpha": 0.5, "beta": 0.5},
        "dtype": "float32",
    }
    RECIPE.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    tokenizer: Any = AutoTokenizer.from_pretrained(models / "base")
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for style in STYLES:
        pairs = conversations(style, held_out=True)
        for number, (question, answer) in enumerate(pairs):
            split = SPLITS[number * len(SPLITS) // len(pairs)]
            turns = (("system", SYSTEM), ("user", question), ("assistant", answer))
            chat = [{"role": role, "content": content} for role, content in turns]
            text = f"{question} {answer}"
            if tokenizer.chat_template:
                text = tokenizer.apply_chat_template(chat, tokenize=False)
            lines[split].append(json.dumps({"text": text}) + "\n")
    for split in SPLITS:
        Path(f"{split}.jsonl").write_text("".join(lines[split]), encoding="utf-8")


def ways(size: Size, seeds: int) -> dict[str, list[str]]:
    """Return what is compared: words of the command line, by the name of its folder."""
    count = ["--trials", str(size.trials)]

    def sets(*keys: str) -> list[str]:
        return [word for key in keys for word in ("--set", key)]

    found = {SWEEP: ["sweep", str(RECIPE), *sets(*size.grid)]}
    for seed in range(seeds):
        own = [*count, "--sampler-seed", str(seed)]
        two = ["search", str(RECIPE), *sets(*RANGES), *own]
        found[f"tpe-{seed}"] = [*two, *(["--uniform", UNIFORM] if f"tpe-{seed}" == FIRST else [])]
        found[f"random-{seed}"] = [*two, "--sampler", "random"]
        found[f"blocks-{seed}"] = ["search", str(RECIPE), *sets("blocks=0:1.5"), *own]
    return found


def measure(found: Mapping[str, Sequence[str]], threads: int | None) -> None:
    """Run the commands, one after another."""
    program = Path(sys.executable).with_name("mergekit-lines")
    splits = ["--evaluate", "perplexity:validation.jsonl", "--test", "perplexity:test.jsonl"]
    more = ["--num-threads", str(threads)] if threads else []
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    for name, words in found.items():
        command = [*words, *splits, *more, "--out", name]
        print(f"   $ {shlex.join(['mergekit-lines', *command])}", flush=True)
        with Path(f"{name}.txt").open("w", encoding="utf-8") as file:
            ended = subprocess.run([program, *command], stdout=file, env=env, check=False)
        if ended.returncode:
            raise fail(f"it ended with exit status {ended.returncode}; its message says why.")


@dataclass(frozen=True)
class Row:
    """What a search chose, and its perplexities."""

    recipe: Mapping[str, Any]
    validation: float
    test: float
    losses: tuple[float, ...]  # of each conversation of the test split, in nats per token

    def over(self, other: Row) -> str:
        """Say how much higher the loss of the test topics is than another's, with its interval.

        A topic is told in each style, and these are not independent: their mean counts once.
        """
        by_style = np.subtract(self.losses, other.losses).reshape(len(STYLES), -1)
        found = over_seeds(by_style.mean(axis=0).tolist())  # topics here: the interval is the same
        return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def tested(name: str) -> list[Row]:
    """Return what a folder has perplexities of on both splits, the best on validation first."""
    _, records = read_results(Path(name))
    both: dict[str, dict[str, Record]] = {}
    for one in records:
        if one.mean is not None and not one.problems:
            both.setdefault(record_key("", one.recipe), {})[one.split] = one
    rows = []
    for each in both.values():
        if len(each) == len(SPLITS):
            metrics = [each[split].metrics["perplexity"] for split in SPLITS]
            values = [one.value for one in metrics]
            rows.append(Row(each[SPLITS[0]].recipe, *values, metrics[-1].examples or ()))
    return sorted(rows, key=lambda row: row.validation)


def show(names: Iterable[str]) -> None:
    """Print what each way chose, with its perplexity on both splits."""
    found: dict[str, Row] = {}
    for name in names:
        rows = tested(name)
        best = record_key("", yaml.safe_load(Path(name, BEST).read_text(encoding="utf-8")))
        (found[name],) = [row for row in rows if record_key("", row.recipe) == best]
        if name in (SWEEP, FIRST):
            flat = [row for row in rows if row.recipe["parameters"].get("beta") == 0]
            found[f"{name}, best uniform"] = flat[0]
    heads = [f"perplexity, {split}" for split in SPLITS]
    table = new_table("", "chosen", *heads, "nats over the sweep's, test (95%)")
    for label, row in found.items():
        words = [f"{word} {value}" for word, value in row.recipe["parameters"].items()]
        told = ", ".join(word for word in words if not word.startswith("wrap"))
        over = "" if label == SWEEP else row.over(found[SWEEP])
        table.add_row(label, told, f"{row.validation:.4f}", f"{row.test:.4f}", over)
    print_table(open_console(), table)
    print("   of a token, mean over the test topics in both styles, with its interval over topics")


def main() -> None:
    started = time.monotonic()
    parser = _base.arguments(__doc__)
    parser.add_argument("--num-threads", type=int, help="threads that compute")
    parser.add_argument("--seeds", type=int, help="of the proposals")
    options = parser.parse_args()
    if options.folder and not options.tiny:
        parser.error("--folder goes with --tiny: the quickstart's policies lie in examples/work")
    folder = options.folder or WORK / ("tiny-search" if options.tiny else "search")
    size = TINY if options.tiny else FULL
    _base.enter(folder)
    mergekit_lines.register()
    if options.tiny:
        learn.tiny_policies()
    else:
        learn.policies()
    write_inputs(Path() if options.tiny else WORK)
    found = ways(size, options.seeds or size.seeds)
    say(f"3/4  a sweep, and searches of {size.trials} trials")
    measure(found, options.num_threads)
    say("4/4  what was chosen: lower is better")
    show(found)
    print(f"\n   a page of each: mergekit-lines show {folder.resolve()}/tpe-0")
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    run(main, "to go on behind what was measured")
