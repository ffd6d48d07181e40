"""The benchmark's merges: the recipes of both sides, whole processes and forked ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import _benchmark_floor as floor
import _benchmark_models as models
import _benchmark_server as server
import click
import yaml
from _benchmark_tables import Run

HERE = Path(__file__).resolve().parent
FLAGS = ("--no-copy-tokenizer", "--no-write-model-card", "--quiet")
ALPHA, BETA = 0.2, 0.5
DENSE: dict[str, Any] = {"weight": 1.0, "density": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"weight": 1.0},
    "ties": DENSE,
    "dare_linear": DENSE,
    "dare_ties": DENSE,
    "breadcrumbs": {**DENSE, "gamma": 0.01},
    "breadcrumbs_ties": {**DENSE, "gamma": 0.01},
    "della": {**DENSE, "epsilon": 0.1},
    "della_linear": {**DENSE, "epsilon": 0.1},
}
# What mergekit does not have: a wrap of this package, or a word of it for a wrap of mergekit's.
OWN: dict[str, dict[str, Any]] = {
    "consensus_ta": {"wrap": "consensus_ta"},
    "consensus_ties": {"wrap": "consensus_ties"},
    "consensus_ties, trim: model": {"wrap": "consensus_ties", "trim": "model"},
    "ties, trim: model": {"wrap": "ties", "trim": "model"},
}
METHODS |= {name: {"weight": 1.0} if "_ta" in name else DENSE for name in OWN}
# Of one model, which mergekit scales by depth with a list of lambdas along its layers.
POSTPROCESS = "lines_postprocess"
METHODS[POSTPROCESS] = {"weight": 1.0}


def recipe(method: str, side: str, made: Sequence[models.Checkpoint]) -> dict[str, Any]:
    """Return the recipe of a method on one side; both give the models the same parameters."""
    base, *tuned = (str(checkpoint.folder) for checkpoint in made)
    if made[-1].adapter:
        tuned = [f"{base}+{adapter}" for adapter in tuned]
    given: dict[str, Any] = {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": model, "parameters": METHODS[method]} for model in tuned],
        "dtype": made[0].shape.dtype,
    }
    if method == POSTPROCESS:
        if side == "mergekit":
            given["merge_method"] = "task_arithmetic"
            given["parameters"] = {"lambda": [ALPHA, ALPHA + BETA]}
        else:
            given["models"] = [{"model": model} for model in tuned]
            given["parameters"] = {"alpha": ALPHA, "beta": BETA}
    elif side == "lines":
        given["merge_method"] = "lines"
        given["parameters"] = {"wrap": method, "alpha": ALPHA, "beta": BETA, **OWN.get(method, {})}
    return given


class Forks:
    """The process that has imported everything, and forks one for each request.

    Args:
        work: a folder for what it says.
    """

    def __init__(self, work: Path) -> None:
        self.said = work / "server.txt"
        self._server: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let the process that has imported everything fork one for this request."""
        if self._server is None:
            self._server = self._started()
        process = self._server
        if process.stdin is None or process.stdout is None:
            raise click.ClickException("the process that forks the merges has no pipes")
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            told = process.stdout.readline()
        except BrokenPipeError:
            told = ""
        if not told:
            said = _last_line(self.said)
            raise click.ClickException(f"the process that forks the merges ended: {said}")
        answer: dict[str, Any] = json.loads(told)
        return answer

    def close(self) -> None:
        """End the process that forks, and what it has forked."""
        if self._server is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None

    def _started(self) -> subprocess.Popen[str]:
        with self.said.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "_benchmark_server.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(),
                start_new_session=True,  # a group of its own, ended as one
            )
        if process.stdout is not None:
            process.stdout.readline()  # it is ready
        return process


class Bench:
    """Runs merges of one set of checkpoints and keeps what they took.

    Args:
        setting: what is said of the set in tables.
        made: the base and the models.
        work: a folder for outputs, which are removed after each run.
        flags: of mergekit-yaml, for both sides.
        forks: runs the merges without their imports.
    """

    def __init__(
        self,
        setting: str,
        made: list[models.Checkpoint],
        work: Path,
        flags: Sequence[str],
        forks: Forks,
    ) -> None:
        self.setting, self.made, self.work, self.flags = setting, made, work, list(flags)
        self.out, self.log = work / "out", work / "log.txt"
        self.adapted = work / "adapted"  # where mergekit writes models with their adapters merged
        self.runs: list[Run] = []
        self.floor: list[dict[str, Any]] = []
        self.inputs = [path for checkpoint in made for path in checkpoint.shards]
        self.input_bytes = sum(path.stat().st_size for path in self.inputs)
        memory = floor.available_memory()
        # The output lies in the page cache beside the inputs.
        wanted = self.input_bytes + made[0].shape.disk_bytes
        self.cached = memory is None or wanted < memory
        self._forks = forks

    def merge(self, number: int, method: str, side: str, mode: str) -> None:
        """Run one merge; ``mode`` is one of :data:`tables.MODES`."""
        path = self.work / f"{method.replace(', trim: ', '-')}-{side}.yml"
        path.write_text(yaml.safe_dump(recipe(method, side, self.made)), encoding="utf-8")
        arguments = [str(path), str(self.out), *FLAGS, *self.flags]
        if self.made[-1].adapter:
            arguments += ["--lora-merge-cache", str(self.adapted)]
        self.settle()
        if mode == "whole":
            found = self._whole(arguments)
        else:
            found = self.ask({"work": "merge", "arguments": arguments, "out": str(self.out)})
        if "error" in found:
            raise click.ClickException(f"{side}/{method} failed: {found['error']}")
        report = self._report() if side == "lines" else None
        written = sum(path.stat().st_size for path in self.out.glob("*.safetensors"))
        self.runs.append(
            Run(
                setting=self.setting,
                round=number,
                method=method,
                side=side,
                mode=mode,
                wall=found["wall"],
                cpu=found["cpu"],
                anonymous=found["anonymous"],
                mapped=found["mapped"],
                read=report.get("bytes_read") if report is not None else self.input_bytes,
                written=report.get("bytes_written") if report is not None else written,
                durable=found.get("durable") if side == "mergekit" else None,
                imports=found.get("imports"),
                report=report,
            )
        )

    def plain_copy(self, number: int) -> None:
        """Time the floor of this round, in one thread and in as many as there are cores."""
        for threads in sorted({1, len(floor.cores())}):
            self.settle()
            shards = [checkpoint.shards for checkpoint in self.made if not checkpoint.adapter]
            adapters = [path for one in self.made if one.adapter for path in one.shards]
            found = floor.copy(shards, adapters, self.out, threads)
            self.floor.append({"setting": self.setting, "round": number, **found})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let a fork do a request's work."""
        return self._forks.ask({**request, "log": str(self.log)})

    def _whole(self, arguments: list[str]) -> dict[str, Any]:
        beside = Path(sys.executable).with_name("mergekit-yaml")
        program = str(beside) if beside.exists() else shutil.which("mergekit-yaml")
        if program is None:
            raise click.ClickException("mergekit-yaml is not installed beside this Python")
        with self.log.open("wb") as log:
            start = time.perf_counter()
            process = subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
            )
            status, cpu, peaks = server.watch(process.pid)
            wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            return {"error": _last_line(self.log)}
        return {"wall": wall, "cpu": cpu, "anonymous": peaks[0], "mapped": peaks[1]}

    def settle(self) -> None:
        """Remove the last output, let the disk come to rest, and fill the page cache."""
        for folder in (self.out, self.adapted):
            shutil.rmtree(folder, ignore_errors=True)
        os.sync()
        if self.cached:
            floor.warm(self.inputs)

    def _report(self) -> dict[str, Any]:
        content = json.loads((self.out / "lines_report.json").read_text(encoding="utf-8"))
        found: dict[str, Any] = content.get("run") or {}
        return found


def _last_line(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
