"""The options of commands whose work several processes or machines can share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

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
