"""Adapters that cannot be read right: refused with what was found, or left to PEFT."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from mergekit_lines.checkpoint.adapters.adapter import Adapter
from mergekit_lines.errors import LinesError
from tests import models
from tests.checkpoint.adapters.peft_adapters import (
    CONFIG,
    WEIGHTS,
    adapter,
    config,
    edit_config,
    load_config,
    shapes,
    tensors,
)

# --- what is left to PEFT ------------------------------------------------------------------

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"peft_type": "LOHA"}, "peft_type is LOHA"),
    "unknown kind": ({"peft_type": "NEXT_YEARS"}, "peft_type is NEXT_YEARS"),
    "unknown field that is off": ({"use_next_years": False}, ""),
    "alora": ({"alora_invocation_tokens": [1]}, "sets alora_invocation_tokens"),
    "qalora": ({"use_qalora": True}, "sets use_qalora"),
    "replication": ({"layer_replication": [[0, 1]]}, "sets layer_replication"),
    "parameters": ({"target_parameters": ["experts.down_proj"]}, "sets target_parameters"),
    "arrow": ({"arrow_config": {"top_k": 1}}, "sets arrow_config"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4"),
    "eva": ({"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}, ""),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_left_to_peft(
    kind: str, simple: Path, tmp_path: Path, bases: Callable[[str], Path]
) -> None:
    changes, wanted = OTHERS[kind]
    path = shutil.copytree(simple, tmp_path / "adapter")
    edit_config(path, **changes)
    opened = Adapter.open(path, shapes(bases("llama")))
    if wanted:
        assert str(opened.reason).endswith(wanted)
        assert not opened.changes
    else:
        assert opened.reason is None
        assert opened.changes


# --- what is refused -----------------------------------------------------------------------

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def cut(path: Path) -> None:
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-5])


def text(content: str) -> Callable[[Path], None]:
    return lambda path: (path / CONFIG).write_text(content) and None


def add(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[[Path], None]:
    return tensors(lambda held: held.update({name: torch.ones(shape, dtype=dtype)}))


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda path: (path / CONFIG).unlink(), "found no adapter_config.json"),
    "no weights": (lambda path: (path / WEIGHTS).unlink(), "and no weights"),
    "no JSON": (text("{"), "adapter_config.json: cannot be read"),
    "no object": (text("[]"), "wanted a JSON object"),
    "no kind": (text('{"r": 8}'), "a peft_type"),
    "rank 0": (config(r=0), "r is 0, wanted a rank of at least 1"),
    "rank by word": (config(r="8"), "r is '8'"),
    "no alpha": (config(lora_alpha=None), "lora_alpha is None, wanted a finite number"),
    "no alpha for PEFT": (config(lora_alpha=None, use_qalora=True), "lora_alpha is None"),
    # PEFT itself would only warn, and merge without it.
    "unknown field": (config(use_next_years=True), "sets use_next_years, of which peft .* nothing"),
    "misspelt field": (config(lora_alhpa=9), "sets lora_alhpa, .* Did you mean 'lora_alpha'"),
    "pattern of rank 0": (config(rank_pattern={"q_proj": 0}), r"rank_pattern\.q_proj is 0"),
    "patterns in a list": (config(rank_pattern=["q"]), "wanted numbers by layer name"),
    "no pattern": (config(alpha_pattern={"(": 8}), "no regular expression"),
    "another rank": (config(r=5), "gives them rank 5"),
    "token rows by word": (config(trainable_token_indices=["a"]), "wanted row numbers"),
    "cut weights": (cut, "adapter_model.safetensors: "),
    "no B": (
        tensors(lambda held: held.pop(f"{Q_PROJ}.lora_B.weight")),
        r"q_proj it holds lora_A\.weight, and by .* lora_A\.weight, lora_B\.weight",
    ),
    "a magnitude without DoRA": (
        add(f"{Q_PROJ}.lora_magnitude_vector", 32),
        "lora_magnitude_vector, and by",
    ),
    "no magnitude": (
        config(use_dora=True),
        "it should hold lora_A.weight, lora_B.weight, lora_mag",
    ),
    "saved in pieces": (add(f"{Q_PROJ}.lora_A.weight", 0), "two whole matrices"),
    "integers": (add(f"{Q_PROJ}.lora_A.weight", 4, 32, dtype=torch.int8), "is of torch.int8"),
    "names of no PEFT": (add("model.norm.weight", 32), "wanted names that begin with base_model"),
    "a layer that is not there": (
        tensors(
            lambda held: held.update(
                {f"{Q_PROJ}9.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
            )
        ),
        r"1 of which the base has not \(model\.layers\.0\.self_attn\.q_proj9\.weight\)",
    ),
    "a saved layer that is not there": (
        add("base_model.model.score.weight", 2, 32),
        r"base has not \(score\.weight\)",
    ),
    "a resized vocabulary": (
        add("base_model.model.model.embed_tokens.weight", 130, 32),
        r"embed_tokens\.weight has the shape \(130, 32\), and the base's has \(128, 32\)",
    ),
    "rows that are not named": (
        add("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", 1, 32),
        "names no rows of model.embed_tokens",
    ),
    "rows behind the last": (
        lambda path: (
            config(trainable_token_indices=[128])(path),
            add(f"{Q_PROJ[:22]}.embed_tokens.token_adapter.trainable_tokens_delta", 1, 32)(path),
        ),
        "rows up to number 128 of a tensor of shape",
    ),
    "empty": (tensors(lambda held: held.clear()), "holds no tensors"),
}


@pytest.fixture(scope="module")
def simple(folder: Path, bases: Callable[[str], Path]) -> Path:
    return adapter(bases("llama"), folder / "simple", target_modules=["q_proj"])


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, simple: Path, tmp_path: Path, bases: Callable[[str], Path]) -> None:
    change, wanted = REFUSED[kind]
    path = shutil.copytree(simple, tmp_path / "adapter")
    change(path)
    with pytest.raises(LinesError, match=wanted) as error:
        Adapter.open(path, shapes(bases("llama")))
    assert str(path) in str(error.value)


def test_another_width(simple: Path, tmp_path: Path) -> None:
    wider = models.llama(tmp_path / "wider", layers=2, hidden=64, tokenizer=False)
    with pytest.raises(LinesError, match=r"\(32, 32\), and the base's .* has \(64, 64\)\. Use"):
        Adapter.open(simple, shapes(wider))


def test_a_cut_pickle(simple: Path, tmp_path: Path, bases: Callable[[str], Path]) -> None:
    path = shutil.copytree(simple, tmp_path / "adapter")
    (path / WEIGHTS).rename(path / "adapter_model.bin")
    with pytest.raises(LinesError, match=r"adapter_model\.bin: cannot be read"):
        Adapter.open(path, shapes(bases("llama")))


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_tied_embeddings(target: str, tmp_path: Path, bases: Callable[[str], Path]) -> None:
    """PEFT would change both layers, of which the adapter was trained on one."""
    base = bases("tied")
    path = adapter(base, tmp_path / "adapter", target_modules=[target])
    with pytest.raises(LinesError, match="ntie the base first"):
        Adapter.open(path, shapes(base), base_config=load_config(base))


def test_a_convolution_in_groups(tmp_path: Path) -> None:
    """PEFT trains it and cannot merge it: A sees all channels, and the weight its group's."""
    made = peft.get_peft_model(
        torch.nn.ModuleDict({"conv": torch.nn.Conv1d(8, 8, 3, groups=2)}),
        peft.LoraConfig(r=4, target_modules=["conv"]),
    )
    made.save_pretrained(str(tmp_path))
    with pytest.raises(LinesError, match="a convolution in groups"):
        Adapter.open(tmp_path, {"conv.weight": (8, 4, 3), "conv.bias": (8,)})
