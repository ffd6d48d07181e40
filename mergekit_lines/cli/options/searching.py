"""What ``sweep``, ``soup`` and ``greedy`` have in common on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from mergekit_lines.cli.options.workers import worker_options
from mergekit_lines.errors import LinesError, tell

F = TypeVar("F", bound=Callable[..., Any])
SETTINGS = ("prompts", "batch_size", "limit", "seed", "max_new_tokens", "include_path")
MODEL = (
    "device",
    "max_memory",
    "memory_budget",
    "num_threads",
    "trust_remote_code",
    "copy_tokenizer",
    "quiet",
)


def memory_size(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    """Return a size such as 4GiB in bytes."""
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    from accelerate.utils import convert_file_size_to_int

    try:
        return int(convert_file_size_to_int(text))
    except ValueError:
        raise click.BadParameter(f"found {text!r}, wanted a size such as 4GiB") from None


def _limits(
    ctx: click.Context, param: click.Parameter, text: str | None
) -> dict[int | str, int] | None:
    if text is None:
        return None
    limits: dict[int | str, int] = {}
    for part in text.split(","):
        device, equals, size = part.strip().partition("=")
        if not equals:
            raise click.BadParameter(f"found {part!r}, wanted DEVICE=SIZE, e.g. 0=20GiB,cpu=16GiB")
        limits[int(device) if device.isdecimal() else device] = memory_size(ctx, param, size) or 0
    return limits


_OPTIONS = [
    click.option("--out", type=click.Path(path_type=Path), required=True, help="Results go here."),
    click.option(
        "--prompts",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="For rewards: one prompt per line, or JSON lines with a prompt each.",
    ),
    click.option(
        "--max-new-tokens", type=click.IntRange(min=1), help="For rewards.  [default: 32]"
    ),
    click.option("--batch-size", type=click.IntRange(min=1), help="Examples at once."),
    click.option("--limit", type=click.IntRange(min=1), help="Use the first N examples only."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the evaluators."),
    click.option(
        "--include-path",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="For lm_eval: a folder of your own task YAMLs.",
    ),
    click.option("--device", help="Hold the model on this device.  [default: cpu]"),
    click.option(
        "--max-memory",
        callback=_limits,
        metavar="DEVICE=SIZE,…",
        help="Instead of --device: limits such as 0=20GiB,cpu=16GiB; the rest goes to disk.",
    ),
    click.option(
        "--memory-budget",
        callback=memory_size,
        default="4GiB",
        show_default=True,
        help="Host memory for task vectors of wraps such as ties; the rest goes to disk.",
    ),
    click.option("--num-threads", type=click.IntRange(min=1), help="Threads that merge."),
    click.option(
        "--no-tokenizer",
        "copy_tokenizer",
        flag_value=False,
        default=None,
        help="For a base without one: evaluators get None.",
    ),
    click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the models."),
    click.option("--quiet", is_flag=True, help="No progress; the tables only."),
]


def search_options(command: F) -> F:
    """Add the options that every search has."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def shared_options(command: F) -> F:
    """Add the options of searches whose points several live models can measure."""
    return worker_options(search_options(command))


def live_models(options: dict[str, Any]) -> dict[str, Any]:
    """Return what makes a search's live models: in other processes where the options say so."""
    from mergekit_lines.cluster.trials import ray_meters

    return {"workers": ray_meters(options["workers"], options["ray_address"])}


def asked(options: dict[str, Any], *words: str) -> dict[str, Any]:
    """Return what a search takes of a command's options: these words, and what all searches do."""
    from mergekit_lines.evaluate import Settings

    model = {name: options[name] for name in MODEL if options[name] not in (None, False)}
    settings = Settings(**{name: options[name] for name in SETTINGS})
    return {**{word: options[word] for word in words}, "settings": settings, **model}


def end(failures: Sequence[str], out: Path) -> None:
    """Tell at the end of a search what could not be measured.

    Raises:
        LinesError: anything could not: the choice is one of fewer.
    """
    if not failures:
        return
    for failure in failures:
        tell(f"failed: {failure}")
    count = len(failures)
    raise LinesError(
        f"{out}: {count} measurement{'s' * (count > 1)} failed, as told above; the others are "
        f"kept. The same command tries {'them' if count > 1 else 'it'} again."
    )


def draw(function: Callable[[Any, Path], None], search: Any, path: Path) -> None:
    """Draw a figure, or say why there is none: the numbers are there all the same."""
    try:
        function(search, path)
    except LinesError as error:
        tell(f"no figure: {'; '.join(map(str, error.problems))}")
    else:
        tell(f"figure: {path}")
