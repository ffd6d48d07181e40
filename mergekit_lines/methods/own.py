"""A merge of this package: a mergekit method alone, and a ``wrap`` of ``lines``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    ParameterSpec,
    TensorGroup,
)

from mergekit_lines.errors import LinesError
from mergekit_lines.host.process import one_thread
from mergekit_lines.kernels.pieces import Held, Kernel
from mergekit_lines.kernels.scale import work_dtype
from mergekit_lines.methods.trim import ONE_TENSOR, cuts_whole_model


class OwnMerge(GroupMergeMethod):
    """M of a kernel in this package.

    In a recipe, alone or wrapped, the engine runs the kernel piece by piece, with our checks,
    partial folder and report; alone that is ``lines`` around it with λ = 1. mergekit's own tools
    call it with a tensor at a time.

    A new one is an instance of this class, and its name stands in ``host/names.py`` (``OWN``).

    Args:
        name: by which a recipe names it.
        pretty_name: the name for people.
        reference: URL of its paper.
        words: its parameters; each checks its values (:func:`~mergekit_lines.methods.words.word`).
        kernel: from the values of one tensor, those that each model has keyed by model, and the
            ids of the fine-tuned models in their order. It raises LinesError where values do
            not go together, or not with the number of models.
    """

    def __init__(
        self,
        name: str,
        pretty_name: str,
        reference: str,
        words: Sequence[ParameterSpec],
        kernel: Callable[[Mapping[str, Any], Sequence[Any]], Kernel],
    ) -> None:
        self.spec = MergeMethodSpec(
            name=name,
            parameters=tuple(words),
            contract=InputContract(base=BasePolicy.REQUIRED),
            pretty_name=pretty_name,
            reference_url=reference,
        )
        self.kernel = kernel

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        """Merge one tensor in memory, in fp32 (float64 in float64) and rounded once.

        Raises:
            LinesError: the values want of it what takes the whole model.
        """
        if cuts_whole_model(parameters):
            raise LinesError(ONE_TENSOR)
        base, models = group.base, group.non_base
        if base is None or not models or not base.tensor.numel():
            return group.entries[0].tensor
        dtype = work_dtype(base.tensor.dtype)
        kernel = self.kernel(parameters, [entry.id for entry in models])
        held = Held(base.tensor.to(dtype), [entry.tensor.to(dtype) for entry in models])
        with torch.no_grad(), one_thread():
            keys = [f"{group.metadata.name}\0{number}".encode() for number in range(len(models))]
            state = kernel.prepare(held, keys)
            vector = kernel.task_vector(held, state, 0, *held.load(0))
        return vector.view(held.shape).add_(held.base).to(base.tensor.dtype)
