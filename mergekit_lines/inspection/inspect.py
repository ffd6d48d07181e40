"""What a recipe will do, told without reading a weight: blocks, coefficients, bytes, problems."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.out import partial_path
from mergekit_lines.checkpoint.remote.downloads import files_from_hub, hub_models
from mergekit_lines.checkpoint.remote.session import hub_session
from mergekit_lines.checkpoint.room import check_room, check_space
from mergekit_lines.checkpoint.writer import lay_out
from mergekit_lines.errors import LinesError, Problem, reason
from mergekit_lines.host.names import ALONE
from mergekit_lines.host.process import shared_threads
from mergekit_lines.host.state import ONE_AT_A_TIME, fresh_caches
from mergekit_lines.inspection.blocks import (
    depths_and_coefficients,
    sampled_note,
    weight_notes,
    with_blocks,
    with_coefficients,
)
from mergekit_lines.inspection.deep import look
from mergekit_lines.inspection.findings import Inspection, Totals
from mergekit_lines.inspection.traffic import adapted_bytes, inputs
from mergekit_lines.inspection.troubles import troubles
from mergekit_lines.merges.carrying import carried_files, left_behind
from mergekit_lines.plan.inputs import check_models
from mergekit_lines.plan.memory import estimate, process_bytes
from mergekit_lines.plan.opening import open_models
from mergekit_lines.plan.planned import MergeRun
from mergekit_lines.plan.prepare import Prepared, prepare
from mergekit_lines.plan.sizes import Sizes, idle_workers
from mergekit_lines.plan.tokenizer import (
    check_tokenizers,
    differing_vocabularies,
    donor_folders,
    lost_tokens,
    vocabulary,
)
from mergekit_lines.recipe.checks import DTYPES, check_recipe
from mergekit_lines.recipe.models import models_in_order
from mergekit_lines.recipe.options import effective_options


@hub_session()
def inspect_recipe(
    config: MergeConfiguration,
    text: str | None,
    options: MergeOptions,
    out: Path | None = None,
    name: str | None = None,
    *,
    deep: bool = False,
    workers: int | None = None,
) -> Inspection:
    """Tell what a merge of this recipe would do; only configs, indexes and headers are read.

    Args:
        config: the recipe; ``merge_method`` is one of ours.
        text: the recipe's.
        options: mergekit's flags.
        out: where the merge would write, checked if it is given.
        name: of the document, in a file of several.
        deep: read the weights too, once, where nothing speaks against the merge.
        workers: among how many processes of one machine the merge would be shared.
    """
    process = process_bytes()
    inspection = Inspection(name, config.merge_method)
    remarks = _Remarks(check_recipe(config, out.absolute() if out else None, options, text))
    if models := check_models(config, options):
        return replace(inspection, problems=(*dict.fromkeys(remarks.problems + models),))
    if workers and not options.num_threads:
        options = options.model_copy(update={"num_threads": shared_threads(workers)})
    effective = effective_options(config, options, remarks.notes.append)
    run = MergeRun.of(config, options)
    sound = _with_known_dtypes(config)
    if effective.lora_merge_dtype not in DTYPES:
        effective = effective.model_copy(update={"lora_merge_dtype": None})
    with ONE_AT_A_TIME, fresh_caches():
        prepared = remarks.attempt(sound, effective, run)
        is_sound = prepared is not None
        if prepared is None:  # without its parameters the recipe may still show its blocks
            sound = _without_parameters(sound)
            prepared = remarks.attempt(sound, effective, run)
        else:
            remarks.add(prepared.refusals)
        if prepared is not None:
            rows = _with_tokenizer(config, effective, prepared, remarks)
            sizes = Sizes(prepared.planned, prepared.headers, sound, effective, rows)
            calibrated: set[str] = set()
            with remarks.refusals():
                if is_sound:
                    inspection, calibrated = with_coefficients(inspection, prepared, sizes)
            if not (inspection.containers or inspection.outside):
                inspection = with_blocks(inspection, sizes)
            inspection = replace(inspection, seed=prepared.seed)
            inspection = _with_totals(
                inspection, prepared, sizes, calibrated, effective, process, remarks.notes
            )
            if workers:
                inspection = _shared(inspection, sizes, workers, effective, remarks.notes)
            room = _room(prepared, sizes, effective, out)
            if out is None:
                remarks.notes += map(str, room)
            else:
                remarks.problems += room
            sampled = sampled_note(sizes) if is_sound else None
            remarks.notes += [*prepared.notes, *sizes.notes, *([sampled] if sampled else [])]
            remarks.notes += weight_notes(prepared.planned)
            if deep and not remarks.problems:
                with remarks.refusals():
                    inspection = _looked_at(inspection, config, effective, prepared)
    return replace(
        inspection,
        notes=tuple(dict.fromkeys(remarks.notes)),
        problems=tuple(dict.fromkeys(remarks.problems)),
    )


@dataclass
class _Remarks:
    """Problems and notes of a recipe, as they come up."""

    problems: list[Problem]
    notes: list[str] = field(default_factory=list)

    def add(self, later: Sequence[Problem]) -> None:
        """Add those that are no problems yet, and no mere consequence of them."""
        about = {name for problem in self.problems for name in problem.about}
        self.problems += [
            problem
            for problem in later
            if problem not in self.problems
            and not about.intersection(problem.about[:1])
            and not (problem.of_mergekit and self.problems)
        ]

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Add the problems for which the block is refused."""
        try:
            yield
        except LinesError as error:
            self.add(error.problems)

    def attempt(
        self, config: MergeConfiguration, options: MergeOptions, run: MergeRun
    ) -> Prepared | None:
        """Return what a merge prepares; None where it cannot, and why is added."""
        with self.refusals():
            try:
                return prepare(config, options, run)
            except LinesError:
                raise
            except Exception as error:  # noqa: BLE001 - what a library raises is one like another
                self.add([Problem("", f"the models cannot be inspected ({reason(error)}).")])
        return None


def _with_tokenizer(
    config: MergeConfiguration, options: MergeOptions, prepared: Prepared, remarks: _Remarks
) -> int | None:
    """Look at the tokenizer; return the rows of the output's embeddings, where it aligns them."""
    rows = None
    with remarks.refusals():
        check_tokenizers(config, options, prepared.tokenizer)
        rows = vocabulary(config, prepared.tokenizer)
        remarks.notes += lost_tokens(prepared.tokenizer)
        if all(Path(model.model.path).exists() for model in models_in_order(config)):
            donor = donor_folders(config)[0]
            remarks.notes += left_behind(config, donor)
            carried_files(config, options, donor, remarks.notes.append)
    return rows


def _room(
    prepared: Prepared, sizes: Sizes, options: MergeOptions, out: Path | None
) -> Sequence[Problem]:
    """Return what this machine's disks have no room for: downloads, and OUT where it is given."""
    partial, left = Path(), 0
    try:
        if out is not None:
            partial = partial_path(out.absolute().resolve())
            whole = sum(path.stat().st_size for path in partial.glob("*.safetensors"))
            left = max(0, sum(sized.bytes for sized in sizes.tensors) - whole)
        check_room(hub_models(prepared.headers), left, partial, options)
        if out is not None:
            slots = [sized.slot for sized in sizes.tensors]
            check_space(out, partial, lay_out(slots, options.out_shard_size))
    except LinesError as error:
        return error.problems
    except (OSError, RuntimeError):  # of a loop of links
        return ()  # a place that cannot be looked at is a problem of OUT's own check
    return ()


def _looked_at(
    inspection: Inspection, config: MergeConfiguration, options: MergeOptions, prepared: Prepared
) -> Inspection:
    """Read the weights once, after what is on the Hub was downloaded.

    Raises:
        LinesError: a model cannot be opened or read.
    """
    on_hub = hub_models(prepared.headers)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if on_hub:
            check_room(on_hub, 0, Path(folder), options)
        stack.enter_context(fresh_caches())
        stack.enter_context(files_from_hub(on_hub))
        LoaderCache().setup(options=options)
        opened = open_models(config, options, Path(folder), stack)
        alone = config.merge_method in ALONE
        depths, coefficients = depths_and_coefficients(prepared.planned, alone=alone)
        seen = look(prepared.planned, opened, depths, coefficients, options.num_threads)
        opened.check_unchanged()
        sentences = (*troubles(seen), *differing_vocabularies(config, options))
    return replace(inspection, deep=seen, troubles=sentences)


def _with_known_dtypes(config: MergeConfiguration) -> MergeConfiguration:
    result = config.model_copy(deep=True)
    for key in ("dtype", "out_dtype"):
        if getattr(result, key) not in DTYPES:
            setattr(result, key, None)
    return result


def _without_parameters(config: MergeConfiguration) -> MergeConfiguration:
    """Return the recipe as far as it says which models are merged, and where."""
    result = config.model_copy(deep=True)
    holders = [result, *(result.modules or {}).values()]
    for holder in list(holders):
        holders += [*(holder.models or []), *(holder.slices or [])]
        for output_slice in holder.slices or []:
            holders += output_slice.sources
    for holder in holders:
        holder.parameters = None
    result.parameters = {"alpha": 1.0, "beta": 0.0}
    return result


def _with_totals(
    inspection: Inspection,
    prepared: Prepared,
    sizes: Sizes,
    calibrated: set[str],
    options: MergeOptions,
    process: int | None,
    notes: list[str],
) -> Inspection:
    """Fill in what is read and written, and the memory and disk that it takes."""
    models = inputs(sizes.tensors, calibrated, prepared, options)
    output = sum(sized.bytes for sized in sizes.tensors)
    loaded = max(
        (adapted_bytes(model, prepared.headers[model], options) for model in prepared.copied),
        default=0,
    )
    try:
        memory = estimate(sizes, calibrated, process, options, loaded)
    except LinesError as error:
        memory = None
        notes.append(f"the memory cannot be told: {error.problems[0]}")
    totals = Totals(
        tensors=len(sizes.tensors),
        parameters=sum(sized.entries for sized in sizes.tensors),
        output=output,
        read=sum(model.read for model in models),
        download=sum(model.download for model in models),
        disk=output + sum(model.copy for model in models),
        memory=memory,
    )
    return replace(inspection, inputs=models, totals=totals)


def _shared(
    inspection: Inspection, sizes: Sizes, workers: int, options: MergeOptions, notes: list[str]
) -> Inspection:
    """Tell how many processes the merge is shared among, and whether all have something to do."""
    shards = lay_out([sized.slot for sized in sizes.tensors], options.out_shard_size)
    if note := idle_workers(shards, workers):
        notes.append(note)
    totals = inspection.totals
    if totals is None or totals.memory is None:
        return inspection
    memory = replace(totals.memory, workers=workers)
    return replace(inspection, totals=replace(totals, memory=memory))
