"""LiNeS on one safetensors file without a config (timm, open_clip), tensor by tensor.

The same words, sources, pieces, shards and partial folder as ``lines_postprocess`` in a recipe;
what is not there is mergekit, which reads only folders with a config.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.common import dtype_from_name
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from tqdm import tqdm

from mergekit_lines._version import __version__
from mergekit_lines.checkpoint.headers import (
    BUFFERS,
    FLOATS,
    TensorHeader,
    prefixed_names,
    read_shard,
)
from mergekit_lines.checkpoint.opened import describe_file
from mergekit_lines.checkpoint.out import single_file
from mergekit_lines.checkpoint.partial import Partial, partial_folder
from mergekit_lines.checkpoint.room import check_space
from mergekit_lines.checkpoint.sources import DTYPES, Shard
from mergekit_lines.checkpoint.state import LAYOUT
from mergekit_lines.checkpoint.writer import (
    NAMES,
    ShardLayout,
    ShardWriter,
    Slot,
    TensorSink,
    shard_layout,
)
from mergekit_lines.engine.engine import DEVICE_THREADS, ending
from mergekit_lines.engine.jobs import Job
from mergekit_lines.engine.pieces import TensorPieces, merge_tensor
from mergekit_lines.engine.workers import Workers
from mergekit_lines.errors import LinesError, plain_failures, some, tell, teller
from mergekit_lines.files import REPORT
from mergekit_lines.host.process import end_at_once, ending_on_sigterm, one_thread
from mergekit_lines.kernels.compiled.loading import library
from mergekit_lines.lines.depth import natural_key
from mergekit_lines.lines.outside import checked_depths
from mergekit_lines.lines.placed import Placed, ScheduleWords
from mergekit_lines.lines.summary import Summary, summarise
from mergekit_lines.methods.registry import postprocess_method
from mergekit_lines.methods.words import POSTPROCESS_WORDS
from mergekit_lines.recipe.checks import check_recipe
from mergekit_lines.report.file import describe, report, to_json, versions

# safetensors lays the widest types first, so that each tensor is aligned; then by name.
ORDER = (
    *("U64", "I64", "F64", "F32", "U32", "I32"),
    *("BF16", "F16", "U16", "I16", "I8", "U8", "BOOL"),
)
PLACE = "Check the place; OUT was not made."
FULL = "OUT {out}: the disk is full. Free some space, and run the same command again."
OTHER = "OUT was not made."


def edit_file(
    model: Path,
    base: Path,
    out: Path,
    config: MergeConfiguration,
    options: MergeOptions,
    recipe: str,
) -> None:
    """Write θ_0 + λ(ℓ)·(θ − θ_0) for every tensor of ``model``, with its metadata.

    Args:
        model: θ, one safetensors file.
        base: θ_0, one safetensors file with the same names and shapes.
        out: the safetensors file to make; ``NAME.lines_report.json`` comes beside it.
        config: the recipe of the edit, ``merge_method: lines_postprocess``.
        options: mergekit's; ``device``, ``num_threads`` and ``quiet`` count here.
        recipe: the recipe's text, for the report.

    Raises:
        LinesError: words, files or the disk are at fault; nothing is left.
    """
    end_at_once()
    if model.samefile(base):
        raise LinesError(
            f"{base}: found the same file for MODEL and --base, wanted what MODEL was fine-tuned "
            f"from. Check the paths."
        )
    place = single_file(out.absolute(), f"{out.stem}.{REPORT}")
    problems = place.problems() or check_recipe(config, None, options, recipe)
    if problems:
        raise LinesError(problems)
    say = teller(quiet=options.quiet)
    with ExitStack() as stack:
        headers = _headers(model, base)
        coefficients, summary = _plan(headers[model], _values(config))
        for line in describe(summary):
            # That nothing is scaled by depth is told even under --quiet.
            (say if summary.containers else tell)(line)
        stack.enter_context(one_thread())
        stack.enter_context(ending_on_sigterm())
        stack.enter_context(plain_failures(PLACE, full=FULL.format(out=place.path), other=OTHER))
        edit = _Edit(config, coefficients, options, _opened(model, stack), _opened(base, stack))
        layout = shard_layout(place.path.name, edit.slots(headers), edit.model.metadata)
        partial = stack.enter_context(partial_folder(place, say))
        partial.begin(_identity(config, options, edit, layout), [layout])
        check_space(place.path, partial.path, [layout])
        _write(edit, partial, layout, quiet=options.quiet)
        text = to_json(report(summary, config.merge_method, recipe))
        (partial.path / place.files[1]).write_text(text, encoding="utf-8")
        partial.publish_file(layout)
    say(f"the edited model is {place.path}")


# --- what is to be done --------------------------------------------------------------------


def _values(config: MergeConfiguration) -> dict[str, Any]:
    """Return every word's value; the recipe's checks have passed."""
    parameters = config.parameters or {}
    return {w.name: w.validate(parameters.get(w.name, w.default)) for w in POSTPROCESS_WORDS}


def _plan(
    headers: Mapping[str, TensorHeader], values: Mapping[str, Any]
) -> tuple[dict[str, float], Summary]:
    """Return λ of every tensor, and the summary for people and for the report."""
    sizes = {name: math.prod(header.shape) for name, header in headers.items()}
    depths = checked_depths(sizes, values["blocks"], values["num_blocks"])
    words = ScheduleWords.of(values)
    placed = [Placed(name, depths[name], words) for name in sorted(sizes, key=natural_key)]
    coefficients = {item.name: item.coefficient() for item in placed}
    return coefficients, summarise(placed, coefficients)


@dataclass(frozen=True)
class _Edit:
    """The two files, and what becomes of a tensor of both."""

    config: MergeConfiguration
    coefficients: Mapping[str, float]
    options: MergeOptions
    model: Shard
    base: Shard

    @property
    def device(self) -> torch.device:
        """Where the arithmetic is done."""
        return torch.device(self.options.device or "cpu")

    def workers(self) -> Workers:
        """Return the threads that share a tensor's pieces."""
        on_cpu = self.device.type == "cpu"
        return Workers(self.options.num_threads if on_cpu else DEVICE_THREADS)

    def cast(self) -> torch.dtype | None:
        """Return the dtype to which inputs are rounded first, where there is one."""
        dtype: torch.dtype | None = dtype_from_name(self.config.dtype)
        return dtype

    def slots(self, headers: Mapping[Path, Mapping[str, TensorHeader]]) -> list[Slot]:
        """Return the output's tensors in the order of the file."""
        tuned, base = (headers[shard.path] for shard in (self.model, self.base))
        dtype = dtype_from_name(self.config.out_dtype) or self.cast()
        slots = []
        for name, header in tuned.items():
            stored = DTYPES[header.dtype]
            if header.dtype in FLOATS:
                stored = dtype or torch.promote_types(DTYPES[base[name].dtype], stored)
            slots.append(Slot(name, header.shape, stored))
        return sorted(slots, key=lambda slot: (ORDER.index(NAMES[slot.dtype]), slot.name))

    def write(self, slot: Slot, sink: TensorSink, workers: Workers) -> None:
        """Write one tensor of the output into its place; what is no float is copied.

        Raises:
            LinesError: integers differ, or an input or the result is not finite.
        """
        base, tuned = (shard.tensor(slot.name) for shard in (self.base, self.model))
        if not tuned.dtype.is_floating_point:
            values = tuned.tensor()
            if not torch.equal(base.tensor(), values):
                raise LinesError(
                    f"tensor {slot.name}: found {tuned.dtype} that differs between "
                    f"{self.model.path} and {self.base.path}, wanted the same integers in both or "
                    f"floating-point weights."
                )
            sink.write(0, values.reshape(-1))
        elif 0 not in slot.shape:
            method, models = postprocess_method(), [self.base.path, self.model.path]
            merge = method.kernel({}, models[1:])
            if merge is None:
                raise ValueError("lines_postprocess has a kernel for one model")
            job = Job(
                name=slot.name,
                models=models,
                wrap=method.wrapped.spec.name,
                merge=merge,
                coefficient=self.coefficients[slot.name],
                seed=0,
                allow_nonfinite=bool((self.config.parameters or {}).get("allow_nonfinite")),
            )
            pieces = TensorPieces(base, [tuned], self.cast(), self.device, workers, merge)
            merge_tensor(job, pieces, slot.dtype, sink)


def _write(edit: _Edit, partial: Partial, layout: ShardLayout, *, quiet: bool) -> None:
    """Fill the one shard, and see that the inputs are still what they were."""
    writer, workers = ShardWriter(partial.path, [layout], partial.vouch), edit.workers()
    if edit.device.type == "cpu":
        entries = sum(math.prod(slot.shape) for slot in layout.slots.values())
        workers.library = library(entries, teller(quiet=quiet))
    with ending(workers, writer):
        for slot in tqdm(layout.slots.values(), disable=quiet or None):
            if writer.wants(slot.name):
                edit.write(slot, writer.sink(slot.name), workers)
                writer.finished(slot.name)
    for shard in (edit.model, edit.base):
        shard.check_unchanged()


def _identity(
    config: MergeConfiguration, options: MergeOptions, edit: _Edit, layout: ShardLayout
) -> dict[str, Any]:
    """Return what the bytes of the output hang on, by what people call it."""
    return {
        "the recipe": repr(config),
        "the device": torch.device(options.device or "cpu").type,
        "the versions of the packages": {"mergekit-lines": __version__, **versions()},
        LAYOUT: hashlib.sha256(layout.header).hexdigest(),
        **{f"model {s.path}": describe_file(s.path, s) for s in (edit.model, edit.base)},
    }


# --- the files -----------------------------------------------------------------------------


def _opened(file: Path, stack: ExitStack) -> Shard:
    shard = Shard(file)
    stack.callback(shard.close)
    return shard


def _headers(model: Path, base: Path) -> dict[Path, dict[str, TensorHeader]]:
    """Return the headers of both files.

    Raises:
        LinesError: a file is not whole, or the two do not fit together.
    """
    problems: list[str] = []
    headers = {file: read_shard(file.parent, file.name, problems) for file in (model, base)}
    problems = problems or list(_check_headers(headers))
    if problems:
        raise LinesError(problems)
    return headers


def _check_headers(headers: Mapping[Path, Mapping[str, TensorHeader]]) -> Iterator[str]:
    (model, tuned), (base, pretrained) = headers.items()
    for one, other in ((model, base), (base, model)):
        absent = [name for name in headers[one] if name not in headers[other]]
        if absent and (wrapped := prefixed_names(headers[other])):
            yield f"{other}: {wrapped}"
        elif absent and not prefixed_names(headers[one]):
            yield (
                f"{other}: lacks {len(absent)} tensors that {one} has ({some(absent)}), wanted the "
                f"same names in both. Use the base that the model was fine-tuned from."
            )
    for file, tensors in headers.items():
        odd = [name for name, header in tensors.items() if header.dtype not in FLOATS | BUFFERS]
        if odd:
            dtypes = ", ".join(sorted({tensors[name].dtype for name in odd}))
            yield (
                f"{file}: holds tensors of dtype {dtypes} ({some(odd)}), wanted fp16, bf16, fp32 "
                f"or fp64. Convert the model first."
            )
    both = [name for name in tuned if name in pretrained]
    for name in both:
        if tuned[name].shape != pretrained[name].shape:
            yield (
                f"tensor {name}: the shapes of {base} and {model} differ "
                f"({pretrained[name].shape} and {tuned[name].shape}), wanted the same. Use the "
                f"base that the model was fine-tuned from."
            )
        kinds = {h.dtype if h.dtype in BUFFERS else "float" for h in _pair(headers, name)}
        if len(kinds) > 1:
            yield (
                f"tensor {name}: {base} holds {pretrained[name].dtype} and {model} holds "
                f"{tuned[name].dtype}, wanted the same kind in both."
            )


def _pair(headers: Mapping[Path, Mapping[str, TensorHeader]], name: str) -> list[TensorHeader]:
    return [tensors[name] for tensors in headers.values()]
