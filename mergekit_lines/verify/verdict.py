"""What a check came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mergekit_lines.verify.comparison import Comparison

FORMAT = 1


@dataclass(frozen=True)
class Checked:
    """One tensor, the coefficient it was scaled by, and what came of it."""

    name: str
    dtype: str
    coefficient: float
    comparison: Comparison
    allowed: int = 0  # wrong entries, where a method's own roundings are not known

    @property
    def right(self) -> bool:
        """Whether the tensor is what the report says."""
        return self.comparison.wrong <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        """Return the tensor as JSON values; what is not finite is text."""
        numbers = {key: _plain(value) for key, value in asdict(self.comparison).items()}
        return {
            "tensor": self.name,
            "dtype": self.dtype,
            "coefficient": self.coefficient,
            **numbers,
            "right": self.right,
        }


@dataclass
class Verdict:
    """What came of a merged model."""

    tensors: int
    checked: list[Checked] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # NaN or infinity in an input
    notes: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether every tensor that was looked at is right, and any was."""
        return bool(self.checked) and all(one.right for one in self.checked)

    @property
    def total(self) -> Comparison:
        """All comparisons together."""
        result = Comparison(0)
        for one in self.checked:
            result += one.comparison
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return {
            "format": FORMAT,
            "right": self.right,
            "of": self.tensors,
            "skipped": self.skipped,
            "notes": self.notes,
            "tensors": [one.to_dict() for one in self.checked],
        }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    finite = not isinstance(value, float) or abs(value) < float("inf")
    return value if finite else str(value)
