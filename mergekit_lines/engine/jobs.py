"""What is to be done with one tensor, and what has to be known of all of it before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mergekit_lines.kernels.merge import State
from mergekit_lines.kernels.pieces import Kernel, Pieces

# Numbers that are kept from the pass over norms to the merge, two for every piece of a model that
# is cut: 20 MB, and enough for two models of 68 B parameters.
KEPT = 1 << 19


@dataclass(frozen=True)
class Job:
    """One output tensor.

    Args:
        name: of the tensor.
        models: what the base and the models are called, the base first, for messages.
        wrap: the wrapped method's name.
        merge: what it does.
        coefficient: λ, dimensionless.
        seed: of the recipe, for draws.
        allow_nonfinite: whether NaN and infinity are carried on.
    """

    name: str
    models: Sequence[Any]
    wrap: str
    merge: Kernel
    coefficient: float
    seed: int
    allow_nonfinite: bool


def prepared(job: Job, pieces: Pieces) -> Any:
    """Read a tensor as often as its merge needs, and return what that has to know of all of it."""
    return job.merge.prepare(pieces, draw_keys(job, pieces.models))


def draw_keys(job: Job, models: int) -> list[bytes]:
    """Return what seeds each model's draws: neither paths nor order of execution are in it."""
    texts = (f"{job.seed}\0{job.name}\0{number}" for number in range(models))
    return [hashlib.sha256(text.encode()).digest() for text in texts]


@dataclass
class States:
    """What the pass over norms had to know of each tensor, for the merge that follows it.

    Draws are not kept, and nothing where numbers of very many pieces would have to be.

    Attributes:
        numbers: how many are kept.
    """

    numbers: int = 0
    _states: dict[str, tuple[Kernel, int, State]] = field(default_factory=dict)

    def keep(self, job: Job, state: Any) -> None:
        """Keep what :func:`prepared` returned."""
        if not isinstance(state, State):
            return
        self.take(job)
        numbers = sum(2 * len(cut.stay) for cuts in state.cuts for cut in cuts or ())
        if self.numbers + numbers <= KEPT:
            self.numbers += numbers
            self._states[job.name] = (job.merge, job.seed, replace(state, stays={}))

    def take(self, job: Job) -> State | None:
        """Return what was kept of the same merge of the same tensor, and keep it no longer."""
        merge, seed, state = self._states.pop(job.name, (None, 0, None))
        if state is None:
            return None
        self.numbers -= sum(2 * len(cut.stay) for cuts in state.cuts for cut in cuts or ())
        return state if (merge, seed) == (job.merge, job.seed) else None
