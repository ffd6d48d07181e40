"""Measured processes, for the benchmark.

As a script it imports what a merge needs, computes nothing, and forks one process per request
that is read from stdin: a merge without its imports. Answers go to stdout, one line of JSON each.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

INTERVAL_S = 0.01  # between two samples of a process's memory


def resident(pid: int | str) -> tuple[int, int] | None:
    """Return a process's resident bytes, anonymous and mapped from files; None without /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if "kB" in line}
    if "RssAnon" not in found:
        return None
    return int(found["RssAnon"]) * 1024, int(found["RssFile"]) * 1024


def watch(pid: int) -> tuple[int, float, tuple[int | None, int | None]]:
    """Wait for a child; return its status, its CPU seconds and its peaks of :func:`resident`."""
    parent = os.getppid()
    peaks = None
    try:
        while os.getppid() == parent:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                used = usage.ru_utime + usage.ru_stime
                return status, used, peaks or (None, None)
            found = resident(pid)
            if found:
                peaks = (
                    found if peaks is None else (max(peaks[0], found[0]), max(peaks[1], found[1]))
                )
            time.sleep(INTERVAL_S)
        sys.exit("the benchmark is gone")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def merge(request: dict[str, Any]) -> dict[str, Any]:
    """Run ``mergekit-yaml`` with the arguments of the request, in this process."""
    from mergekit.scripts import run_yaml

    before = resident("self")
    cpu, start = time.process_time(), time.perf_counter()
    run_yaml.main(request["arguments"], standalone_mode=False)
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    for path in Path(request["out"]).iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    durable = time.perf_counter() - start
    return {"wall": wall, "cpu": used, "durable": durable, "imports": before and before[0]}


def read(request: dict[str, Any]) -> dict[str, Any]:
    """Copy every tensor of a checkpoint, piece by piece, into one fp32 buffer."""
    import torch

    from mergekit_lines.engine.pieces import PIECE

    torch.set_num_threads(1)
    runs = READERS[request["reader"]]
    folder = Path(request["folder"])
    index = json.loads((folder / request["index"]).read_text(encoding="utf-8"))
    files = {name: folder / file for name, file in index["weight_map"].items()}
    buffer = torch.zeros(PIECE)
    before = resident("self")
    cpu, start = time.process_time(), time.perf_counter()
    entries = sum(runs(files, buffer))
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    return {"wall": wall, "cpu": used, "entries": entries, "imports": before and before[0]}


def _held(tensor: Any, buffer: Any) -> int:
    flat = tensor.view(-1)
    for start in range(0, len(flat), len(buffer)):
        piece = flat[start : start + len(buffer)]
        buffer[: len(piece)].copy_(piece)
    return len(flat)


def _accelerate(files: dict[str, Path], buffer: Any) -> Iterator[int]:
    from accelerate.utils import OffloadedWeightsLoader  # type: ignore[import-untyped]

    stored = {name: {"safetensors_file": str(file)} for name, file in files.items()}
    loader = OffloadedWeightsLoader(index=stored)
    for name in files:
        yield _held(loader[name], buffer)


def _mapped(files: dict[str, Path], buffer: Any) -> Iterator[int]:
    from safetensors import safe_open

    handles: dict[Path, Any] = {
        file: safe_open(file, framework="pt") for file in set(files.values())
    }
    for name, file in files.items():
        yield _held(handles[file].get_tensor(name), buffer)


def _ours(files: dict[str, Path], buffer: Any) -> Iterator[int]:
    from mergekit_lines.checkpoint.sources import Shard

    shards = {file: Shard(file) for file in set(files.values())}
    for name, file in files.items():
        tensor = shards[file].tensor(name)
        entries = 1
        for size in tensor.shape:
            entries *= size
        for start in range(0, entries, len(buffer)):
            stop = min(start + len(buffer), entries)
            tensor.read_into(start, stop, buffer[: stop - start])
        yield entries


READERS: dict[str, Callable[[dict[str, Path], Any], Iterator[int]]] = {
    "accelerate": _accelerate,
    "safetensors": _mapped,
    "mergekit-lines": _ours,
}
WORK = {"merge": merge, "read": read}


def fork(request: dict[str, Any]) -> dict[str, Any]:
    """Do a request's work in a new process; return what it found, with its peaks of memory."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(request, writing)
    os.close(writing)
    try:
        status, _, peaks = watch(pid)
        with os.fdopen(reading, encoding="utf-8", closefd=False) as told:
            text = told.read()
    finally:
        os.close(reading)
    if not text:
        return {"error": f"ended with status {status}"}
    return {**json.loads(text), "anonymous": peaks[0], "mapped": peaks[1]}


def _child(request: dict[str, Any], writing: int) -> None:
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        found = WORK[request["work"]](request)
    except BaseException as error:  # noqa: BLE001 - told to the parent, and nothing else runs here
        said = getattr(error, "message", None) or str(error) or "no message"
        found = {"error": f"{type(error).__name__}: {said}"}
    os.write(writing, json.dumps(found).encode()[:60_000])
    os._exit(0)


def serve() -> None:
    """Import, say so, and answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import mergekit_lines

    mergekit_lines.register()
    for name in ("mergekit.scripts.run_yaml", "accelerate.utils", "safetensors.torch"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(mergekit_lines.__path__, "mergekit_lines."):
        importlib.import_module(module.name)
    # Looked up by name at the first use, so an import like any other.
    for name in ("AutoConfig", "AutoTokenizer", "LlamaForCausalLM", "GenerationConfig"):
        getattr(importlib.import_module("transformers"), name)
    gc.collect()
    gc.freeze()  # or the children's collections would copy the parent's pages
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(fork(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    try:
        serve()
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)
