"""Classifiers of texts and of images: the classes that they predict, and their labels."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mergekit_lines.errors import LinesError, nearest, reason, some
from mergekit_lines.evaluate.models import (
    MAX_LENGTH,
    check_ids,
    input_device,
    is_causal,
    padded,
    positions,
    text_tokenizer,
)
from mergekit_lines.search.learning.examples import WHERE, Example, Examples
from mergekit_lines.search.learning.labelled import Input, Labelled, number_of
from mergekit_lines.search.learning.logits import Function, Logits
from mergekit_lines.search.learning.predictions import Task, Tokens

TEXTS, IMAGES = "ForSequenceClassification", "ForImageClassification"
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")  # of 8 bits
_NUMERAL = re.compile(r"[+-]?\d+(\.\d*)?")


def task_of(
    live: Any, data: Examples, settings: Mapping[str, Any], function: Function | None
) -> Task:
    """Return what a live model predicts on these examples.

    Args:
        live: the model, with its tokenizer and its processor.
        data: the examples.
        settings: of ``learn``.
        function: of logits; None where the model's own are taken.

    Raises:
        LinesError: the model predicts nothing on such data, or not what the objective needs.
    """
    most = settings["max_length"]
    task = _own(live, data, most) if function is None else Logits(live, function, data, most)
    if settings["objective"] not in task.measures:
        missing = next(one.place for one in data.examples if one.label is None)
        raise LinesError(
            f"--objective: found loss, and {missing} has no label, wanted one on every example. "
            f"Add labels, or learn by entropy, which needs none."
        )
    return task


def _own(live: Any, data: Examples, most: int | None) -> Task:
    """Return what a model of one of the kinds that are recognised predicts."""
    model, kind = live.model, type(live.model).__name__
    of_images = kind.endswith((IMAGES, f"{IMAGES}WithTeacher"))
    if data.images != of_images:
        found, wanted = ("images", "texts") if data.images else ("texts", "images")
        raise LinesError(
            f"{WHERE} {data.path}: found {found}, and {kind} wants {wanted}. Give a "
            f"{'file of texts' if data.images else 'folder of images'}, or other models."
        )
    if of_images:
        if most is not None:
            raise LinesError(f"--max-length: found {most}, and images have no tokens. Drop it.")
        return Images(model, live.processor, data)
    if kind.endswith(TEXTS):
        return Texts(model, live.tokenizer, data, most)
    if not is_causal(model):
        raise LinesError(
            f"{WHERE}: {kind} is no causal language model and no classifier of texts or images, "
            f"wanted one of these. Give a function of your own that returns its logits with "
            f"--logits python:MODULE:FUNCTION, or sweep its coefficients with an evaluator."
        )
    return Tokens(model, live.tokenizer, data.path, most)


class _Classes(Labelled):
    """The classes of a classifier.

    Labels are names, or numbers. Where a name is the numeral of another number (``1`` to ``5`` of
    stars), they are names alone: a number would have two meanings.

    Raises:
        LinesError: it does not choose one of several, a label is none of its classes, or examples
            that are alike have labels of two.
    """

    def __init__(self, model: Any, data: Examples) -> None:
        config = model.config
        self._names: dict[int, str] = {int(n): str(one) for n, one in config.id2label.items()}
        kind = getattr(config, "problem_type", None)
        if len(self._names) < 2 or kind in ("regression", "multi_label_classification"):
            raise LinesError(
                f"{WHERE}: the model's config.json has {len(self._names)} labels and problem_type "
                f"{kind or 'none'}, wanted a classifier that chooses one of several classes."
            )
        self._numerals = any(
            _NUMERAL.fullmatch(name) and float(name) != number
            for number, name in self._names.items()
        )
        super().__init__(data)

    def target(self, example: Example) -> int | None:
        """Return the number of an example's class.

        Raises:
            LinesError: the model has no such class.
        """
        label = example.label
        if label is None:
            return None
        numbers = {name: number for number, name in self._names.items()}
        name = str(label) if self._numerals and type(label) in (int, float) else label
        if isinstance(name, str) and name in numbers:
            return numbers[name]
        number = number_of(label)
        if number is not None and number in self._names:
            if self._numerals:
                raise LinesError(
                    f"{WHERE}: {example.place}: found the label {label!r}: no class has that name, "
                    f"and that number is of the class named {self._names[number]!r}. Wanted one of "
                    f"the names ({some(numbers)}): some are numerals of other numbers. They are "
                    f"`id2label` in the base's config.json."
                )
            return number
        raise LinesError(
            f"{WHERE}: {example.place}: found the label {label!r}, wanted one of the model's "
            f"({some(numbers)}), or its number from 0 to {len(numbers) - 1}."
            f"{nearest(str(label), numbers)} They are `id2label` in the base's config.json."
        )


class Texts(_Classes):
    """The class of a text; of a long one its beginning is read.

    Args:
        model: the live one.
        tokenizer: its own, or None.
        data: the examples.
        most_tokens: of a text; the model's positions where it is None.

    Raises:
        LinesError: model, tokenizer or a label is at fault.
    """

    unit, plural = "text", "texts"

    def __init__(self, model: Any, tokenizer: Any, data: Examples, most_tokens: int | None) -> None:
        super().__init__(model, data)
        self._model, self._tokenizer = model, text_tokenizer(WHERE, tokenizer)
        most = positions(model)
        if most_tokens is not None and most is not None and most_tokens > most:
            raise LinesError(
                f"{WHERE}: max_length is {most_tokens}, and the model has {most} positions. Give "
                f"at most that."
            )
        own = getattr(tokenizer, "model_max_length", MAX_LENGTH)
        self._most = min(own, most_tokens or min(most or MAX_LENGTH, MAX_LENGTH))
        self._fill = getattr(model.config, "pad_token_id", None)

    def inputs(self, examples: Sequence[Example]) -> list[Input]:
        """Return the texts' token ids, cut to the length that is read."""
        words = {"truncation": True, "max_length": self._most}
        rows = [self._tokenizer(example.content, **words)["input_ids"] for example in examples]
        for example, row in zip(examples, rows, strict=True):
            if not row:
                raise LinesError(f"{WHERE}: {example.place} has no token. Take it out of the file.")
        check_ids(WHERE, self._model, rows)
        return [Input(row, self.target(one)) for row, one in zip(rows, examples, strict=True)]

    def sums(self, model: Any, batch: Sequence[Input], names: Sequence[str]) -> list[torch.Tensor]:
        """Return measures of a batch.

        Raises:
            LinesError: texts cannot be padded to one length.
        """
        rows = [one.content for one in batch]
        if self._fill is None and len(rows) > 1:
            raise LinesError(
                f"{WHERE}: the model's config.json has no pad_token_id, by which texts of unlike "
                f"length stand in one batch. Give --batch-size 1, or set it."
            )
        ids, mask = padded(rows, self._fill or 0, "right", input_device(model))
        return self.scored(model(input_ids=ids, attention_mask=mask).logits, batch, names)

    def size(self, entry: Input) -> int:
        """Return the number of tokens."""
        return len(entry.content)


class Images(_Classes):
    """The class of an image, which is read from its file whenever it is looked at.

    Args:
        model: the live one.
        processor: its own, or None.
        data: the examples.

    Raises:
        LinesError: there is no processor, or a label is at fault.
    """

    unit, plural = "image", "images"

    def __init__(self, model: Any, processor: Any, data: Examples) -> None:
        super().__init__(model, data)
        if processor is None:
            raise LinesError(
                f"{WHERE}: the models have no preprocessor_config.json, by which images become "
                f"inputs. Save the base's processor in its folder."
            )
        self._processor = processor

    def inputs(self, examples: Sequence[Example]) -> list[Input]:
        """Return the images' files, each of which was opened once.

        Raises:
            LinesError: one is no image.
        """
        for example in examples:
            opened(Path(example.content))
        return [Input(example.content, self.target(example)) for example in examples]

    def sums(self, model: Any, batch: Sequence[Input], names: Sequence[str]) -> list[torch.Tensor]:
        """Return measures of a batch."""
        images = [opened(one.content) for one in batch]
        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"]
        like = next(model.parameters())
        return self.scored(model(pixel_values=pixels.to(like)).logits, batch, names)

    def size(self, entry: Input) -> int:
        """Return 0: an image has no tokens."""
        return 0


def opened(path: Path) -> Any:
    """Return an image in RGB, turned as its EXIF data say, which transformers does too.

    Raises:
        LinesError: it is none, has not 8 bits a channel, or Pillow is not there.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise LinesError(
            f"{WHERE}: images are read by Pillow, which is not installed. pip install pillow"
        ) from error
    try:
        with Image.open(path) as image:
            if image.mode not in MODES:  # Pillow cuts their values off at 255: all is white
                raise LinesError(
                    f"{WHERE}: {path}: found an image of mode {image.mode}, wanted 8 bits a "
                    f"channel (such as L or RGB). Convert it first."
                )
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise LinesError(
            f"{WHERE}: {path} cannot be read as an image ({reason(error)}). Mend it, or take it "
            f"out of the folder."
        ) from error
