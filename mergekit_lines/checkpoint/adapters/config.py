"""adapter_config.json: what a LoRA adapter of PEFT says of its tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_lines.checkpoint.adapters.patterns import (
    PatternError,
    check_count,
    check_pattern,
    matches,
)
from mergekit_lines.checkpoint.bounded import read_json
from mergekit_lines.errors import LinesError, nearest, reason, some

CONFIG = "adapter_config.json"

# Fields of PEFT's LoraConfig that change nothing about the merged weights: they say which
# layers were adapted (the file's tensors say that too), or how they were trained.
_INERT = {
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
_READ = {
    "alpha_pattern",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "lora_bias",
    "r",
    "rank_pattern",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}
# What PEFT takes for regular expressions, where it is a text, a mapping's keys, or a list.
_PATTERNS = {
    "alpha_pattern": dict,
    "exclude_modules": str,
    "layers_pattern": list,
    "rank_pattern": dict,
    "target_modules": str,
}
# Others (PiSSA, OLoRA, CorDA, LoftQ, MiCA) draw A, B or the base's weights from an SVD of the base.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "lora_ga")


@dataclass(frozen=True)
class LoraConfig:
    """The fields that the merged weights hang on, as PEFT reads them.

    Attributes:
        file: where they were read.
        reason: why the merged weights are more than these fields say, or None.
        tying: whether layers that share a tensor were trained with one update, saved for each.
        tokens: the trained rows of embeddings, by the end of a module's name; "" for the input
            embedding.
    """

    file: Path
    reason: str | None
    rank_default: int = 0
    alpha_default: float = 0.0
    ranks: Mapping[str, int] | None = None
    alphas: Mapping[str, float] | None = None
    rank_stabilised: bool = False
    dora: bool = False
    bias: bool = False
    transposed: bool = False
    tying: bool = False
    tokens: Mapping[str, list[int]] | None = None

    def rank(self, module: str) -> int:
        """Return the rank of a module's update."""
        return (self.ranks or {}).get(self._pattern(self.ranks, module), self.rank_default)

    def scale(self, module: str) -> float:
        """Return what B·A is multiplied by: alpha/rank, or alpha/√rank."""
        alpha = (self.alphas or {}).get(self._pattern(self.alphas, module), self.alpha_default)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def token_indices(self, module: str) -> list[int]:
        """Return the trained rows of an embedding, in the order of the file.

        Raises:
            LinesError: the config names no rows of this module.
        """
        for end, indices in (self.tokens or {}).items():
            if not end or module == end or module.endswith(f".{end}"):
                return indices
        raise LinesError(
            f"{self.file}: trainable_token_indices names no rows of {module}, of which the adapter "
            f"holds some. Save the adapter again."
        )

    def _pattern(self, patterns: Mapping[str, Any] | None, module: str) -> str:
        """Return the first pattern that matches the whole name or its end behind a dot."""
        try:
            for pattern in patterns or ():
                if matches(pattern, module):
                    return pattern
        except PatternError as error:
            raise LinesError(
                f"{self.file}: the pattern {pattern[:40]!r} cannot be read: {error}. Write the "
                f"layers' names."
            ) from error
        return module


def read_config(folder: Path) -> LoraConfig:
    """Read a folder's adapter_config.json.

    Raises:
        LinesError: there is none, it is no JSON object with a peft_type, or a field of LoRA
            holds what PEFT would not take.
    """
    file = folder / CONFIG
    try:
        fields = read_json(file)
        kind = fields["peft_type"]
    except FileNotFoundError:
        raise LinesError(
            f"{folder}: found no {CONFIG}, wanted the folder of an adapter that PEFT saved. "
            f"Check the path behind the + in the recipe."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LinesError(
            f"{file}: cannot be read ({reason(error)}), wanted a JSON object with "
            f"a peft_type. Download it again."
        ) from error
    _check_patterns(file, fields)
    tying = bool(fields.get("ensure_weight_tying"))
    if kind != "LORA":
        return LoraConfig(file, f"its peft_type is {kind}", tying=tying)
    # Before what is left to PEFT, which takes its own default for a number that is not there.
    rank = _number(file, "r", fields.get("r"), whole=True)
    alpha = _number(file, "lora_alpha", fields.get("lora_alpha"))
    start = fields.get("init_lora_weights", True)
    strange = [name for name in fields if name not in _INERT | _READ and fields[name]]
    if strange:
        _check_known(file, strange)
        return LoraConfig(file, f"it sets {', '.join(sorted(strange))}", tying=tying)
    if start not in _PLAIN_STARTS:
        return LoraConfig(file, f"its init_lora_weights is {start}", tying=tying)
    return LoraConfig(
        file,
        None,
        rank_default=rank,
        alpha_default=alpha,
        ranks=_numbers(file, "rank_pattern", fields, whole=True),
        alphas=_numbers(file, "alpha_pattern", fields),
        rank_stabilised=bool(fields.get("use_rslora")),
        dora=bool(fields.get("use_dora")),
        bias=bool(fields.get("lora_bias")),
        transposed=bool(fields.get("fan_in_fan_out")),
        tying=tying,
        tokens=_tokens(file, fields.get("trainable_token_indices")),
    )


def _check_patterns(file: Path, fields: Mapping[str, Any]) -> None:
    """Refuse patterns that neither we nor PEFT, which may have to merge, would get through."""
    for name, kind in _PATTERNS.items():
        value = fields.get(name)
        patterns = [value] if isinstance(value, str) else value if isinstance(value, kind) else ()
        try:
            check_count(patterns)
            for pattern in patterns:
                check_pattern(str(pattern))
        except PatternError as error:
            raise LinesError(
                f"{file}: a pattern of {name} cannot be read: {error}. Write the layers' names."
            ) from error


def _check_known(file: Path, names: Sequence[str]) -> None:
    """Refuse what the installed PEFT does not know: it would only warn, and merge without it."""
    import peft

    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    unknown = [name for name in names if name not in fields]
    if unknown:
        raise LinesError(
            f"{file}: sets {some(unknown)}, of which peft {peft.__version__} knows nothing; it "
            f"would be left out of the merged weights.{nearest(unknown[0], fields)} Upgrade peft, "
            f"or correct the name."
        )


def _number(file: Path, name: str, value: Any, whole: bool = False) -> Any:
    right = type(value) is int or (type(value) is float and math.isfinite(value) and not whole)
    if not right or (whole and value < 1):
        valid = "a rank of at least 1" if whole else "a finite number"
        raise LinesError(f"{file}: {name} is {value!r}, wanted {valid}. Save the adapter again.")
    return value


def _numbers(file: Path, name: str, fields: Any, whole: bool = False) -> dict[str, Any]:
    patterns = fields.get(name) or {}
    if not isinstance(patterns, dict):
        raise LinesError(f"{file}: {name} is {patterns!r}, wanted numbers by layer name.")
    return {key: _number(file, f"{name}.{key}", one, whole) for key, one in patterns.items()}


def _tokens(file: Path, value: Any) -> dict[str, list[int]]:
    tokens = {"": value} if isinstance(value, list) else value or {}
    lists = list(tokens.values()) if isinstance(tokens, dict) else [None]
    for indices in lists:
        if not isinstance(indices, list) or any(type(one) is not int or one < 0 for one in indices):
            raise LinesError(
                f"{file}: trainable_token_indices is {value!r}, wanted row numbers, or row numbers "
                f"by layer name. Save the adapter again."
            )
    return dict(tokens)
