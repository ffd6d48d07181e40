"""Commands in a network of their own, beside a Ray of two nodes that they may join."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.runner import STUCK, ForkServer, Result
from tests.e2e.torture import partial_of

SCRIPT = Path(__file__).with_name("networked.py")


def refused() -> str:
    """Return why there is no network of its own here, or an empty text."""
    probe = subprocess.run([sys.executable, str(SCRIPT), "probe"], capture_output=True, text=True)
    return probe.stderr.strip().rpartition("\n")[2] if probe.returncode else ""


@dataclass(frozen=True)
class Kill:
    """A SIGKILL.

    Attributes:
        what: ``driver`` or ``worker``.
        out: of the merge.
        shards: how many have to be whole first.
        seconds: to wait then.
        choice: which of the workers.
    """

    what: str
    out: Path
    shards: int
    seconds: float
    choice: int = 0

    def job(self) -> dict[str, Any]:
        """Return it as the server takes it."""
        return {**vars(self), "out": str(self.out), "folder": str(partial_of(self.out))}


class ClusterServer(ForkServer):
    """Forks ``mergekit-lines`` where a Ray of two nodes is to be reached."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder / "log", script=str(SCRIPT), preload=["mergekit_lines.cluster.crew"]
        )
        self._folder = folder

    @property
    def address(self) -> str:
        """Of the Ray, for ``--ray-address``."""
        return (self._folder / "address").read_text(encoding="ascii")

    @property
    def private(self) -> Path:
        """A folder that the second node does not see."""
        return self._folder / "private"

    def merge(
        self, folder: Path, *words: str, kills: Sequence[Kill] = (), shared: bool = True
    ) -> tuple[Result, list[bool]]:
        """Run ``mergekit-lines merge`` with these words in a folder; tell which kills struck."""
        address = ["--ray-address", self.address] if shared else []
        command = ["mergekit-lines", "merge", *words, *address]
        more = {"kills": [kill.job() for kill in kills]}
        result, answer = self.ask(command, folder, folder, STUCK, more)
        return result, answer["struck"]

    def merges(
        self, folder: Path, commands: Sequence[Sequence[str]], kills: Sequence[Kill] = ()
    ) -> tuple[Result, list[bool]]:
        """Run several such commands by one driver, whose workers stay the same."""
        lines = [["merge", *words, "--ray-address", self.address] for words in commands]
        more = {
            "merges": lines,
            "address": self.address,
            "kills": [kill.job() for kill in kills],
        }
        result, answer = self.ask(["mergekit-lines"], folder, folder, STUCK, more)
        return result, answer["struck"]
