"""``python:module:function``: logits of examples by a function of the user's own.

For models that no class of transformers makes classifiers of, such as encoders that choose the
label whose embedding is nearest, as CLIP does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate.functions import call, find_function, takes
from mergekit_lines.evaluate.spec import parse_spec
from mergekit_lines.search.learning.examples import WHERE, Example, Examples
from mergekit_lines.search.learning.labelled import Input, Labelled, number_of

FLAG = "--logits"


@dataclass(frozen=True)
class Function:
    """A function that was found by its spec.

    Attributes:
        spec: the text.
        function: itself.
        code: the files that its numbers hang on, with their SHA-256.
    """

    spec: str
    function: Callable[..., Any]
    code: Mapping[str, str]

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from another one."""
        return {"function": self.spec, "code": dict(self.code)}


def read_function(text: Any) -> Function:
    """Import the function of a spec.

    Raises:
        LinesError: the text is no such spec, or the function cannot be had.
    """
    spec = parse_spec(text) if isinstance(text, str) else None
    if spec is None or spec.kind != "python" or spec.name or spec.options:
        raise LinesError(f"{FLAG}: found {text!r}, wanted python:MODULE:FUNCTION, and no options.")
    function, code = find_function(spec)
    return Function(f"{FLAG} {spec.text}", function, code)


class Logits(Labelled):
    """The class of an example, by the logits that a function returns.

    It is called as ``function(model, tokenizer, rows)``, and with the models' ``processor`` if it
    has a parameter of this name; with gradients while coefficients are learnt. A row is a line of
    the data as a mapping: ``text``, perhaps ``label``, and whatever else stands there; of an image
    ``image``, its file, and perhaps ``label``. It returns logits, [rows, classes]. Rows that have
    fewer classes than others have −∞ in the columns that are left. A label is the number of its
    column.

    Args:
        live: the model, with its tokenizer and its processor.
        function: of the logits.
        data: the examples.
        most_tokens: None: the function reads the texts itself.

    Raises:
        LinesError: a label is no number, or ``most_tokens`` is one.
    """

    unit, plural = "example", "examples"

    def __init__(
        self, live: Any, function: Function, data: Examples, most_tokens: int | None
    ) -> None:
        if most_tokens is not None:
            raise LinesError(
                f"--max-length: found {most_tokens}, and the function of {FLAG} reads the texts "
                f"itself. Drop it, and cut them there."
            )
        super().__init__(data)
        self._function = function
        # A copy: what the function sets of a tokenizer is not to hold elsewhere.
        self._tokenizer = copy.deepcopy(live.tokenizer)
        self._words: dict[str, Any] = {}
        if takes(function.function, "processor"):
            self._words["processor"] = live.processor

    def target(self, example: Example) -> int | None:
        """Return the number of an example's column.

        Raises:
            LinesError: its label is no such number.
        """
        label = example.label
        if label is None:
            return None
        if (number := number_of(label)) is not None:
            return number
        raise LinesError(
            f"{WHERE}: {example.place}: found the label {label!r}, wanted the number of a column "
            f"of the logits, from 0 on: the function of {FLAG} gives its columns no names."
        )

    def inputs(self, examples: Sequence[Example]) -> list[Input]:
        """Return the examples' rows."""
        return [Input(dict(one.row), self.target(one)) for one in examples]

    def sums(self, model: Any, batch: Sequence[Input], names: Sequence[str]) -> list[torch.Tensor]:
        """Return measures of a batch.

        Raises:
            LinesError: the function raises, or returns something else.
        """
        rows = [one.content for one in batch]
        words = (model, self._tokenizer, rows)
        logits = call(self._function.spec, self._function.function, *words, **self._words)
        self._check(logits, batch)
        return self.scored(logits, batch, names)

    def _check(self, logits: Any, batch: Sequence[Input]) -> None:
        spec, wish = self._function.spec, f"wanted logits of floats, [{len(batch)}, classes]"
        if not isinstance(logits, torch.Tensor):
            raise LinesError(f"{spec}: found {type(logits).__name__}, {wish}, as a tensor.")
        shape = tuple(logits.shape)
        if shape[:1] != (len(batch),) or len(shape) != 2 or not logits.is_floating_point():
            raise LinesError(f"{spec}: found {logits.dtype} of shape {list(shape)}, {wish}.")
        most = max((one.target for one in batch if one.target is not None), default=0)
        if most >= shape[1]:
            raise LinesError(
                f"{spec}: found {shape[1]} columns, and the label {most}, wanted a column for "
                f"every label, counted from 0 on."
            )
        if torch.is_grad_enabled() and not logits.requires_grad:
            raise LinesError(
                f"{spec}: found logits without a gradient by the model's weights, wanted one. "
                f"Take no_grad, detach and numbers of Python out of the function."
            )

    def size(self, entry: Input) -> int:
        """Return 0: what the function reads of an example is its own."""
        return 0
