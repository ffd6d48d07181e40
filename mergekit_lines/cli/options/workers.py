"""The options of commands whose work several processes or machines can share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

from mergekit_lines.errors import LinesError, tell

F = TypeVar("F", bound=Callable[..., Any])


def worker_options(command: F) -> F:
    """Add ``--workers`` and ``--ray-address``."""
    for option in (
        click.option(
            "--ray-address",
            metavar="auto|HOST:PORT",
            help="Share the work among the machines of this running Ray (needs the extra [ray]).",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            metavar="N",
            help="Share the work among N processes, on this machine where no --ray-address says "
            "otherwise (needs the extra [ray]).",
        ),
    ):
        command = option(command)
    return command


def shared_among(
    workers: int | None, address: str | None, flags: dict[str, Any]
) -> tuple[Callable[..., Any] | None, dict[str, Any]]:
    """Return what shares a merge among workers, or None, and mergekit's flags as it needs them.

    Args:
        workers: of ``--workers``.
        address: of ``--ray-address``.
        flags: mergekit's, by its names.

    Raises:
        LinesError: the device is one GPU of this machine.
    """
    if workers is None and address is None:
        workers = _gpus() if flags["multi_gpu"] and flags["device"] != "cpu" else None
        if not workers:  # --multi-gpu is then told as ignored, as by the stock commands
            return None, flags
        flags = {**flags, "cuda": True}
    device = flags["device"] or ("cuda" if flags["cuda"] or flags["gpu_rich"] else "cpu")
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        flags = {**flags, "device": device}
    if ":" in device:
        raise LinesError(
            f"--device {device}: found one GPU of a machine, wanted cuda: each worker has a GPU of "
            f"its own, as Ray hands them out."
        )
    from mergekit_lines.cluster.crew import crew

    cluster = partial(
        crew,
        workers=workers,
        address=address,
        threads=flags["num_threads"],
        gpus=device == "cuda",
        quiet=flags["quiet"],
    )
    return cluster, {**flags, "multi_gpu": False}


def _gpus() -> int:
    """Return the number of GPUs that Ray can hand out here, from two on; else 0."""
    import importlib.util

    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return 0
    if importlib.util.find_spec("ray") is None:
        tell(
            "--multi-gpu: several GPUs merge where Ray is installed (`pip install "
            "'mergekit-lines[ray]'`)"
        )
        return 0
    return count
