"""What reading the weights gave, for coefficients that hang on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekit_lines.lines.depth import BlockDepth


@dataclass(frozen=True)
class Calibration:
    """α of Eq. 2 and where it came from.

    ``tau_sum`` and ``tau_mtl`` are the two norms over the whole model; None for the closed form,
    which reads no weight. ``blocks`` are the α of each container's blocks, first to last, where
    a tensor asks for its block's and there is no closed form.
    """

    alpha: float
    models: int
    norm: str
    tau_sum: float | None = None
    tau_mtl: float | None = None
    blocks: Mapping[str, Sequence[float]] | None = None


@dataclass(frozen=True)
class Tier:
    """One block as ``schedule: larv`` sees it; see :mod:`mergekit_lines.lines.larv`.

    Attributes:
        contrast: effective rank of the base's matrices over that of the updates', on average;
            0 where no matrix was changed.
        conflict: how far the models' updates are from each other: 0 alike, 1 opposite.
        level: what α is multiplied by.
    """

    contrast: float
    conflict: float
    level: float


@dataclass(frozen=True)
class Readings:
    """What a plan's coefficients need of the weights.

    Attributes:
        calibration: α of Eq. 2; None where no tensor asks for it.
        larv: per container its blocks, first to last; None where no tensor asks for them.
    """

    calibration: Calibration | None = None
    larv: Mapping[str, Sequence[Tier]] | None = None

    def alpha(self, depth: BlockDepth | None) -> float | None:
        """Return α of Eq. 2: of one block where there is such, of the whole model for None."""
        if self.calibration is None:
            return None
        if depth is None or self.calibration.blocks is None:
            return self.calibration.alpha
        return self.calibration.blocks[depth.container][depth.index]

    def level(self, depth: BlockDepth) -> float:
        """Return LARV's level of a block.

        Raises:
            ValueError: no weight was read for it.
        """
        if self.larv is None:
            raise ValueError("schedule larv has no levels before the weights are read")
        return self.larv[depth.container][depth.index].level


UNREAD = Readings()
