"""``run_merge`` for our methods: checks, partial folder, mergekit's merge, report, card."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.headers import stem_of
from mergekit_lines.checkpoint.opened import adapter_folder
from mergekit_lines.checkpoint.partial import Partial, partial_folder
from mergekit_lines.checkpoint.remote.downloads import HubModels, files_from_hub, hub_models
from mergekit_lines.checkpoint.remote.session import hub_session
from mergekit_lines.checkpoint.room import check_room, check_space
from mergekit_lines.checkpoint.writer import ShardLayout, ShardWriter, lay_out
from mergekit_lines.engine.engine import Engine, ending
from mergekit_lines.engine.walks import Crew
from mergekit_lines.errors import LinesError, plain_failures, tell
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
from mergekit_lines.merges.request import Cluster, Request, flags_of, identity, take_request
from mergekit_lines.plan.opening import open_models
from mergekit_lines.plan.planned import planning
from mergekit_lines.plan.prepare import Prepared, prepare
from mergekit_lines.plan.sizes import Sizes
from mergekit_lines.plan.tokenizer import (
    check_tokenizers,
    donor_folders,
    lost_tokens,
    own_folder,
    vocabulary,
)
from mergekit_lines.recipe.models import carried, models_in_order
from mergekit_lines.report.card import card
from mergekit_lines.report.file import (
    describe,
    report,
    run_figures,
    to_json,
)
from mergekit_lines.report.fingerprints import describe_inputs, describe_output

PLACE = "Check the place; OUT was not made."
FULL = (
    "OUT {out}: the disk is full. Free some space and run the same command again; whole shards, "
    "if there are any, are kept in the partial folder beside it."
)
TRACE = "OUT was not made; -vv shows where."


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
    cluster: Cluster | None = None,
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
        cluster: other processes among which the work is shared; their bytes are the same.

    Raises:
        LinesError: the recipe, a model, an option or the disk is at fault; nothing is left.
    """
    begun = time.monotonic()
    end_at_once()
    with plain_failures(PLACE, full=FULL.format(out=out_path), other=TRACE):
        request = take_request(run_merge, config, out_path, options, text)
    with (
        ONE_AT_A_TIME,
        one_thread(),
        visible_logs(),
        ending_on_sigterm(),
        plain_failures(PLACE, full=FULL.format(out=request.out.path), other=TRACE),
        partial_folder(request.out, request.say) as partial,
    ):
        prepared, downloads = _planned(request, partial.path)
        with cluster(partial.path, request.say) if cluster else nullcontext() as crew:
            outcome = _merged(request, prepared, downloads, partial, begun, crew)
        _write_texts(request, partial.path, outcome)
        partial.publish(outcome.shards)
    request.say(f"the merged model is in {out_path}")


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
    request: Request,
    prepared: Prepared,
    downloads: HubModels,
    partial: Partial,
    begun: float,
    crew: Crew | None,
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
        partial.begin(identity(request, prepared, models, shards), shards)
        check_space(request.out.path, partial.path, shards)
        writer = ShardWriter(partial.path, shards, partial.vouch)
        engine = Engine(models, writer, options)
        stack.enter_context(ending(engine.workers, writer))
        if crew is not None:
            crew.begin(models, partial, shards, options)
        summary = _run_merge(request, prepared, engine, partial, tokenizer, crew)
        carry(partial.path, config, shards, tokenizer, companions)
        for line in left_behind(config, tokenizer):
            request.say(line)
        engine.finish()
        facts = {
            "dropped": {str(model): names for model, names in prepared.dropped.items()},
            "inputs": describe_inputs(models.models),
            "output": describe_output(shards),
            "flags": flags_of(request, models),
            "run": run_figures(
                seconds=time.monotonic() - begun,
                bytes_read=models.bytes_read + (crew.bytes_read if crew else 0),
                bytes_written=writer.bytes_written + (crew.bytes_written if crew else 0),
                threads=crew.threads if crew else engine.workers.threads,
                device=str(engine.device),
                resumed=bool(writer.done),
            ),
        }
        if models.copies:
            facts["lora_merge_dtype"] = options.lora_merge_dtype
    return Outcome(shards, summary, facts)


def _run_merge(
    request: Request,
    prepared: Prepared,
    engine: Engine,
    partial: Partial,
    donor: Path,
    crew: Crew | None,
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
        remote=crew,
        partial=partial,
        on_summary=take,
    )
    recipe = request.config.model_copy(deep=True)
    layout = layout_as_planned(prepared.arch_info)
    effective = request.effective
    if crew is not None:  # it has a bar of its own
        effective = effective.model_copy(update={"quiet": True})
    with planning(run), logged_failures(), donor_as_it_is(donor), layout:
        request.run_merge(recipe, str(partial.path), effective, request.recipe)
    if not summaries:
        raise LinesError("mergekit merged without our planner; nothing was kept.")
    return summaries[-1]


def _write_texts(request: Request, partial: Path, outcome: Outcome) -> None:
    config = request.config
    content = {**report(outcome.summary, config.merge_method, request.recipe), **outcome.facts}
    texts = {REPORT: to_json(content)}
    if request.options.write_model_card:
        texts[CARD] = card(partial, config, content, request.name)
        texts[RECIPE] = request.recipe
    for file, text in texts.items():
        (partial / file).write_text(text, encoding="utf-8")
