"""mergekit's own flags, for commands that merge or say what a merge would do.

They stand here in full: mergekit, which makes its own from a model of pydantic's, takes seconds to
import, and ``--help`` may not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

# Those that are on where nothing is said.
ON = ("copy-tokenizer", "safe-serialization", "write-model-card")
# By what a merge reads, writes, needs or refuses; the other flags change nothing of these.
PLANNED = {
    "allow-crimes": "Merge models of different classes, where names and shapes fit.",
    "unsafe-truncate-embeddings": "Refused: align vocabularies in the recipe.",
    "transformers-cache": "Keep downloads in this folder.",
    "lora-merge-cache": "Keep copies of BASE+ADAPTER here, of adapters that only peft merges.",
    "lora-merge-dtype": "Merge such adapters in this dtype.",
    "cuda": "Compute on the GPU.",
    "device": "Compute on this device.",
    "out-shard-size": "Most bytes of a file of OUT: 500M, 5B.",
    "copy-tokenizer": "Give OUT the tokenizer of the base.",
    "clone-tensors": "Without effect: nothing is to be cloned.",
    "trust-remote-code": "Run code that comes with the models.",
    "random-seed": "Seed of methods that draw at random.",
    "lazy-unpickle": "Read pickled models lazily.",
    "safe-serialization": "Write safetensors; turned off it is refused.",
    "num-threads": "Threads that merge.",
    "gpu-rich": "Compute on the GPU, as mergekit's shorthand has it.",
    "async-write": "Without effect: nothing is to be waited for.",
}
FLAGS = {
    **PLANNED,
    "low-cpu-memory": "Without effect: tensors go to the device in pieces.",
    "write-model-card": "Write README.md and the recipe beside the weights.",
    "verbosity": "Say more; -vv shows where an error arose.",
    "quiet": "Say nothing but errors.",
    "read-to-gpu": "Without effect: tensors go to the device in pieces.",
    "multi-gpu": "One worker for each GPU of this machine (needs the extra [ray]).",
    "write-threads": "Without effect: writing waits for nothing.",
}
_VALUES: dict[str, Any] = {
    "transformers-cache": str,
    "lora-merge-cache": str,
    "lora-merge-dtype": str,
    "device": str,
    "out-shard-size": str,
    "random-seed": int,
    "num-threads": click.IntRange(min=1),
    "write-threads": click.IntRange(min=1),
}


def shard_size(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    """Return the bytes of a size as mergekit writes it: 500M, 5B."""
    if text is None:
        return None
    from mergekit.common import parse_kmb

    try:
        return int(parse_kmb(text))
    except (ValueError, IndexError):
        raise click.BadParameter(f"found {text!r}, wanted a size such as 500M or 5B") from None


def merge_flags(names: Iterable[str], meaning: str | None = None) -> Callable[[F], F]:
    """Return what adds mergekit's flags to a command.

    Args:
        names: keys of :data:`FLAGS`.
        meaning: the help of each of them, in place of its own.
    """

    def add(command: F) -> F:
        for name in reversed(list(names)):
            command = _option(name, meaning or FLAGS[name])(command)
        return command

    return add


def _option(name: str, meaning: str) -> Callable[[F], F]:
    if name == "verbosity":
        return click.option("-v", name, count=True, help=meaning)
    if name == "gpu-rich":
        return click.option(f"--{name}", is_flag=True, help=meaning)
    if name not in _VALUES:
        words = f"--{name}/--no-{name}"
        return click.option(words, default=name in ON, show_default=True, help=meaning)
    short = ("-j",) if name == "num-threads" else ()
    read = shard_size if name == "out-shard-size" else None
    return click.option(f"--{name}", *short, type=_VALUES[name], callback=read, help=meaning)


def with_values(flags: dict[str, Any]) -> dict[str, Any]:
    """Return those of a command's flags that have a value, by mergekit's names."""
    return {name: value for name, value in flags.items() if value is not None}
