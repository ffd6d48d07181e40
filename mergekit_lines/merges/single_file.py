"""LiNeS on one safetensors file without a config (timm, open_clip), tensor by tensor.

The same words, kernel and dtype rule as ``lines_postprocess`` in a recipe; what is not there
is mergekit, which reads only folders with a config.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from filelock import FileLock, Timeout
from mergekit.common import dtype_from_name
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from mergekit_lines.checkpoint.headers import BUFFERS, FLOATS
from mergekit_lines.checkpoint.partial import MARK, partial_path
from mergekit_lines.errors import LinesError, reason, some, tell
from mergekit_lines.files import REPORT
from mergekit_lines.kernels.scale import scale_task_vector, work_dtype
from mergekit_lines.lines.depth import block_depths, natural_key
from mergekit_lines.lines.placed import Placed, ScheduleWords
from mergekit_lines.lines.summary import Summary, summarise
from mergekit_lines.methods.words import POSTPROCESS_WORDS
from mergekit_lines.recipe.checks import check_recipe
from mergekit_lines.report.file import describe, report, to_json

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# safetensors lays the widest types first, so that each tensor is aligned; then by name.
ORDER = (
    *("U64", "I64", "F64", "F32", "U32", "I32"),
    *("BF16", "F16", "U16", "I16", "I8", "U8", "BOOL"),
)


@dataclass(frozen=True)
class Slot:
    """One tensor of a file: its dtype as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the tensor's data."""
        count = 1
        for extent in self.shape:
            count *= extent
        width = 1 if self.dtype == "BOOL" else int("".join(filter(str.isdigit, self.dtype))) // 8
        return count * width


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
        options: mergekit's; ``device`` and ``quiet`` count here.
        recipe: the recipe's text, for the report.

    Raises:
        LinesError: words, files or the disk are at fault; nothing is left.
    """
    out = out.absolute()
    if model.samefile(base):
        raise LinesError(
            f"{base}: found the same file for MODEL and --base, wanted what MODEL was fine-tuned "
            f"from. Check the paths."
        )
    problems = _check_out(out) or check_recipe(config, out, options, recipe)
    if problems:
        raise LinesError(problems)
    with ExitStack() as stack:
        tuned, pretrained = (stack.enter_context(_opened(file)) for file in (model, base))
        headers = {model: _slots(tuned), base: _slots(pretrained)}
        problems = list(_check_headers(headers))
        if problems:
            raise LinesError(problems)
        coefficients, summary = _plan(list(headers[model]), _values(config))
        if not options.quiet or not summary.containers:
            for line in describe(summary):
                tell(line)
        rule = _Rule(config, coefficients, options.device or "cpu", headers)
        layout = rule.layout(headers[model], headers[base])
        _check_space(out, layout)
        with plain_failures(out), _partial(out) as folder:
            partial = folder / out.name
            with partial.open("wb") as handle:
                _write_header(handle, layout, tuned.metadata())
                for name in tqdm(layout, disable=options.quiet or None):
                    tensors = pretrained.get_tensor(name), tuned.get_tensor(name)
                    handle.write(_bytes(rule.edited(name, *tensors)))
                handle.flush()
                os.fsync(handle.fileno())
            with safe_open(partial, framework="pt"):
                pass  # safetensors itself agrees with the header and the length
            text = to_json(report(summary, config.merge_method, recipe))
            (folder / _report_file(out).name).write_text(text, encoding="utf-8")
    if not options.quiet:
        tell(f"the edited model is {out}")


# --- what is to be done --------------------------------------------------------------------


def _values(config: MergeConfiguration) -> dict[str, Any]:
    """Return every word's value; the recipe's preflight has passed."""
    given = config.parameters or {}
    return {w.name: w.validate(given.get(w.name, w.default)) for w in POSTPROCESS_WORDS}


def _plan(names: list[str], values: Mapping[str, Any]) -> tuple[dict[str, float], Summary]:
    """Return λ of every tensor, and the summary for people and for the report."""
    blocks = values["blocks"].split(",") if values["blocks"] else None
    depths = block_depths(names, blocks=blocks, num_blocks=values["num_blocks"])
    words = ScheduleWords.of(values)
    placed = [Placed(name, depths[name], words) for name in sorted(names, key=natural_key)]
    coefficients = {item.name: item.coefficient() for item in placed}
    return coefficients, summarise(placed, coefficients, None)


class _Rule:
    """The dtypes and the arithmetic of ``methods/lines.py``, for a pair of tensors."""

    def __init__(
        self,
        config: MergeConfiguration,
        coefficients: Mapping[str, float],
        device: str,
        files: Mapping[Path, Any],
    ) -> None:
        self.cast = dtype_from_name(config.dtype) if config.dtype else None
        self.out = dtype_from_name(config.out_dtype) if config.out_dtype else None
        self.allow_nonfinite = bool((config.parameters or {}).get("allow_nonfinite"))
        self.coefficients = coefficients
        self.device = device
        self.model, self.base = files

    def layout(self, tuned: Mapping[str, Slot], base: Mapping[str, Slot]) -> dict[str, Slot]:
        """Return the output's tensors in the order of the file."""
        names = {dtype: name for name, dtype in TORCH.items()}
        made = {}
        for name, slot in tuned.items():
            made[name] = slot
            if slot.dtype in FLOATS:
                given = torch.promote_types(TORCH[base[name].dtype], TORCH[slot.dtype])
                made[name] = Slot(names[self.out or self.cast or given], slot.shape)
        return dict(sorted(made.items(), key=lambda item: (ORDER.index(item[1].dtype), item[0])))

    def edited(self, name: str, base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
        """Return one tensor of the output; integers are copied.

        Raises:
            LinesError: integers differ, or an input or the result is not finite.
        """
        if not tuned.is_floating_point():
            if not torch.equal(base, tuned):
                raise LinesError(
                    f"tensor {name}: found {tuned.dtype} that differs between {self.model} and "
                    f"{self.base}, wanted the same integers in both or floating-point weights."
                )
            return tuned
        cast = self.cast or torch.promote_types(base.dtype, tuned.dtype)
        pair = []
        for file, given in ((self.base, base), (self.model, tuned)):
            tensor = given.to(self.device, cast)
            if not self.allow_nonfinite and not torch.isfinite(tensor).all():
                raise LinesError(_not_finite(f"tensor {name} of {file}", given, cast))
            pair.append(tensor.to(work_dtype(cast)))
        result = scale_task_vector(pair[0], pair[1], self.coefficients[name]).to(self.out or cast)
        if not self.allow_nonfinite and not torch.isfinite(result).all():
            raise LinesError(
                f"tensor {name}: the result does not fit the output dtype {result.dtype}. "
                f"Give --out-dtype float32 or bfloat16."
            )
        return result


def _not_finite(place: str, given: torch.Tensor, cast: torch.dtype) -> str:
    if torch.isfinite(given).all():
        return (
            f"{place}: found values beyond --dtype {cast}. Give --dtype float32, or leave it out."
        )
    return (
        f"{place}: found NaN or infinity, wanted finite weights. Repair or replace the model, or "
        f"give --allow-nonfinite to carry them along."
    )


# --- checks --------------------------------------------------------------------------------


def _report_file(out: Path) -> Path:
    return out.with_name(f"{out.stem}.{REPORT}")


def _check_out(out: Path) -> list[str]:
    try:
        held = [path.name for path in (out, _report_file(out)) if path.exists()]
    except OSError as error:
        return [f"OUT {out.name[:40]}…: {error.strerror}. Choose another OUT."]
    if not held:
        return []
    return [f"OUT {out}: {some(held)} is there already. Choose another OUT or remove it."]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        handle = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise LinesError(
            f"{file}: not a whole safetensors file ({error}). Download it again."
        ) from error
    with handle:
        yield handle


def _slots(file: Any) -> dict[str, Slot]:
    pieces = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return {name: Slot(p.get_dtype(), tuple(p.get_shape())) for name, p in pieces.items()}


def _check_headers(headers: Mapping[Path, Mapping[str, Slot]]) -> Iterator[str]:
    (model, tuned), (base, pretrained) = headers.items()
    for one, other in ((model, base), (base, model)):
        absent = [name for name in headers[one] if name not in headers[other]]
        if absent:
            yield (
                f"{other}: lacks {len(absent)} tensors that {one} has ({some(absent)}), wanted the "
                f"same names in both. Use the base that the model was fine-tuned from."
            )
    for file, slots in headers.items():
        odd = [name for name, slot in slots.items() if slot.dtype not in FLOATS | BUFFERS]
        if odd:
            dtypes = ", ".join(sorted({slots[name].dtype for name in odd}))
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
        kinds = {slot.dtype if slot.dtype in BUFFERS else "float" for slot in _pair(headers, name)}
        if len(kinds) > 1:
            yield (
                f"tensor {name}: {base} holds {pretrained[name].dtype} and {model} holds "
                f"{tuned[name].dtype}, wanted the same kind in both."
            )


def _pair(headers: Mapping[Path, Mapping[str, Slot]], name: str) -> list[Slot]:
    return [slots[name] for slots in headers.values()]


def _check_space(out: Path, layout: Mapping[str, Slot]) -> None:
    parent = next(parent for parent in out.parents if parent.exists())
    wanted = sum(slot.size for slot in layout.values())
    free = shutil.disk_usage(parent).free
    if wanted > free:
        raise LinesError(
            f"OUT {out}: found {free:,} bytes free, wanted {wanted:,}. Free some space, "
            f"or choose another OUT."
        )


# --- the file ------------------------------------------------------------------------------


def _write_header(
    handle: BinaryIO, layout: Mapping[str, Slot], metadata: Mapping[str, str] | None
) -> None:
    """Write a safetensors header: its length in 8 bytes, JSON, spaces to a multiple of 8.

    By hand, since safetensors' own writer wants every tensor in memory at once. Source:
    https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, slot in layout.items():
        offsets = [offset, offset + slot.size]
        header[name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": offsets}
        offset += slot.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    handle.write(struct.pack("<Q", len(text)) + text)


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().tobytes()


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """Yield a hidden sibling folder, whose files become ``out`` and its report at the end."""
    partial = partial_path(out)
    made = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(partial.with_name(f"{partial.name}.lock"), out):
            if partial.exists():  # of an edit that was killed: the recipe's checks know the mark
                shutil.rmtree(partial)
            try:
                partial.mkdir()
                (partial / MARK).touch()
                yield partial
                if problems := _check_out(out):
                    raise LinesError(problems)
                for place in (_report_file(out), out):  # the model last: it is whole then
                    (partial / place.name).rename(place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        for parent in made:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()


@contextmanager
def _locked(file: Path, out: Path) -> Iterator[None]:
    """Hold the lock of ``out``, whose file is gone when nobody holds it.

    Raises:
        LinesError: another process holds it.
    """
    lock = FileLock(file, timeout=0)
    while True:
        file.touch()
        try:
            before = file.stat()
            lock.acquire()
        except Timeout:
            raise LinesError(
                f"OUT {out}: another edit is writing to it right now. Wait, or choose another OUT."
            ) from None
        except FileNotFoundError:
            continue
        # Its last holder may have removed the file that we opened, and who comes next locks
        # a new one: only the file that is there still counts.
        if file.exists() and os.path.samestat(file.stat(), before):
            break
        lock.release()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


@contextmanager
def plain_failures(out: Path) -> Iterator[None]:
    """Turn failures of disk, files and device into one sentence."""
    try:
        yield
    except OSError as error:
        text = "the disk is full" if error.errno == errno.ENOSPC else reason(error)
        raise LinesError(f"OUT {out}: {text}. Check the place; nothing was kept.") from error
    except (SafetensorError, RuntimeError) as error:
        raise LinesError(f"the edit failed ({reason(error)}). OUT was not made.") from error
