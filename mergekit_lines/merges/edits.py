"""State dicts and task vectors in memory, scaled by depth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mergekit.merge_methods.base import TensorGroup

from mergekit_lines.errors import LinesError, nearest, some
from mergekit_lines.kernels.scale import work_dtype
from mergekit_lines.lines.outside import checked_depths
from mergekit_lines.lines.placed import Placed, ScheduleWords
from mergekit_lines.lines.schedule import plain
from mergekit_lines.merges.groups import DTYPES, storage
from mergekit_lines.merges.state_dicts import merge_groups
from mergekit_lines.methods.complete import incomplete
from mergekit_lines.methods.words import POSTPROCESS_WORDS, number

Tensors = Mapping[str, torch.Tensor]


def scale_task_vector(
    task_vector: Tensors,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    schedule: str | float = "linear",
    outside: str | float = "alpha",
    blocks: str | None = None,
    num_blocks: int | None = None,
) -> dict[str, torch.Tensor]:
    """Return λ(ℓ)·τ for every tensor of a task vector (Eq. 1).

    Computation is in fp32 (float64 tensors in float64), rounded once to the tensor's dtype.
    A tensor under several names comes back as one object.

    Args:
        task_vector: τ = θ - θ_0 by tensor name, all tensors of the model.
        alpha: coefficient of the first block.
        beta: coefficient gained from the first block to the last.
        schedule: ``linear``, ``sqrt``, ``quadratic``, an exponent above 0, or, in the place of
            alpha and beta, the coefficients from the first block to the last: ``"0.1, 0.4, 1"``.
        outside: coefficient of tensors outside the blocks: ``alpha``, or a number.
        blocks: containers that count as blocks, comma-separated; default all.
        num_blocks: block count where the names cannot tell.

    Raises:
        LinesError: a word is wrong, or a tensor is not of a finite floating-point kind.

    Source: arXiv 2410.17146, Eq. 1 and appendix A.
    """
    _check_tensors("task_vector", task_vector)
    unfit = {name: t.dtype for name, t in task_vector.items() if t.dtype not in DTYPES}
    if unfit:
        dtypes = ", ".join(sorted(set(map(str, unfit.values()))))
        raise LinesError(
            f"tensors {some(unfit)}: found dtype {dtypes}, wanted fp16, bf16, fp32 or fp64: "
            f"only weights have task vectors. Leave them out."
        )
    words = _words(schedule=schedule, outside=outside, blocks=blocks, num_blocks=num_blocks)
    own = _schedule_words(alpha, beta, words)
    sizes = {name: tensor.numel() for name, tensor in task_vector.items()}
    depths = checked_depths(sizes, words["blocks"], words["num_blocks"])
    by_storage: dict[Any, tuple[str, float, torch.Tensor]] = {}
    result = {}
    for name, tensor in task_vector.items():
        coefficient = Placed(name, depths[name], own).coefficient()
        key = storage(tensor) or name
        if key not in by_storage:
            with torch.no_grad():
                by_storage[key] = (name, coefficient, _scaled(name, tensor, coefficient))
        first, same, scaled = by_storage[key]
        if same != coefficient:
            raise LinesError(
                f"tensors {first} and {name}: found one tensor under two names with the "
                f"coefficients {same:g} and {coefficient:g}, wanted one. Pass copies to untie them."
            )
        result[name] = scaled
    return result


def edit_state_dict(
    base: Tensors,
    finetuned: Tensors,
    *,
    gamma: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    schedule: str | float = "linear",
    outside: str | float = "alpha",
    blocks: str | None = None,
    num_blocks: int | None = None,
    allow_nonfinite: bool = False,
) -> dict[str, torch.Tensor]:
    """Return θ_0 + λ(ℓ)·(θ - θ_0) for every tensor, as ``lines_postprocess`` writes it.

    The inputs stay as they are. A tensor that ``finetuned`` holds under several names comes
    back as one object; what is not floating-point is copied.

    Args:
        base: θ_0 by tensor name.
        finetuned: θ, the same names and shapes.
        gamma: alpha = γ and beta = 1 - γ; or else ``alpha`` and ``beta``.
        alpha: coefficient of the first block.
        beta: coefficient gained from the first block to the last.
        schedule: ``linear``, ``sqrt``, ``quadratic``, an exponent above 0, or, in the place of
            the three above, the coefficients from the first block to the last.
        outside: coefficient of tensors outside the blocks: ``alpha``, or a number.
        blocks: containers that count as blocks, comma-separated; default all.
        num_blocks: block count where the names cannot tell.
        allow_nonfinite: go on although an input holds NaN or infinity.

    Raises:
        LinesError: a word is wrong, or the two models do not fit together.

    Source: arXiv 2410.17146, Eq. 1; γ as in its appendix C.1.
    """
    _check_tensors("base", base)
    _check_tensors("finetuned", finetuned)
    problems = [*_unlike_names(base, finetuned), *_unlike_tensors(base, finetuned)]
    if problems:
        raise LinesError(problems)
    words = {
        "gamma": gamma,
        "alpha": alpha,
        "beta": beta,
        "schedule": schedule,
        "outside": outside,
        "blocks": blocks,
        "num_blocks": num_blocks,
        "allow_nonfinite": allow_nonfinite,
    }
    names = [name for name, tensor in finetuned.items() if tensor.is_floating_point()]
    groups = [
        TensorGroup.from_tensors(
            [finetuned[name], base[name]], ids=["finetuned", "base"], base_index=1, name=name
        )
        for name in names
    ]
    with torch.no_grad():
        results = merge_groups(
            "lines_postprocess", groups, words, names=set(finetuned) - set(names)
        )
        edited = dict(zip(names, results, strict=True))
    copies: dict[Any, torch.Tensor] = {}
    result = {}
    for name, tensor in finetuned.items():
        source = edited.get(name, tensor)
        # One copy per tensor, however many names it has; safetensors wants it contiguous.
        key = storage(source) or name
        if key not in copies:
            fresh = name in edited and source is not base[name] and source is not tensor
            copies[key] = source.contiguous() if fresh else source.detach().clone().contiguous()
        result[name] = copies[key]
    return result


def _words(**values: Any) -> dict[str, Any]:
    """Return words checked as a recipe's are, with their defaults."""
    specs = {word.name: word for word in POSTPROCESS_WORDS}
    return {
        name: specs[name].validate(specs[name].default if value is None else plain(value))
        for name, value in values.items()
    }


def _schedule_words(alpha: Any, beta: Any, words: Mapping[str, Any]) -> ScheduleWords:
    pair = {
        name: None if value is None else number(name, plain(value))
        for name, value in {"alpha": alpha, "beta": beta}.items()
    }
    values = {**words, **pair, "gamma": None}
    missing = [name for name, value in pair.items() if value is None]
    if missing and not isinstance(words["schedule"], tuple):
        raise LinesError(
            f"parameters.{missing[0]}: found nothing, wanted alpha and beta both, or the "
            f"coefficients themselves as the schedule."
        )
    problem = None if missing == list(pair) else incomplete(values, "")
    if problem:
        raise LinesError(problem)
    return ScheduleWords.of(values)


def _check_tensors(what: str, tensors: Any) -> None:
    if not isinstance(tensors, Mapping):
        raise LinesError(
            f"{what}: found {type(tensors).__name__}, wanted tensors by name, e.g. "
            f"model.state_dict()."
        )
    wrong = [name for name, tensor in tensors.items() if not isinstance(tensor, torch.Tensor)]
    if wrong:
        raise LinesError(f"{what}: found no tensor under {some(map(str, wrong))}. Leave it out.")
    unnamed = [repr(name) for name in tensors if not isinstance(name, str)]
    if unnamed:
        raise LinesError(f"{what}: found the names {some(unnamed)}, wanted texts.")
    odd = [n for n, t in tensors.items() if t.layout != torch.strided or t.device.type == "meta"]
    if odd:
        raise LinesError(
            f"{what}: found sparse or meta tensors ({some(odd)}), wanted dense ones with values."
        )


def _unlike_names(base: Tensors, finetuned: Tensors) -> Iterable[str]:
    extra = [name for name in finetuned if name not in base]
    missing = [name for name in base if name not in finetuned]
    for names, holder, other, rest in (
        (extra, "finetuned", "base", missing or list(base)),
        (missing, "base", "finetuned", extra or list(finetuned)),
    ):
        if names:
            hint = nearest(names[0], rest)
            yield (
                f"{holder}: holds tensors that {other} lacks ({some(names)}), wanted the same "
                f"names in both.{hint}"
            )


def _unlike_tensors(base: Tensors, finetuned: Tensors) -> Iterable[str]:
    unlike: dict[str, list[str]] = defaultdict(list)
    for name in finetuned.keys() & base.keys():
        start, tuned = base[name], finetuned[name]
        floats = start.is_floating_point() and tuned.is_floating_point()
        if start.shape != tuned.shape:
            unlike["one shape"].append(name)
        elif start.device != tuned.device:
            unlike["one device"].append(name)
        elif not floats and (start.dtype != tuned.dtype or not torch.equal(start, tuned)):
            unlike["the same integers in both, or floating-point weights"].append(name)
    for kind, names in unlike.items():
        first = min(names)
        yield (
            f"tensors {some(names, 3)}: found {_describe(base[first])} in base and "
            f"{_describe(finetuned[first])} in finetuned for {first}, wanted {kind}."
        )


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"


def _scaled(name: str, tensor: torch.Tensor, coefficient: float) -> torch.Tensor:
    exact = tensor.to(work_dtype(tensor.dtype)) * coefficient
    scaled = exact.to(tensor.dtype)
    if not torch.isfinite(scaled).all():
        fault = "NaN or infinity" if not torch.isfinite(tensor).all() else "a result too large"
        raise LinesError(
            f"tensor {name}: found {fault}, wanted finite values of dtype {tensor.dtype}. Repair "
            f"the task vector, or compute it in float32."
        )
    return scaled
