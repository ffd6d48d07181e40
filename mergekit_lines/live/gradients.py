"""The gradient of a loss by every tensor's coefficient, taken while a backward pass runs.

With θ = θ_0 + λ·τ it is d loss/dλ = ⟨∂loss/∂θ, τ⟩. So one ordinary backward pass is enough: each
parameter's gradient is multiplied by its task vector as soon as it is whole, and freed. No graph
leads back to the coefficients, and no task vector is held that the engine would not hold anyway.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from mergekit_lines.engine.engine import Engine
from mergekit_lines.engine.products import model_products, task_product
from mergekit_lines.errors import LinesError
from mergekit_lines.live.architecture import Part, Parts
from mergekit_lines.live.inputs import aligned_tensors
from mergekit_lines.plan.planned import PlannedTensor

MERGE = ""  # stands among the models for what they are merged to


class CoefficientGradients:
    """Takes the gradients of backward passes apart, tensor by tensor.

    Where weights are rounded to 16 bits, the rounding counts as if it were none.

    Args:
        engine: that sets the weights.
        planned: the output's tensors.
        per_model: by each model's coefficient, and not by the merge's; λ is 1 then.
    """

    def __init__(
        self, engine: Engine, planned: Sequence[PlannedTensor], *, per_model: bool
    ) -> None:
        self._engine, self._per_model = engine, per_model
        self._tasks = {item.weight.name: item.task for item in planned}
        self._products: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def of(self, loss: torch.Tensor) -> dict[str, dict[str, float]]:
        """Return d loss/dλ of every tensor that the loss hangs on.

        By model, then by the output's name; for the merge's under :data:`MERGE`.

        Args:
            loss: a scalar, computed by the live model with gradients enabled.

        Raises:
            LinesError: an input cannot be read.
        """
        self._products.clear()
        loss.backward()
        return {model: dict(sorted(own.items())) for model, own in self._products.items()}

    def take(self, parts: list[Part], parameter: torch.Tensor) -> None:
        """Multiply a parameter's gradient by its task vector, and free it."""
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        flat = gradient.reshape(-1)
        for part in parts:
            task = self._tasks[part.slot.name]
            own = flat.narrow(0, part.offset, part.count)
            with torch.no_grad():
                inputs = aligned_tensors(self._engine, task)
                arguments = (self._engine, task, own, part.start, inputs)
                if self._per_model:
                    products = model_products(*arguments)
                else:
                    products = {MERGE: task_product(*arguments)}
                for model, product in products.items():
                    self._products[model][part.slot.name] += product


@contextmanager
def attached(
    model: nn.Module,
    parts: Parts,
    engine: Engine,
    planned: Sequence[PlannedTensor],
    *,
    per_model: bool = False,
) -> Iterator[CoefficientGradients]:
    """Let a model's backward passes give the gradients of coefficients, inside the block.

    Buffers, such as the running means of a batch norm, are scaled as well and have no gradient.

    Args:
        model: the live one.
        parts: its parameters as tensors of the output.
        engine: that sets its weights.
        planned: the output's tensors.
        per_model: by each model's coefficient.

    Raises:
        LinesError: a parameter is offloaded.
    """
    of_parameter: dict[str, list[Part]] = defaultdict(list)
    for part in itertools.chain.from_iterable(parts.of_output.values()):
        of_parameter[part.parameter].append(part)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = {name: parameters[name] for name in of_parameter if name in parameters}
    if any(parameter.is_meta for parameter in chosen.values()):
        raise LinesError(
            "max_memory: found weights that are offloaded, and coefficients are learnt by "
            "gradients on one device. Open the model on a device that holds all of it."
        )
    gradients = CoefficientGradients(engine, planned, per_model=per_model)
    hooks = []
    try:
        for name, parameter in chosen.items():
            if parameter.is_floating_point():
                parameter.requires_grad_()
                hook = partial(gradients.take, of_parameter[name])
                hooks.append(parameter.register_post_accumulate_grad_hook(hook))
        yield gradients
    finally:
        for handle in hooks:
            handle.remove()
        for parameter in chosen.values():
            parameter.requires_grad = False
            parameter.grad = None
