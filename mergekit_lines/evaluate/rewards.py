"""``rewards:module:function``: a model's texts for given prompts, scored by a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError
from mergekit_lines.evaluate.functions import as_numbers, call, find_function, function_name
from mergekit_lines.evaluate.generation import Generation, generate
from mergekit_lines.evaluate.metric import Completions, Metric, metric
from mergekit_lines.evaluate.models import still, text_tokenizer
from mergekit_lines.evaluate.spec import (
    FromSpec,
    Settings,
    Spec,
    count,
    natural,
    positive,
    read_options,
    truth,
)
from mergekit_lines.evaluate.texts import read_texts, text_digest


class Rewards(FromSpec):
    """The mean reward of a model's texts, as in reinforcement learning: higher is better.

    The function is called as ``function(prompts, completions)`` with two lists of texts, a
    completion without its prompt and without special tokens, and returns one number per prompt.
    Prompts are the lines of a file, or JSON lines with a ``prompt``. :mod:`.generation` says how
    texts are generated. ``texts`` holds the last prompts and completions.

    Options: ``prompts`` (a file), ``max_new_tokens`` (32), ``batch_size`` (16), ``do_sample``
    (false), ``temperature`` (1, of ``do_sample=true``), ``seed`` (0), ``limit``, ``chat`` (false;
    true puts each prompt in the tokenizer's chat template as the user's first message).
    """

    takes = ("prompts", "batch_size", "limit", "seed", "max_new_tokens")

    def __init__(self, spec: Spec, split: str, settings: Settings) -> None:
        """Import the function and read the prompts.

        Raises:
            LinesError: one of them cannot be had, or an option is wrong.
        """
        options = read_options(
            spec,
            {
                "prompts": Path,
                "max_new_tokens": count,
                "batch_size": count,
                "temperature": positive,
                "do_sample": truth,
                "seed": natural,
                "limit": count,
                "chat": truth,
            },
        )
        self.texts: tuple[list[str], list[str]] | None = None
        self._function, self._code = find_function(spec)
        super().__init__(spec, split, spec.name or function_name(spec))
        path: Path | None = options.get("prompts", settings.prompts)
        if path is None:
            raise LinesError(
                f"{spec.text}: there are no prompts. Write ?prompts=FILE behind the function: one "
                f"on each line, or a .jsonl file with the key 'prompt'."
            )
        if "temperature" in options and not options.get("do_sample", False):
            raise LinesError(
                f"{spec.text}: temperature is of sampling only. Add do_sample=true, or leave it "
                f"out: without it the most likely token is taken."
            )
        self._file = read_texts(spec.text, path, "prompt")
        self._limit: int | None = options.get("limit", settings.limit)
        self._prompts = self._file.first(self._limit)
        self._generation = Generation(
            max_new_tokens=options.get("max_new_tokens", settings.max_new_tokens or 32),
            batch_size=options.get("batch_size", settings.batch_size or 16),
            temperature=options.get("temperature", 1.0) if options.get("do_sample") else None,
            seed=options.get("seed", settings.seed),
            chat=options.get("chat", False),
        )

    def identity(self) -> dict[str, Any]:
        """Return what the number hangs on: options, the prompts, and the function's file."""
        options = {**self._generation.to_json(), "limit": self._limit}
        return self.described(options, {str(self._file.path): self._file.sha256}, self._code)

    def digests(self) -> frozenset[str]:
        """Return the digest of every prompt that is used."""
        return frozenset(map(text_digest, self._prompts))

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        completions: Completions | None = None,
        processor: Callable[[], Any] | None = None,
    ) -> dict[str, Metric]:
        """Return the one metric; its examples are the rewards, in the order of the prompts.

        Args:
            model: it generates.
            tokenizer: its tokenizer.
            completions: of this very model, those that are there already; what is generated here
                is put in.
            processor: not looked at: prompts are texts.

        Raises:
            LinesError: the model cannot generate, the function raises, or it does not return one
                finite number per prompt.
        """
        completions = {} if completions is None else completions
        key = (self._prompts, self._generation)
        text_tokenizer(self.spec, tokenizer)
        if key not in completions:
            with still(model, self._generation.seed):
                completions[key] = generate(self.spec, model, tokenizer, *key)
        self.texts = (list(self._prompts), list(completions[key]))
        with still(model, self._generation.seed):
            answer = call(self.spec, self._function, *map(list, self.texts))
        rewards = as_numbers(answer)
        if rewards is None or len(rewards) != len(self._prompts):
            length = "" if rewards is None else f" of {len(rewards)} numbers"
            raise LinesError(
                f"{self.spec}: the function returned {type(answer).__name__}{length} "
                f"({str(answer)[:40]}), wanted a list of {len(self._prompts)} numbers: one for "
                f"each prompt."
            )
        origin = self._file.path.name
        return {self.name: metric(self.spec, self.name, origin=origin, examples=rewards)}
