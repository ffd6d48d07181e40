"""The two names that a recipe uses; see :mod:`mergekit_lines.methods.wrap` for what runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    BatchOptions,
    InputContract,
    MergeMethod,
    MergeMethodSpec,
    TensorGroup,
)

from mergekit_lines.errors import LinesError
from mergekit_lines.methods.lines import REFERENCE
from mergekit_lines.methods.words import LINES_WORDS, POSTPROCESS_WORDS


class RecipeMethod(MergeMethod):
    """The name a recipe uses; the planner replaces it before any tensor is merged."""

    def __init__(self, name: str, pretty_name: str, words: Sequence[Any]) -> None:
        self.spec = MergeMethodSpec(
            name=name,
            parameters=tuple(words),
            contract=InputContract(base=BasePolicy.REQUIRED),
            pretty_name=pretty_name,
            reference_url=REFERENCE,
        )

    def _execute(
        self,
        groups: Sequence[TensorGroup],
        parameters: list[dict[str, Any]],
        options: BatchOptions,
        *,
        input_dtypes: Sequence[torch.dtype | None],
        out_dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, ...]:
        raise LinesError(
            f"merge_method {self.spec.name} needs the whole model's tensor names to know each "
            f"block's depth, and this command shows it one tensor at a time. Run the recipe "
            f"with mergekit-yaml or mergekit-multi."
        )


RECIPE_METHODS = (
    RecipeMethod("lines", "LiNeS", LINES_WORDS),
    RecipeMethod("lines_postprocess", "LiNeS post-processing", POSTPROCESS_WORDS),
)
