"""Merges that are killed, filled up or lied to, and what may be left on the disk afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.io import LazyTensorLoader
from mergekit.scripts.multimerge import MODEL_CHECK_FILENAMES
from transformers import AutoConfig, AutoModelForCausalLM

from tests import models
from tests.e2e.runner import STUCK, ForkServer, Result

Hook = Sequence[Any]
# Calls that make an output durable or visible: at each of them a kill has to be harmless.
STEPS = ("fsync", "rename", "replace", "unlink")


@dataclass(frozen=True)
class Ending:
    """How a tortured merge ended."""

    returncode: int
    stderr: str
    messages: tuple[str, ...]
    signalled: bool
    """Whether the signal found the process alive."""

    def succeeded(self) -> Ending:
        """Return self where the exit status is 0; else raise with all that was printed."""
        assert self.returncode == 0, f"exit status {self.returncode}\n{self.stderr}"
        return self

    @property
    def refusal(self) -> str:
        """What stands behind ``Error:``, of a merge that ended in no other way."""
        assert self.returncode == 1, f"exit status {self.returncode}\n{self.stderr}"
        assert "Traceback" not in self.stderr, self.stderr
        texts = re.split(r"^Error: ", self.stderr, flags=re.MULTILINE)
        assert len(texts) == 2, self.stderr
        return texts[1]


class Torturer(ForkServer):
    """Forks ``mergekit-yaml`` and makes its life hard; see ``torture_child.py`` for the hooks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "log", script=str(Path(__file__).with_name("torture_child.py")))

    def merge(
        self,
        folder: Path,
        *flags: str,
        out: str = "out",
        hooks: Sequence[Hook] = (),
        kill: dict[str, Any] | None = None,
        timeout: float = STUCK,
        command: Sequence[str] = ("mergekit-yaml",),
    ) -> Ending:
        """Run ``mergekit-yaml recipe.yml OUT FLAGS`` in a folder.

        Args:
            folder: holds the recipe.
            flags: mergekit's.
            out: where the merge goes, relative to the folder.
            hooks: names of hooks and their arguments.
            kill: ``signals`` to send, ``seconds`` after so many ``writes`` to shards have begun.
            timeout: in seconds.
            command: what merges.
        """
        words = [*command, "recipe.yml", out, *flags]
        more = {"hooks": [list(hook) for hook in hooks], "kill": kill}
        result, answer = self.ask(words, folder, folder, timeout, more)
        return _ending(result, answer)


def _ending(result: Result, answer: dict[str, Any]) -> Ending:
    return Ending(
        answer["returncode"],
        result.stderr,
        result.messages,
        answer["signalled"],
    )


def partial_of(out: Path) -> Path:
    """Return the folder in which a merge to ``out`` is written."""
    return out.with_name(f".{out.name}.partial")


def output_digest(out: Path) -> dict[str, str]:
    """Return the digests of all output files; of the report without what a run took."""
    found = models.digest(out)
    report = json.loads((out / "lines_report.json").read_text(encoding="utf-8"))
    report.pop("run", None)
    return {**found, "lines_report.json": json.dumps(report, sort_keys=True)}


def check_left(out: Path, whole: models.Tensors) -> None:
    """Assert that what an ended merge left loads nowhere, unless every tensor is right."""
    for place in (out, partial_of(out)):
        if not place.exists():
            continue
        loaded = [_by_transformers(place), _by_mergekit(place)]
        for found in loaded:
            assert found is None or same(found, whole), f"{place} loads, and is not whole"
        if place == out or done_for_multi(place):
            assert None not in loaded, f"{place} is taken for a model that is done, and is none"


def done_for_multi(place: Path) -> bool:
    """Tell whether mergekit-multi would skip a merge to this folder (``--lazy``)."""
    return (place / "config.json").exists() and any(
        (place / name).exists() for name in MODEL_CHECK_FILENAMES
    )


def same(found: models.Tensors, whole: models.Tensors) -> bool:
    """Tell whether two sets of tensors are equal, bit for bit."""
    return found.keys() == whole.keys() and all(
        tensor.dtype == whole[name].dtype and torch.equal(tensor, whole[name])
        for name, tensor in found.items()
    )


def _by_transformers(place: Path) -> models.Tensors | None:
    try:
        return AutoModelForCausalLM.from_pretrained(place).state_dict()
    except Exception:
        return None


def _by_mergekit(place: Path) -> models.Tensors | None:
    try:
        loader = LazyTensorLoader.from_disk(str(place))
        AutoConfig.from_pretrained(place)
    except Exception:
        return None
    return {name: loader.get_tensor(name) for name in loader.index.tensor_paths}
