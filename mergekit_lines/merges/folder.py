"""``run_merge`` for our methods: checks, partial folder, mergekit's merge, report, card."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_lines._version import __version__
from mergekit_lines.checkpoint.headers import stem_of
from mergekit_lines.checkpoint.opened import OpenedModels, adapter_folder
from mergekit_lines.checkpoint.out import Out, model_folder, real_out
from mergekit_lines.checkpoint.partial import LAYOUT, Partial, partial_folder
from mergekit_lines.checkpoint.remote.downloads import HubModels, files_from_hub, hub_models
from mergekit_lines.checkpoint.remote.session import hub_session
from mergekit_lines.checkpoint.room import check_room, check_space
from mergekit_lines.checkpoint.writer import ShardLayout, ShardWriter, lay_out
from mergekit_lines.engine.engine import Engine, ending
from mergekit_lines.errors import LinesError, Problem, plain_failures, reason, tell, teller
from mergekit_lines.files import CARD, RECIPE, REPORT
from mergekit_lines.host.process import (
    end_at_once,
    ended_by_the_next_interrupt,
    ending_on_sigterm,
    one_thread,
    visible_logs,
)
from mergekit_lines.host.state import (
    ONE_AT_A_TIME,
    donor_as_it_is,
    fresh_caches,
    layout_as_planned,
    logged_failures,
)
from mergekit_lines.lines.summary import Summary
from mergekit_lines.merges.carrying import carried_files, carry, left_behind
from mergekit_lines.plan.inputs import check_models
from mergekit_lines.plan.opening import open_models
from mergekit_lines.plan.planned import MergeRun, planning
from mergekit_lines.plan.prepare import Prepared, prepare
from mergekit_lines.plan.sizes import Sizes
from mergekit_lines.plan.tokenizer import (
    check_tokenizers,
    donor_folders,
    lost_tokens,
    own_folder,
    vocabulary,
)
from mergekit_lines.recipe.checks import check_recipe
from mergekit_lines.recipe.models import carried, models_in_order
from mergekit_lines.recipe.options import effective_options
from mergekit_lines.report.card import card
from mergekit_lines.report.file import (
    describe,
    report,
    run_figures,
    to_json,
    versions,
)
from mergekit_lines.report.fingerprints import describe_inputs, describe_output

NO_OUT = Problem("OUT", "found an empty text, wanted a folder to make. Name one.")
PLACE = "Check the place; OUT was not made."
FULL = (
    "OUT {out}: the disk is full. Free some space and run the same command again; whole shards, "
    "if there are any, are kept in the partial folder beside it."
)
TRACE = "OUT was not made; -vv shows where."


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


@dataclass(frozen=True)
class Outcome:
    """The merged weights in the partial folder, and what the report tells of them."""

    shards: list[ShardLayout]
    summary: Summary
    facts: dict[str, Any]


@hub_session()
@ended_by_the_next_interrupt()
def run_lines_merge(
    run_merge: Callable[..., Any],
    config: MergeConfiguration,
    out_path: str,
    options: MergeOptions,
    text: str | None,
) -> None:
    """Merge as mergekit does, with our checks before and one rename at the end.

    The recipe is planned twice. The first plan is ours alone and reads indexes and headers: what
    does not fit is refused before a model is downloaded or an adapter merged. The second is made
    inside mergekit's own ``run_merge``, by the planner that stands there in its planner's place,
    from models that are open by then; its tasks write.

    Args:
        run_merge: mergekit's own, which does the merge itself.
        config: the recipe; ``merge_method`` is one of ours.
        out_path: the folder to make.
        options: mergekit's flags.
        text: the recipe's, where the command had one.

    Raises:
        LinesError: the recipe, a model, an option or the disk is at fault; nothing is left.
    """
    begun = time.monotonic()
    end_at_once()
    with plain_failures(PLACE, full=FULL.format(out=out_path), other=TRACE):
        request = _checked(run_merge, config, out_path, options, text)
    with (
        ONE_AT_A_TIME,
        one_thread(),
        visible_logs(),
        ending_on_sigterm(),
        plain_failures(PLACE, full=FULL.format(out=request.out.path), other=TRACE),
        partial_folder(request.out, request.say) as partial,
    ):
        prepared, downloads = _planned(request, partial.path)
        outcome = _merged(request, prepared, downloads, partial, begun)
        _write_texts(request, partial.path, outcome)
        partial.publish(outcome.shards)
    request.say(f"the merged model is in {out_path}")


def _checked(
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


def _planned(request: Request, partial: Path) -> tuple[Prepared, HubModels]:
    """Plan by indexes and headers alone, and see that the disk has room for what is to come."""
    config, options = request.config, request.effective
    with fresh_caches():
        prepared = prepare(config, options, request.run)
        if prepared.refusals:
            raise LinesError(prepared.refusals)
        downloads = hub_models(prepared.headers)
        if downloads:
            sizes = Sizes(prepared.planned, prepared.headers, config, options, None)
            whole = sum(path.stat().st_size for path in partial.glob("*.safetensors"))
            output = sum(sized.bytes for sized in sizes.tensors)
            check_room(downloads, max(0, output - whole), partial, options)
    for line in prepared.notes:
        request.say(line)
    return prepared, downloads


def _merged(
    request: Request, prepared: Prepared, downloads: HubModels, partial: Partial, begun: float
) -> Outcome:
    """Open the models, and let mergekit plan and merge into the partial folder's shards."""
    config, options = request.config, request.effective
    with fresh_caches(), ExitStack() as stack:
        LoaderCache().setup(options=options)
        stack.enter_context(files_from_hub(downloads))
        models = open_models(config, options, partial.path, stack)
        models.check_adapters([item.task.gather_tensors for item in prepared.planned])
        donor = carried(config)
        adapter = adapter_folder(donor) if donor.lora else None
        check_tokenizers(config, options, prepared.tokenizer, adapter)
        tokenizer = donor_folders(config, adapter)[0]
        companions = carried_files(config, request.options, tokenizer, request.say)
        rows = vocabulary(config, prepared.tokenizer)
        sizes = Sizes(prepared.planned, prepared.headers, config, options, rows)
        for line in (*lost_tokens(prepared.tokenizer), *sizes.notes):
            request.say(line)
        slots = [sized.slot for sized in sizes.tensors]
        stem = stem_of(own_folder(models_in_order(config)[0]))  # diffusers asks for its own
        shards = lay_out(slots, options.out_shard_size, stem)
        partial.begin(_identity(request, prepared, models, shards), shards)
        check_space(request.out.path, partial.path, shards)
        writer = ShardWriter(partial.path, shards, partial.vouch)
        engine = Engine(models, writer, options)
        stack.enter_context(ending(engine.workers, writer))
        summary = _run_merge(request, prepared, engine, partial, tokenizer)
        carry(partial.path, config, shards, tokenizer, companions)
        for line in left_behind(config, tokenizer):
            request.say(line)
        engine.finish()
        facts = {
            "dropped": {str(model): names for model, names in prepared.dropped.items()},
            "inputs": describe_inputs(models.models),
            "output": describe_output(shards),
            "flags": _flags(request, models),
            "run": run_figures(
                seconds=time.monotonic() - begun,
                bytes_read=models.bytes_read,
                bytes_written=writer.bytes_written,
                threads=engine.workers.threads,
                device=str(engine.device),
                resumed=bool(writer.done),
            ),
        }
        if models.copies:
            facts["lora_merge_dtype"] = options.lora_merge_dtype
    return Outcome(shards, summary, facts)


def _run_merge(
    request: Request, prepared: Prepared, engine: Engine, partial: Partial, donor: Path
) -> Summary:
    """Run mergekit's merge, whose planner is ours, and return what it planned."""
    summaries: list[Summary] = []

    def take(summary: Summary) -> None:
        summaries.append(summary)
        # That nothing is scaled by depth is told even under --quiet, where it should have been.
        say = request.say if summary.containers or not summary.by_depth else tell
        for line in describe(summary):
            say(line)

    run = replace(
        request.run,
        tokenizer=prepared.tokenizer,
        engine=engine,
        partial=partial,
        on_summary=take,
    )
    recipe = request.config.model_copy(deep=True)
    layout = layout_as_planned(prepared.arch_info)
    with planning(run), logged_failures(), donor_as_it_is(donor), layout:
        request.run_merge(recipe, str(partial.path), request.effective, request.recipe)
    if not summaries:
        raise LinesError("mergekit merged without our planner; nothing was kept.")
    return summaries[-1]


def _as_yaml(config: MergeConfiguration) -> str:
    try:
        return str(config.to_yaml())
    except ValueError as error:
        raise LinesError(
            f"the recipe: mergekit cannot write it as YAML ({reason(error)}), which it does where "
            f"a path holds a space or a quote. Give run_merge the recipe's text as config_source."
        ) from error


def _identity(
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


def _flags(request: Request, models: OpenedModels) -> list[str]:
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


def _write_texts(request: Request, partial: Path, outcome: Outcome) -> None:
    config = request.config
    content = {**report(outcome.summary, config.merge_method, request.recipe), **outcome.facts}
    texts = {REPORT: to_json(content)}
    if request.options.write_model_card:
        texts[CARD] = card(partial, config, content, request.name)
        texts[RECIPE] = request.recipe
    for file, text in texts.items():
        (partial / file).write_text(text, encoding="utf-8")
