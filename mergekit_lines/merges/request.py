"""What a merge was asked for, free of problems that need no weights, and what its bytes hang on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_lines._version import __version__
from mergekit_lines.checkpoint.opened import OpenedModels
from mergekit_lines.checkpoint.out import Out, model_folder, real_out
from mergekit_lines.checkpoint.state import LAYOUT
from mergekit_lines.checkpoint.writer import ShardLayout
from mergekit_lines.engine.walks import Crew
from mergekit_lines.errors import LinesError, Problem, reason, teller
from mergekit_lines.plan.inputs import check_models
from mergekit_lines.plan.planned import MergeRun
from mergekit_lines.plan.prepare import Prepared
from mergekit_lines.recipe.checks import check_recipe
from mergekit_lines.recipe.options import effective_options
from mergekit_lines.report.file import versions

NO_OUT = Problem("OUT", "found an empty text, wanted a folder to make. Name one.")
# From the partial folder, and what tells people a line, to those who share the work.
Cluster = Callable[[Path, Callable[[str], None]], AbstractContextManager[Crew]]


@dataclass(frozen=True)
class Request:
    """What ``run_merge`` was asked for, found free of problems that need no weights.

    Attributes:
        run_merge: mergekit's own, which does the merge itself.
        config: the recipe; mergekit gets copies of it, which it rewrites.
        recipe: its text.
        out: OUT.
        name: of the folder, as it was asked for.
        options: mergekit's flags as they were given.
        effective: the same as our methods use them.
        run: what recipe and flags give every planner.
        say: tells the user a line, unless ``--quiet`` forbids it.
    """

    run_merge: Callable[..., Any]
    config: MergeConfiguration
    recipe: str
    out: Out
    name: str
    options: MergeOptions
    effective: MergeOptions
    run: MergeRun
    say: Callable[[str], None]


def take_request(
    run_merge: Callable[..., Any],
    config: MergeConfiguration,
    out_path: str,
    options: MergeOptions,
    text: str | None,
) -> Request:
    """Take a call of ``run_merge``, refusing all that is wrong before a weight is read."""
    asked = Path(out_path).absolute()
    recipe = text or _as_yaml(config)
    problems = [] if out_path else [NO_OUT]
    problems += check_recipe(config, asked, options, text) + check_models(config, options)
    if problems:
        raise LinesError(problems)
    say = teller(quiet=options.quiet)
    return Request(
        run_merge,
        config.model_copy(deep=True),
        recipe,
        model_folder(real_out(asked)),
        asked.name,
        options,
        effective_options(config, options, say),
        MergeRun.of(config, options),
        say,
    )


def _as_yaml(config: MergeConfiguration) -> str:
    try:
        return str(config.to_yaml())
    except ValueError as error:
        raise LinesError(
            f"the recipe: mergekit cannot write it as YAML ({reason(error)}), which it does where "
            f"a path holds a space or a quote. Give run_merge the recipe's text as config_source."
        ) from error


def identity(
    request: Request, prepared: Prepared, models: OpenedModels, shards: Sequence[ShardLayout]
) -> dict[str, Any]:
    """Return what the bytes of the output hang on, by what people call it."""
    options = request.effective
    headers = b"".join(shard.header for shard in shards)
    return {
        "the recipe": repr(request.config),  # to_yaml fails for paths that are no plain identifiers
        "the seed": prepared.seed,
        "--out-shard-size": options.out_shard_size,
        "--lora-merge-dtype": options.lora_merge_dtype,
        "the device": torch.device(options.device or "cpu").type,
        "the versions of the packages": {"mergekit-lines": __version__, **versions()},
        "the tokenizers": prepared.tokenizer.digest() if prepared.tokenizer else None,
        LAYOUT: hashlib.sha256(headers).hexdigest(),
        **{f"model {name}": files for name, files in models.describe().items()},
    }


def flags_of(request: Request, models: OpenedModels) -> list[str]:
    """Return mergekit's flags that the output's bytes hang on, defaults left out."""
    options, effective = request.options, request.effective
    flags: list[str] = []
    if options.random_seed:  # 0 is what no flag means
        flags += ["--random-seed", str(options.random_seed)]
    if effective.out_shard_size != MergeOptions().out_shard_size:
        flags += ["--out-shard-size", str(effective.out_shard_size)]
    if models.copies and effective.lora_merge_dtype:
        flags += ["--lora-merge-dtype", effective.lora_merge_dtype]
    device = torch.device(effective.device or "cpu").type
    return flags if device == "cpu" else [*flags, "--device", device]
