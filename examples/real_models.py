"""Merge real checkpoints of four kinds, and load what came out with their own libraries.

python examples/real_models.py [NAME ...]      (see real_models.sh)

Each is fine-tuned twice in seconds, merged by the stock ``mergekit-yaml`` with ``lines`` and with
``lines_postprocess``, loaded, and measured on data that was not trained on. Everything lies in
``examples/work/real``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # all that is needed comes by pip, or is made here

import torch
import transformers
import yaml
from _base import WORK, fingerprint, finished, making, say
from _checkpoints import SEED, of_names
from _model import fail

REAL = WORK / "real"
BETA, GAMMA = 0.5, 0.5
CODE = [
    Path(__file__).with_name(f"_{name}.py").read_text(encoding="utf-8")
    for name in ("checkpoints", "model", "packages", "styles", "voices")
]


def cpu_seconds() -> float:
    """Return the time that this process and the commands it ran have computed."""
    return sum(os.times()[:4])


def whole(folder: Path, made_from: str, make) -> Path:
    """Make a folder, or leave it where it is there already."""
    if finished(folder, made_from) is None:
        torch.manual_seed(SEED)
        with making(folder, {"made_from": made_from}) as part:
            make(part)
    return folder


def recipes(checkpoint, base: Path, tuned: list[Path]) -> dict[str, dict]:
    """Return the recipes of both ways, with paths relative to the folder of all."""
    models = [{"model": f"./{folder.name}"} for folder in tuned]
    lines = {"wrap": checkpoint.wrap, "alpha": "auto", "beta": BETA}
    if checkpoint.wrap == "ties":
        lines["density"] = 0.5
    common = {"base_model": f"./{base.name}"}
    return {
        "lines": {"merge_method": "lines", **common, "models": models, "parameters": lines},
        "lines_postprocess": {
            "merge_method": "lines_postprocess",
            **common,
            "models": models[:1],
            "parameters": {"gamma": GAMMA},
        },
    }


def merge(name: str, recipe: dict) -> Path:
    """Run the stock ``mergekit-yaml``; return the folder that it wrote."""
    out, file = REAL / name, REAL / f"{name}.yml"
    shutil.rmtree(out, ignore_errors=True)
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    program = Path(sys.executable).with_name("mergekit-yaml")
    command = [program, file.name, out.name]
    ended = subprocess.run(command, cwd=REAL, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise fail(f"mergekit-yaml {file} failed:\n{ended.stderr[-2000:]}")
    return out


def row(checkpoint) -> list[str]:
    """Make, tune, merge and measure one checkpoint; return its row of the table."""
    say(f"{checkpoint.name}: {checkpoint.measure} ({' / '.join(checkpoint.tasks)})")
    made_from, began = fingerprint(checkpoint.name, *CODE), cpu_seconds()
    base = whole(
        REAL / f"{checkpoint.name.split(',')[0]}",
        made_from,
        lambda part: checkpoint.make(WORK / "downloads", part),
    )
    tuned = [
        whole(
            base.with_name(f"{base.name}-{task}"),
            made_from,
            lambda part, task=task: checkpoint.tune(base, task, part),
        )
        for task in checkpoint.tasks
    ]
    folders = {"base": base, **dict(zip(checkpoint.tasks, tuned, strict=True))}
    for way, recipe in recipes(checkpoint, base, tuned).items():
        folders[way] = merge(f"{base.name}-{way}", recipe)
    cells = []
    for name, folder in folders.items():
        numbers, sample = checkpoint.measured(folder)
        cells.append(" / ".join(numbers))
        print(f"   {name:17} {cells[-1]:15} {sample}", flush=True)
    print(f"   ({cpu_seconds() - began:.0f} s of CPU time)", flush=True)
    tasks = " / ".join(checkpoint.tasks)
    return [checkpoint.name, checkpoint.library, f"{checkpoint.measure}: {tasks}", *cells]


def main(names: list[str]) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    REAL.mkdir(parents=True, exist_ok=True)
    rows = [row(checkpoint) for checkpoint in of_names(names)]
    head = ["checkpoint", "loaded by", "measured", "base", "first", "second"]
    head += ["`lines`", "`lines_postprocess`"]
    print()
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")
    print(f"\n{cpu_seconds():.0f} s of CPU time in all, torch on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main(sys.argv[1:])
