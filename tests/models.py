"""Small real checkpoints for tests: made by transformers and PEFT, seeded, safetensors on disk.

Every maker writes one model folder and returns its path. The same arguments give the same
bytes. Importing this module imports torch but not transformers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock

INDEX = "model.safetensors.index.json"
# What git checks out in place of a large file where git-lfs is not installed.
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
SPECIAL_TOKENS = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
}

Tensors = dict[str, torch.Tensor]


# --- making models -----------------------------------------------------------------------


def save(
    model_class: str,
    config: Any,
    path: Path | str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str | None = None,
    tokenizer: bool = False,
    tokens: Sequence[str] = (),
) -> Path:
    """Build ``transformers.model_class(config)`` with seeded weights and save it to ``path``.

    Every parameter is transformers' own initial value plus N(0, 0.02) noise, so that norms,
    biases and constants are not trivial either. ``max_shard_size`` is in bytes, or "4KB".
    """
    import transformers

    path = Path(path)
    with _seeded(seed):
        model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a tied parameter comes once
            parameter.add_(0.02 * _noise(seed, name, parameter.shape))
    sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    model.to(dtype).save_pretrained(path, **sharding)
    if tokenizer:
        save_tokenizer(path, vocab=config.vocab_size, tokens=tokens)
    return path


def llama(
    path: Path | str,
    *,
    seed: int = 0,
    layers: int = 4,
    hidden: int = 32,
    vocab: int = 128,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    heads: int = 4,
    max_shard_size: int | str | None = None,
    tokenizer: bool = True,
    tokens: Sequence[str] = (),
) -> Path:
    """Save a ``LlamaForCausalLM`` with a word-level tokenizer (see :func:`save_tokenizer`)."""
    from transformers import LlamaConfig

    config = LlamaConfig(**_decoder(layers, hidden, vocab, heads), tie_word_embeddings=tied)
    return save(
        "LlamaForCausalLM",
        config,
        path,
        seed=seed,
        dtype=dtype,
        max_shard_size=max_shard_size,
        tokenizer=tokenizer,
        tokens=tokens,
    )


def qwen2(
    path: Path | str, *, layers: int = 4, hidden: int = 32, tied: bool = True, **options: Any
) -> Path:
    """Save a ``Qwen2ForCausalLM``: LLaMA's shape with biases on q, k and v; tied by default."""
    from transformers import Qwen2Config

    config = Qwen2Config(**_decoder(layers, hidden), tie_word_embeddings=tied)
    return save("Qwen2ForCausalLM", config, path, tokenizer=True, **options)


def gemma2(path: Path | str, *, layers: int = 4, hidden: int = 32, **options: Any) -> Path:
    """Save a ``Gemma2ForCausalLM``: four norms per block, tied embeddings."""
    from transformers import Gemma2Config

    config = Gemma2Config(**_decoder(layers, hidden), head_dim=hidden // 4)
    return save("Gemma2ForCausalLM", config, path, tokenizer=True, **options)


def mixtral(
    path: Path | str, *, layers: int = 3, hidden: int = 32, experts: int = 4, **options: Any
) -> Path:
    """Save a ``MixtralForCausalLM`` in checkpoint layout, one tensor per expert and matrix."""
    from transformers import MixtralConfig

    config = MixtralConfig(
        **_decoder(layers, hidden), num_local_experts=experts, num_experts_per_tok=2
    )
    return save("MixtralForCausalLM", config, path, tokenizer=True, **options)


def gpt_neox(path: Path | str, *, layers: int = 4, hidden: int = 32, **options: Any) -> Path:
    """Save a ``GPTNeoXForCausalLM``: fused qkv, biases, untied."""
    from transformers import GPTNeoXConfig

    shape = _decoder(layers, hidden)
    del shape["num_key_value_heads"]
    return save("GPTNeoXForCausalLM", GPTNeoXConfig(**shape), path, tokenizer=True, **options)


def gpt2(path: Path | str, *, layers: int = 4, hidden: int = 32, **options: Any) -> Path:
    """Save a ``GPT2LMHeadModel``: ``Conv1D`` matrices stored [in, out], tied."""
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=128,
        n_positions=64,
        n_embd=hidden,
        n_layer=layers,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    return save("GPT2LMHeadModel", config, path, tokenizer=True, **options)


def mamba(path: Path | str, *, layers: int = 4, hidden: int = 32, **options: Any) -> Path:
    """Save a ``MambaForCausalLM``: no attention, ``A_log`` and ``D`` per block, tied."""
    from transformers import MambaConfig

    config = MambaConfig(
        vocab_size=128,
        hidden_size=hidden,
        num_hidden_layers=layers,
        state_size=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return save("MambaForCausalLM", config, path, tokenizer=True, **options)


def bert_config(*, layers: int, hidden: int = 32, **options: Any) -> Any:
    """A small BERT's configuration."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=128,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=3,
        **options,
    )


def bert_seqcls(
    path: Path | str, *, layers: int = 4, hidden: int = 32, labels: int = 3, **options: Any
) -> Path:
    """Save a ``BertForSequenceClassification``."""
    config = bert_config(layers=layers, hidden=hidden, num_labels=labels)
    return save("BertForSequenceClassification", config, path, tokenizer=True, **options)


def t5(
    path: Path | str,
    *,
    encoder_layers: int = 3,
    decoder_layers: int = 4,
    hidden: int = 32,
    tied: bool = False,
    **options: Any,
) -> Path:
    """Save a ``T5ForConditionalGeneration`` of version 1.1 (gated GELU), two block lists.

    transformers 5 ties every new T5. An untied one is written as the published v1.1
    checkpoints are: ``lm_head.weight`` beside ``shared.weight``, and loads as such.
    """
    from transformers import T5Config

    config = T5Config(
        vocab_size=128,
        d_model=hidden,
        d_kv=hidden // 4,
        d_ff=2 * hidden,
        num_heads=4,
        num_layers=encoder_layers,
        num_decoder_layers=decoder_layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=tied,
        pad_token_id=3,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    path = save("T5ForConditionalGeneration", config, path, tokenizer=True, **options)
    if not tied:

        def untie(tensors: Tensors) -> None:
            shared = tensors["shared.weight"]
            head = _noise(options.get("seed", 0), "lm_head.weight", shared.shape)
            tensors["lm_head.weight"] = head.to(shared.dtype)

        rewrite(path, untie)
        edit_config(path, tie_word_embeddings=False)
    return path


def vit(
    path: Path | str, *, layers: int = 4, hidden: int = 32, labels: int = 3, **options: Any
) -> Path:
    """Save a ``ViTForImageClassification`` for 16x16 images in patches of 4."""
    from transformers import ViTConfig

    config = ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_labels=labels,
    )
    return save("ViTForImageClassification", config, path, **options)


def whisper(
    path: Path | str,
    *,
    encoder_layers: int = 3,
    decoder_layers: int = 4,
    hidden: int = 32,
    **options: Any,
) -> Path:
    """Save a ``WhisperForConditionalGeneration``: two convolutions, two block lists, tied."""
    from transformers import WhisperConfig

    config = WhisperConfig(
        vocab_size=128,
        d_model=hidden,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=2 * hidden,
        decoder_ffn_dim=2 * hidden,
        num_mel_bins=8,
        max_source_positions=32,
        max_target_positions=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
    )
    return save("WhisperForConditionalGeneration", config, path, tokenizer=True, **options)


ARCHITECTURES: dict[str, Callable[..., Path]] = {
    "llama": llama,
    "qwen2": qwen2,
    "gemma2": gemma2,
    "mixtral": mixtral,
    "gpt_neox": gpt_neox,
    "gpt2": gpt2,
    "mamba": mamba,
    "bert_seqcls": bert_seqcls,
    "t5": t5,
    "vit": vit,
    "whisper": whisper,
}


def save_tokenizer(path: Path | str, *, vocab: int = 128, tokens: Sequence[str] = ()) -> Path:
    """Save a word-level tokenizer of ``vocab`` entries, of which ``tokens`` are the last.

    The others are the four special tokens and the words w0, w1, … So ``vocab=130,
    tokens=("alpha", "beta")`` is the default vocabulary plus two words, and ``vocab=128,
    tokens=("alpha",)`` has one word in the place of another.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    special = list(SPECIAL_TOKENS.values())
    words = [f"w{number}" for number in range(vocab - len(special) - len(tokens))]
    entries = [*special, *words, *tokens]
    model = tokenizers.models.WordLevel(
        {entry: number for number, entry in enumerate(entries)}, unk_token="<unk>"
    )
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL_TOKENS).save_pretrained(path)
    return Path(path)


def once(path: Path, make: Callable[[Path], Path]) -> Path:
    """Return the checkpoint at ``path``; the first of a run's processes that asks makes it."""
    with FileLock(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            # What has its name is whole, also where a process was ended while it made one.
            part = path.with_name(f"{path.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            make(part).rename(path)
    return path


def finetuned(
    base_path: Path | str,
    path: Path | str,
    *,
    seed: int,
    scale: float = 0.01,
    dtype: torch.dtype | None = None,
) -> Path:
    """Copy the checkpoint ``base_path`` to ``path`` with Gaussian noise on every float tensor.

    The noise of a tensor has the standard deviation ``scale`` times that of the tensor times a
    number in [0.5, 1.5) that hangs on the tensor's name. Shards, ties (a tied tensor is stored
    once), config and tokenizer stay as they are, but for ``dtype`` where it is given.
    """
    base_path, path = Path(base_path), Path(path)
    shutil.copytree(base_path, path, dirs_exist_ok=True)

    def perturb(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                std = tensor.float().std(correction=0).item() or 1.0
                deviation = scale * std * (0.5 + zlib.crc32(name.encode()) / 2**32)
                moved = tensor.float() + deviation * _noise(seed, name, tensor.shape)
                tensors[name] = moved.to(dtype or tensor.dtype)

    rewrite(path, perturb)
    if dtype is not None:
        edit_config(path, dtype=str(dtype).removeprefix("torch."))
    return path


def lora(
    base_path: Path | str,
    path: Path | str,
    *,
    seed: int,
    r: int = 4,
    alpha: int = 8,
    rslora: bool = False,
    dora: bool = False,
    targets: Sequence[str] = ("q_proj", "v_proj"),
) -> Path:
    """Save a PEFT LoRA adapter of the checkpoint ``base_path`` whose update is not zero."""
    import peft
    import transformers

    base_path, path = Path(base_path), Path(path)
    config = json.loads((base_path / "config.json").read_text(encoding="utf-8"))
    (model_class,) = config["architectures"]
    base = getattr(transformers, model_class).from_pretrained(base_path)
    task_types = {"CausalLM": "CAUSAL_LM", "ConditionalGeneration": "SEQ_2_SEQ_LM"}
    adapter = peft.LoraConfig(
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
        use_dora=dora,
        target_modules=list(targets),
        task_type=next((t for end, t in task_types.items() if model_class.endswith(end)), None),
        init_lora_weights=True,
    )
    with _seeded(seed), warnings.catch_warnings():
        # PEFT still asks transformers for a name that transformers calls deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(base, adapter)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:  # A, B, and DoRA's magnitude vector
                parameter.add_(0.02 * _noise(seed, name, parameter.shape).to(parameter.dtype))
    model.save_pretrained(str(path))
    return path


# --- reading, comparing, editing ---------------------------------------------------------


def read(path: Path | str) -> Tensors:
    """Return every tensor of a checkpoint folder, sharded or single, by name.

    Raises:
        AssertionError: the folder has no safetensors file, two files hold one name, or the
            index does not name exactly what the files hold.
    """
    path = Path(path)
    tensors: Tensors = {}
    files: dict[str, str] = {}
    for file in sorted(path.glob("*.safetensors")):
        for name, tensor in _load(file).items():
            assert name not in tensors, f"{name} is both in {files[name]} and in {file.name}"
            tensors[name] = tensor
            files[name] = file.name
    assert files, f"no safetensors file in {path}"
    if (path / INDEX).exists():
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        assert index["weight_map"] == files, f"{path / INDEX} does not name what the files hold"
    return tensors


def digest(path: Path | str) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by its path relative to the folder.

    Of a report without its "run": seconds, threads and memory are of the run, and not of what
    it made.
    """
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(_lasting(file)).hexdigest()
        for file in files
    }


def _lasting(file: Path) -> bytes:
    content = file.read_bytes()
    if file.name != "lines_report.json":
        return content
    report = json.loads(content)
    report.pop("run", None)
    return json.dumps(report).encode()


def weights_digest(path: Path | str) -> dict[str, str]:
    """Return :func:`digest` of what loading a model reads: weights, index, config, tokenizer."""
    starts = ("config.json", "generation_config", "tokenizer", "special_tokens_map", "merges.txt")
    ends = (".safetensors", ".safetensors.index.json")
    return {
        name: value
        for name, value in digest(path).items()
        if name.startswith((*starts, "vocab", "added_tokens")) or name.endswith(ends)
    }


def rewrite(path: Path | str, edit: Callable[[Tensors], Tensors | None]) -> Path:
    """Load all tensors of a checkpoint, let ``edit`` change the dictionary, and save them again.

    ``edit`` changes its argument in place or returns another dictionary. A tensor stays in its
    file; a new one goes to the last file. A folder with an index keeps one that is right.
    """
    path = Path(path)
    held = {file: list(_load(file)) for file in sorted(path.glob("*.safetensors"))}
    tensors = read(path)
    edited = edit(tensors)
    tensors = tensors if edited is None else edited
    old = {name for names in held.values() for name in names}
    held[list(held)[-1]] += [name for name in tensors if name not in old]
    weight_map = {}
    for file, names in held.items():
        kept = {name: tensors[name].clone().contiguous() for name in names if name in tensors}
        safetensors.torch.save_file(kept, file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(kept, file.name))
    if (path / INDEX).exists():
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        index["metadata"]["total_size"] = sum(t.nbytes for t in tensors.values())
        index["weight_map"] = dict(sorted(weight_map.items()))
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return path


def edit_config(path: Path | str, **changes: Any) -> None:
    """Set keys of a checkpoint's config.json."""
    file = Path(path) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def max_error_ratio(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return max|got - want| / max|want| in float64; NaN where either holds one.

    Two tensors without entries, or all of zeros, have the ratio 0.
    """
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, wanted {tuple(want.shape)}"
    if want.numel() == 0:
        return 0.0
    got, want = got.to(torch.float64), want.to(torch.float64)
    error = (got - want).abs().max().item()
    size = want.abs().max().item()
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / size


# --- parts -------------------------------------------------------------------------------


def _decoder(layers: int, hidden: int, vocab: int = 128, heads: int = 4) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }


def _noise(seed: int, name: str, shape: Iterable[int]) -> torch.Tensor:
    """Return N(0, 1) in fp32 that hangs on seed, name and shape only, not on any order."""
    # A hash of both: torch's CPU generator looks at the low 32 bits of its seed only.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    return torch.randn(tuple(shape), generator=generator)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside the block only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _load(file: Path) -> Tensors:
    # From bytes, not load_file: that maps the file, and rewriting a mapped file is a SIGBUS.
    return dict(sorted(safetensors.torch.load(file.read_bytes()).items()))
