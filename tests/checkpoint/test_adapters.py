"""Adapters read over their base, against what PEFT merges in fp32."""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers

from mergekit_lines.checkpoint.adapters.adapter import Adapter
from mergekit_lines.checkpoint.sources import HeldTensor, Source
from mergekit_lines.errors import LinesError
from tests import models

TOLERANCE = 1e-6
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass
class Counted:
    """A source that counts the entries that are read of it."""

    source: Source
    entries: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    def read_into(self, start: int, stop: int, into: torch.Tensor) -> None:
        self.entries += stop - start
        self.source.read_into(start, stop, into)


@contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(base: Path) -> Any:
    (name,) = json.loads((base / "config.json").read_text())["architectures"]
    return getattr(transformers, name).from_pretrained(base, dtype=torch.float32)


def adapter(
    base: Path,
    path: Path,
    *,
    model: Any = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Path:
    """Save an adapter of which every trained tensor is far from what PEFT began with."""
    with quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = peft.get_peft_model(model or load(base), peft.LoraConfig(**{"r": 4, **options}))
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        made.save_pretrained(str(path))
    if dtype != torch.float32:
        tensors = models.read(path)
        cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        safetensors.torch.save_file(cast, path / WEIGHTS)
    return path


def merged_by_peft(base: Path, path: Path) -> models.Tensors:
    """Return the tensors of PEFT's merge under the names that they have in a checkpoint."""
    with quietly():
        merged = peft.PeftModel.from_pretrained(load(base), str(path)).merge_and_unload()
        merged.save_pretrained(path / "merged")
    return models.read(path / "merged")


def load_config(base: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(base)


def shapes(base: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in models.read(base).items()}


def read(source: Source, step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    result = torch.full(source.shape, torch.nan, dtype=dtype)
    flat = result.view(-1)
    for start in range(0, len(flat), step):
        stop = min(start + step, len(flat))
        source.read_into(start, stop, flat[start:stop])
    return result


def check_same(opened: Adapter, base: models.Tensors, wanted: models.Tensors) -> None:
    """Check every tensor of the base in pieces of several sizes against PEFT's."""
    assert opened.reason is None
    for name, tensor in base.items():
        source = opened.source(name, HeldTensor(tensor))
        if name not in opened.touched:
            assert torch.equal(tensor.float(), wanted[name].float()), name
            assert isinstance(source, HeldTensor)
            continue
        assert not torch.equal(tensor.float(), wanted[name]), f"{name} is not changed"
        for step in (7, 33, 129, tensor.numel()):
            got = read(source, step)
            assert models.max_error_ratio(got, wanted[name]) < TOLERANCE, (name, step)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def bases(folder: Path) -> Callable[[str], Path]:
    """Bases of one or two blocks by name, made when they are asked for."""
    makers: dict[str, Callable[[Path], Path]] = {
        "llama": lambda path: models.llama(path, layers=2, tokenizer=False),
        "bf16": lambda path: models.llama(path, layers=1, tokenizer=False, dtype=torch.bfloat16),
        "tied": lambda path: models.llama(path, layers=1, tokenizer=False, tied=True),
        "qwen2": lambda path: models.qwen2(path, layers=1, tied=False),
        "gpt2": lambda path: models.gpt2(path, layers=2),
        "vit": lambda path: models.vit(path, layers=1),
        "whisper": lambda path: models.whisper(path, encoder_layers=1, decoder_layers=1),
        "mixtral": lambda path: models.mixtral(path, layers=1),
    }

    def get(name: str) -> Path:
        path = folder / "bases" / name
        return path if path.exists() else makers[name](path)

    return get


ATTENTION = ["q_proj", "v_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": [*ATTENTION, "up_proj", "down_proj"]}),
    "rslora": ("llama", {"target_modules": ATTENTION, "use_rslora": True, "lora_alpha": 3}),
    "patterns": (
        "llama",
        {
            "target_modules": [*ATTENTION, "down_proj"],
            "rank_pattern": {"down_proj": 2, r"model\.layers\.1\.self_attn\.q_proj": 3, "oj": 9},
            "alpha_pattern": {"v_proj": 5, r"layers.*_proj": 7},
        },
    ),
    "dora": (
        "llama",
        {"target_modules": ["q_proj", "k_proj", "down_proj", "lm_head"], "use_dora": True},
    ),
    "dora_rslora": ("qwen2", {"target_modules": ATTENTION, "use_dora": True, "use_rslora": True}),
    "gaussian": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "gaussian"}),
    "modules_to_save": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm", "embed_tokens"]},
    ),
    "bias_all": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}),
    "bias_lora_only": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "lora_bias": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True, "lora_alpha": 12}),
    "lora_bias_trained": (
        "qwen2",
        {"target_modules": ["q_proj"], "lora_bias": True, "bias": "all", "lora_alpha": 12},
    ),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "embedding_dora": ("llama", {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [101, 3, 4]}),
    "tokens_named": (
        "tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 127]}},
    ),
    # c_proj of the attention is square: its shape does not show that it is stored [in, out].
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc", "c_proj"], "bias": "all"}),
    "conv1d_dora": ("gpt2", {"target_modules": ["c_fc", "c_proj"], "use_dora": True}),
    "conv2d": ("vit", {"target_modules": ["projection"], "modules_to_save": ["classifier"]}),
    "conv2d_dora": ("vit", {"target_modules": ["projection", "classifier"], "use_dora": True}),
    # transformers names most of these layers otherwise than checkpoints do.
    "renamed": ("vit", {"target_modules": "all-linear"}),
    "conv1d_audio": ("whisper", {"target_modules": ["conv1", "conv2", "q_proj"]}),
    "bf16": ("bf16", {"target_modules": ATTENTION, "dtype": torch.bfloat16}),
    "fp16": ("bf16", {"target_modules": ATTENTION, "dtype": torch.float16, "use_dora": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_is_what_peft_merges(kind: str, folder: Path, bases: Callable[[str], Path]) -> None:
    name, options = KINDS[kind]
    base, path = bases(name), folder / kind
    adapter(base, path, **options)
    opened = Adapter.open(path, shapes(base), base_config=load_config(base))
    assert opened.fingerprint_files == [path / CONFIG, path / WEIGHTS]
    check_same(opened, models.read(base), merged_by_peft(base, path))


def test_listing(folder: Path, bases: Callable[[str], Path]) -> None:
    options = {"target_modules": ["q_proj"], "bias": "all", "lora_bias": True, "use_rslora": True}
    path = adapter(bases("qwen2"), folder / "listing", **options)
    layer = "model.layers.0.self_attn"
    assert Adapter.open(path, shapes(bases("qwen2"))).touched == {
        f"{layer}.q_proj.weight": "LoRA of rank 4",
        f"{layer}.q_proj.bias": "saved whole and LoRA's bias",
        f"{layer}.k_proj.bias": "saved whole",
        f"{layer}.v_proj.bias": "saved whole",
    }


def test_pickled(folder: Path, bases: Callable[[str], Path]) -> None:
    base, path = (
        bases("llama"),
        adapter(bases("llama"), folder / "pickled", target_modules=ATTENTION),
    )
    wanted = merged_by_peft(base, path)
    torch.save(models.read(path), path / "adapter_model.bin")
    (path / WEIGHTS).unlink()
    opened = Adapter.open(path, shapes(base))
    assert opened.fingerprint_files == [path / CONFIG, path / "adapter_model.bin"]
    check_same(opened, models.read(base), wanted)


def test_flag_of_another_layer(folder: Path, bases: Callable[[str], Path]) -> None:
    """PEFT turns its flag off again when it comes to a Linear after the Conv1Ds."""
    base = bases("gpt2")
    path = adapter(base, folder / "flag", target_modules=["attn.c_proj"])
    wanted = merged_by_peft(base, path)
    edit_config(path, fan_in_fan_out=False)
    check_same(Adapter.open(path, shapes(base)), models.read(base), wanted)


def test_float64_and_no_entries(folder: Path, bases: Callable[[str], Path]) -> None:
    base, path = bases("llama"), adapter(bases("llama"), folder / "double", **KINDS["dora"][1])
    opened, name = Adapter.open(path, shapes(base)), "model.layers.0.self_attn.q_proj.weight"
    source = opened.source(name, HeldTensor(models.read(base)[name].double()))
    assert source.dtype == torch.float64
    got = read(source, 77, torch.float64)
    assert models.max_error_ratio(got, merged_by_peft(base, path)[name]) < TOLERANCE
    assert torch.equal(got, read(source, 32 * 32, torch.float64))
    source.read_into(5, 5, torch.empty(0))


def test_an_adapter_over_an_adapter(folder: Path, bases: Callable[[str], Path]) -> None:
    base = bases("llama")
    path = adapter(base, folder / "twice", target_modules=["q_proj"])
    opened, name = Adapter.open(path, shapes(base)), "model.layers.0.self_attn.q_proj.weight"
    tensor = HeldTensor(models.read(base)[name])
    once, twice = opened.source(name, tensor), opened.source(name, opened.source(name, tensor))
    wanted = 2 * read(once, 100) - tensor.held
    assert models.max_error_ratio(read(twice, 100), wanted) < TOLERANCE


def test_threads_share_a_source(folder: Path, bases: Callable[[str], Path]) -> None:
    base = bases("llama")
    path = adapter(base, folder / "threads", target_modules=["embed_tokens"], use_dora=True)
    opened, name = Adapter.open(path, shapes(base)), "model.embed_tokens.weight"
    tensor = HeldTensor(models.read(base)[name])
    source, wanted = opened.source(name, tensor), merged_by_peft(base, path)[name]
    entries = wanted.numel()
    got = torch.empty(entries)
    bounds = [(start, min(start + 123, entries)) for start in range(0, entries, 123)]

    def work(first: int) -> None:
        for start, stop in bounds[first::4]:
            source.read_into(start, stop, got[start:stop])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert models.max_error_ratio(got.view_as(wanted), wanted) < TOLERANCE
    assert opened.touched[name] == "saved whole and DoRA of rank 4"


def test_only_what_is_asked_for_is_read(folder: Path, bases: Callable[[str], Path]) -> None:
    base, name = bases("llama"), "model.layers.0.self_attn.q_proj.weight"
    for kind, wanted in (("lora", 40), ("dora", 64)):  # a norm needs the two rows whole
        path = adapter(
            base, folder / f"read_{kind}", target_modules=["q_proj"], use_dora=kind == "dora"
        )
        tensor = Counted(HeldTensor(models.read(base)[name]))
        Adapter.open(path, shapes(base)).source(name, tensor).read_into(70, 110, torch.empty(40))
        assert tensor.entries == wanted


def test_names_without_the_inner_models_name(folder: Path, bases: Callable[[str], Path]) -> None:
    """As published GPT-2 checkpoints are, and as adapters of a bare model are."""
    base = bases("gpt2")
    path = adapter(base, folder / "inner", target_modules=["c_attn"])
    prefix = "transformer."
    wanted = {key.removeprefix(prefix): one for key, one in merged_by_peft(base, path).items()}
    bare = {key.removeprefix(prefix): one for key, one in models.read(base).items()}
    check_same(
        Adapter.open(path, {key: tuple(one.shape) for key, one in bare.items()}), bare, wanted
    )

    tensors = models.read(path)
    shorter = {key.replace(prefix, ""): one for key, one in tensors.items()}
    safetensors.torch.save_file(shorter, path / WEIGHTS)
    opened = Adapter.open(path, shapes(base))
    check_same(opened, models.read(base), {prefix + key: one for key, one in wanted.items()})


def test_names_of_another_transformers(folder: Path, bases: Callable[[str], Path]) -> None:
    """A checkpoint keeps its first names; an adapter has those of the release it was made with."""
    base = bases("mixtral")
    names, config = shapes(base), load_config(base)
    path = adapter(base, folder / "experts", target_modules=["q_proj"])
    expert = "model.layers.0.block_sparse_moe.experts.1.w1"
    router = "model.layers.0.block_sparse_moe.gate.weight"

    def hold(**tensors: tuple[int, ...]) -> None:
        held = {f"base_model.model.{key}": torch.ones(shape) for key, shape in tensors.items()}
        safetensors.torch.save_file(held, path / WEIGHTS)

    sides = {"A": (4, 32), "B": (names[f"{expert}.weight"][0], 4)}
    hold(**{f"{expert}.lora_{side}.weight": shape for side, shape in sides.items()})
    assert list(Adapter.open(path, names).touched) == [f"{expert}.weight"]
    renamed = router.replace("block_sparse_moe", "mlp")
    hold(**{renamed: names[router]})
    assert list(Adapter.open(path, names, base_config=config).touched) == [router]
    with pytest.raises(LinesError, match="1 of which the base has not"):
        Adapter.open(path, names)
    hold(**{"model.layers.0.mlp.experts.down_proj": (4, 32, 64)})
    opened = Adapter.open(path, names, base_config=config)
    assert opened.reason == "transformers fuses tensors that it changes"
    assert not opened.touched


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
        assert not opened.touched
    else:
        assert opened.reason is None
        assert opened.touched


# --- what is refused -----------------------------------------------------------------------

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def cut(path: Path) -> None:
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-5])


def text(content: str) -> Callable[[Path], None]:
    return lambda path: (path / CONFIG).write_text(content) and None


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda path: edit_config(path, **changes)


def tensors(edit: Callable[[models.Tensors], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        held = models.read(path)
        edit(held)
        safetensors.torch.save_file(held, path / WEIGHTS)

    return change


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


def edit_config(path: Path, **changes: Any) -> None:
    file = path / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
