"""``run_merge`` for our methods: preflight, partial folder, mergekit's merge, report, card."""

from __future__ import annotations

import errno
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_lines._version import __version__
from mergekit_lines.checkpoint.opened import OpenedModels
from mergekit_lines.checkpoint.partial import LAYOUT, partial_folder, real_out
from mergekit_lines.checkpoint.remote.downloads import HubModels, files_from_hub, hub_models
from mergekit_lines.checkpoint.remote.session import hub_session
from mergekit_lines.checkpoint.room import check_room, check_space
from mergekit_lines.checkpoint.writer import ShardLayout, ShardWriter, lay_out
from mergekit_lines.engine.engine import Engine
from mergekit_lines.errors import LinesError, Problem, reason, tell, visible
from mergekit_lines.files import CARD, RECIPE, REPORT
from mergekit_lines.host.process import end_at_once, ending_on_sigterm, one_thread
from mergekit_lines.host.state import (
    ONE_AT_A_TIME,
    donor_as_it_is,
    fresh_caches,
    layout_as_planned,
    logged_failures,
)
from mergekit_lines.lines.summary import Summary
from mergekit_lines.plan.inputs import check_models
from mergekit_lines.plan.opening import open_models
from mergekit_lines.plan.prepare import Prepared, prepare
from mergekit_lines.plan.run import MergeRun, planning
from mergekit_lines.plan.sizes import Sizes
from mergekit_lines.plan.tokenizer import check_tokenizers, vocabulary
from mergekit_lines.recipe.checks import check_recipe
from mergekit_lines.recipe.models import models_in_order
from mergekit_lines.recipe.options import effective_options
from mergekit_lines.report.card import card
from mergekit_lines.report.file import describe, report, run_figures, to_json, versions
from mergekit_lines.report.fingerprints import describe_inputs, describe_output

LOG = logging.getLogger(__name__)
NO_OUT = Problem("OUT", "found an empty text, wanted a folder to make. Name one.")


@hub_session()
def run_lines_merge(
    run_merge: Callable[..., Any],
    config: MergeConfiguration,
    out_path: str,
    options: MergeOptions,
    source: str | None,
) -> None:
    """Merge as mergekit does, with our checks before and one rename at the end.

    Args:
        run_merge: mergekit's own, which does the merge itself.
        config: the recipe; ``merge_method`` is one of ours.
        out_path: the folder to make.
        options: mergekit's flags.
        source: the recipe's text, where the command had one.

    Raises:
        LinesError: the recipe, a model, an option or the disk is at fault; nothing is left.
    """
    begun = time.monotonic()
    end_at_once()
    given = Path(out_path).absolute()
    out = real_out(given)
    recipe = source or _as_yaml(config)
    original = config.model_copy(deep=True)
    say = _silent if options.quiet else tell
    problems = [] if out_path else [NO_OUT]
    problems += check_recipe(config, given, options, source) + check_models(config, options)
    if problems:
        raise LinesError(problems)
    summaries: list[Summary] = []

    def take(summary: Summary) -> None:
        summaries.append(summary)
        # That nothing is scaled by depth is told even under --quiet.
        for line in describe(summary):
            (say if summary.containers else tell)(line)

    run = MergeRun.of(config, options)
    with_card = options.write_model_card
    effective = effective_options(config, options, say)
    with (
        ONE_AT_A_TIME,
        one_thread(),
        ending_on_sigterm(),
        plain_failures(out),
        partial_folder(out, say) as partial,
    ):
        with fresh_caches():
            prepared = prepare(original, effective, run)
            on_hub = _with_room(prepared, original, effective, partial.path)
        for line in prepared.notes:
            say(line)
        with fresh_caches(), ExitStack() as stack:
            LoaderCache().setup(options=effective)
            stack.enter_context(files_from_hub(on_hub))
            models = open_models(original, effective, partial.path, stack)
            models.check_adapters([item.task.gather_tensors for item in prepared.planned])
            check_tokenizers(original, effective, prepared.tokenizer)
            sizes = Sizes(
                prepared.planned,
                prepared.headers,
                original,
                effective,
                vocabulary(original, prepared.tokenizer),
            )
            shards = lay_out([sized.slot for sized in sizes.tensors], effective.out_shard_size)
            partial.begin(_identity(original, effective, prepared, models, shards), shards)
            check_space(out, partial.path, shards)
            engine = Engine(models, writer := ShardWriter(partial.path, shards), effective)
            run = replace(
                run,
                tokenizer=prepared.tokenizer,
                engine=engine,
                partial=partial,
                on_summary=take,
            )
            stack.push(engine.leave)
            donor = models_in_order(original)[0]
            # A copy: mergekit rewrites the recipe, and the caller may use it again.
            layout = layout_as_planned(prepared.arch_info)
            with planning(run), logged_failures(), donor_as_it_is(donor), layout:
                run_merge(config.model_copy(deep=True), str(partial.path), effective, recipe)
            engine.finish()
            facts = {
                "dropped": {str(model): names for model, names in prepared.dropped.items()},
                "inputs": describe_inputs(models.models),
                "output": describe_output(shards),
                "flags": _flags(options, effective, models),
                "run": run_figures(
                    seconds=time.monotonic() - begun,
                    bytes_read=models.bytes_read,
                    bytes_written=writer.bytes_written,
                    threads=engine.workers.threads,
                    device=str(engine.device),
                    resumed=bool(writer.done),
                ),
            }
            if any(found.copied_from for found in models.models.values()):
                facts["lora_merge_dtype"] = effective.lora_merge_dtype
        name = given.name if with_card else None
        _write_texts(partial.path, original, summaries, recipe, name, facts)
        partial.publish(shards)
    say(f"the merged model is in {out_path}")


def _as_yaml(config: MergeConfiguration) -> str:
    try:
        return str(config.to_yaml())
    except ValueError as error:
        raise LinesError(
            f"the recipe: mergekit cannot write it as YAML ({reason(error)}), which it does where "
            f"a path holds a space or a quote. Give run_merge the recipe's text as config_source."
        ) from error


def _silent(text: str) -> None:
    LOG.info(visible(text))


@contextmanager
def plain_failures(out: Path) -> Iterator[None]:
    """Turn failures of disk and files into one sentence."""
    try:
        yield
    except (KeyboardInterrupt, click.ClickException):
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise LinesError(
                f"OUT {out}: the disk is full. Free some space and run the same command again; "
                f"whole shards, if there are any, are kept in the partial folder beside it."
            ) from error
        where = f" ({error.filename})" if error.filename else ""
        raise LinesError(
            f"{error.strerror or reason(error)}{where}. Check the place; OUT was not made."
        ) from error
    except Exception as error:
        LOG.debug("the merge failed", exc_info=error)
        raise LinesError(
            f"the merge failed ({reason(error)}). OUT was not made; mergekit-yaml -vv shows where."
        ) from error


def _identity(
    config: MergeConfiguration,
    options: MergeOptions,
    prepared: Prepared,
    models: OpenedModels,
    shards: Sequence[ShardLayout],
) -> dict[str, Any]:
    """Return what the bytes of the output hang on, by what people call it."""
    headers = b"".join(shard.header for shard in shards)
    return {
        "the recipe": repr(config),  # to_yaml fails for paths that are no plain identifiers
        "the seed": prepared.seed,
        "--out-shard-size": options.out_shard_size,
        "--lora-merge-dtype": options.lora_merge_dtype,
        "the device": torch.device(options.device or "cpu").type,
        "the versions of the packages": {"mergekit-lines": __version__, **versions()},
        "the tokenizers": prepared.tokenizer.digest() if prepared.tokenizer else None,
        LAYOUT: hashlib.sha256(headers).hexdigest(),
        **{f"model {name}": found for name, found in models.describe().items()},
    }


def _flags(options: MergeOptions, effective: MergeOptions, models: OpenedModels) -> list[str]:
    """Return the flags of mergekit-yaml that the output's bytes hang on, defaults left out."""
    flags: list[str] = []
    if options.random_seed:  # 0 is what no flag means
        flags += ["--random-seed", str(options.random_seed)]
    if effective.out_shard_size != MergeOptions().out_shard_size:
        flags += ["--out-shard-size", str(effective.out_shard_size)]
    copied = any(found.copied_from for found in models.models.values())
    if copied and effective.lora_merge_dtype:
        flags += ["--lora-merge-dtype", effective.lora_merge_dtype]
    device = torch.device(effective.device or "cpu").type
    return flags if device == "cpu" else [*flags, "--device", device]


def _with_room(
    prepared: Prepared, config: MergeConfiguration, options: MergeOptions, partial: Path
) -> HubModels:
    """Return what is on the Hub, when there is room for it and for the output."""
    on_hub = hub_models(prepared.headers)
    if on_hub:
        sizes = Sizes(prepared.planned, prepared.headers, config, options, None)
        whole = sum(path.stat().st_size for path in partial.glob("*.safetensors"))
        output = sum(sized.bytes for sized in sizes.tensors)
        check_room(on_hub, max(0, output - whole), partial, options)
    return on_hub


def _write_texts(
    partial: Path,
    config: MergeConfiguration,
    summaries: Sequence[Summary],
    recipe: str,
    card_name: str | None,
    facts: dict[str, Any],
) -> None:
    if not summaries:
        raise LinesError("mergekit merged without our planner; nothing was kept.")
    content = {**report(summaries[-1], config.merge_method, recipe), **facts}
    texts = {REPORT: to_json(content)}
    if card_name is not None:
        texts[CARD] = card(partial, config, content, card_name)
        texts[RECIPE] = recipe
    for file, text in texts.items():
        (partial / file).write_text(text, encoding="utf-8")
