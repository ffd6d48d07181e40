"""The engine in whole merges: what it reads, how it reads adapters, what it holds in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergekit_lines.checkpoint import opened, sources
from mergekit_lines.checkpoint.sources import ShardTensor
from mergekit_lines.engine import jobs
from mergekit_lines.engine import pieces as merging
from mergekit_lines.engine.jobs import Job
from mergekit_lines.kernels.merge import Merge
from tests import models
from tests.e2e.runner import in_process

SOUP = {"wrap": "task_arithmetic", "alpha": 0.4, "beta": 0.5, "weight": 0.5}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Bytes that merges read from each file, by its name."""
    counted: dict[str, int] = {}
    close = opened.OpenedModels.close

    def closing(self: opened.OpenedModels) -> None:
        for shard in (*self.shards.values(), *self.adapters):
            counted[f"{shard.path.parent.name}/{shard.path.name}"] = shard.bytes_read
        close(self)

    monkeypatch.setattr(opened.OpenedModels, "close", closing)
    return counted


def recipe(base: Path, others: list[str], **parameters: Any) -> dict[str, Any]:
    """Return a recipe of ``lines``."""
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": other} for other in others],
        "parameters": parameters,
    }


def tensor_bytes(folder: Path) -> int:
    """Return the bytes of a checkpoint's tensors."""
    return sum(tensor.nbytes for tensor in models.read(folder).values())


@pytest.fixture(scope="module")
def soup(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bf16 base with three adapters: LoRA, rsLoRA, DoRA."""
    here = tmp_path_factory.mktemp("soup")
    base = models.llama(here / "base", seed=1, dtype=torch.bfloat16)
    return {
        "base": base,
        "plain": models.lora(base, here / "plain", seed=2),
        "rs": models.lora(base, here / "rs", seed=3, rslora=True),
        "dora": models.lora(base, here / "dora", seed=4, dora=True),
    }


def merged(base: Path, adapter: Path, path: Path) -> Path:
    """Save what peft makes of base and adapter, in fp32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    whole = PeftModel.from_pretrained(loaded, str(adapter)).merge_and_unload()
    whole.save_pretrained(path)
    return path


@pytest.mark.parametrize("wrap", ["task_arithmetic", "ties", "dare_ties", "sce"])
def test_adapters_equal_peft(wrap: str, soup: Mapping[str, Path], tmp_path: Path) -> None:
    """``base+adapter`` entries give what peft's merged models give in fp32, kernel or not."""
    whole = {
        name: merged(soup["base"], soup[name], tmp_path / name) for name in ("plain", "rs", "dora")
    }
    words: dict[str, Any] = {"wrap": wrap, "alpha": 0.4, "beta": 0.5}
    words |= {"weight": 0.5, "density": 0.5} if wrap != "sce" else {"select_topk": 0.5}
    adapted = recipe(soup["base"], [f"{soup['base']}+{soup[name]}" for name in whole], **words)
    plain = recipe(soup["base"], [str(path) for path in whole.values()], **words)
    got = models.read(in_process({**adapted, "out_dtype": "float32"}, tmp_path / "adapted"))
    want = models.read(in_process({**plain, "out_dtype": "float32"}, tmp_path / "plain-out"))
    flips = 0
    for name, tensor in want.items():
        error = (got[name] - tensor).abs()
        bound = 1e-6 * tensor.abs().max()
        # peft adds in another order: an entry at TIES's threshold may fall on its other side.
        flips += int((error > bound).sum())
    assert flips <= (0 if wrap in ("task_arithmetic", "dare_ties") else 2)


@pytest.mark.parametrize("kernels", ["torch", "compiled"])
def test_a_soup_reads_its_base_once(
    soup: Mapping[str, Path],
    tmp_path: Path,
    read: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    kernels: str,
) -> None:
    """Adapters over one base: the base's bytes are read once, and no copy of it is written."""
    monkeypatch.setenv("MERGEKIT_LINES_KERNELS", kernels)
    entries = [f"{soup['base']}+{soup[name]}" for name in ("plain", "rs", "dora")]
    in_process(recipe(soup["base"], entries, **SOUP), tmp_path / "out", lora_merge_cache=None)
    assert read["base/model.safetensors"] == tensor_bytes(soup["base"])
    for name in ("plain", "rs", "dora"):
        size = (soup[name] / "adapter_model.safetensors").stat().st_size
        assert 0 < read[f"{name}/adapter_model.safetensors"] <= size
    assert not list(tmp_path.glob(".*"))


def test_full_models_are_read_once_per_pass(
    llama_bf16_base: Path,
    llama_bf16_a: Path,
    llama_bf16_b: Path,
    tmp_path: Path,
    read: dict[str, int],
) -> None:
    """One pass for task arithmetic with a given α; Eq. 2 adds one for every tensor but ties."""
    tuned = [str(llama_bf16_a), str(llama_bf16_b)]
    in_process(recipe(llama_bf16_base, tuned, **SOUP), tmp_path / "out")
    for folder in (llama_bf16_base, llama_bf16_a, llama_bf16_b):
        assert read[f"{folder.name}/model.safetensors"] == tensor_bytes(folder)
    twice = {**SOUP, "alpha": "auto", "normalize": True}  # no closed form
    in_process(recipe(llama_bf16_base, tuned, **twice), tmp_path / "twice")
    for folder in (llama_bf16_base, llama_bf16_a, llama_bf16_b):
        assert read[f"{folder.name}/model.safetensors"] == 2 * tensor_bytes(folder)


def test_an_adapter_of_another_kind_is_merged_by_peft(llama_base: Path, tmp_path: Path) -> None:
    """LoHa has no reader of ours: peft merges it into a copy that is gone afterwards."""
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama_base)
    config = peft.LoHaConfig(r=2, alpha=4, target_modules=["q_proj"], init_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(str(tmp_path / "loha"))
    want = adapted.merge_and_unload().state_dict()
    entry = f"{llama_base}+{tmp_path / 'loha'}"
    edit = {**recipe(llama_base, [entry], gamma=1.0), "merge_method": "lines_postprocess"}
    got = models.read(in_process(edit, tmp_path / "out"))
    for name, tensor in want.items():
        assert models.max_error_ratio(got[name], tensor) <= 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loha", "out"]


@pytest.mark.parametrize("wrap", ["task_arithmetic", "ties", "breadcrumbs_ties", "dare_ties"])
def test_pieces_change_nothing(
    wrap: str,
    llama_bf16_base: Path,
    llama_bf16_a: Path,
    llama_bf16_b: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensors cut into hundreds of pieces on three threads give the bytes of one piece on one."""
    words = {"wrap": wrap, "alpha": 0.4, "beta": 0.5, "weight": 0.5}
    words |= {"density": 0.5} if wrap != "task_arithmetic" else {}
    tuned = [str(llama_bf16_a), str(llama_bf16_b)]
    want = in_process(recipe(llama_bf16_base, tuned, **words), tmp_path / "one", num_threads=1)
    monkeypatch.setattr(merging, "PIECE", 96)
    got = in_process(recipe(llama_bf16_base, tuned, **words), tmp_path / "many", num_threads=3)
    assert models.weights_digest(got) == models.weights_digest(want)


def test_an_input_that_changes_while_it_is_read(
    llama_base: Path, llama_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that is replaced or cut during the merge is refused by name, and nothing is kept."""
    tuned = tmp_path / "tuned"
    original = ShardTensor._read
    for change in ("replaced", "cut", "touched"):
        shutil.copytree(llama_a, tuned)
        file = tuned / "model.safetensors"

        def read(
            self: ShardTensor,
            start: int,
            into: torch.Tensor,
            change: str = change,
            file: Path = file,
        ) -> None:
            original(self, start, into)
            if self.name != "model.layers.1.mlp.up_proj.weight" or not file.exists():
                return
            if change == "cut":
                with file.open("r+b") as handle:
                    handle.truncate(5_000)
            elif change == "replaced":
                shutil.copy(file, f"{file}.new")
                Path(f"{file}.new").rename(file)
            else:
                file.touch()

        with monkeypatch.context() as patch:
            patch.setattr(ShardTensor, "_read", read)
            with pytest.raises(Exception, match=r"tuned.model\.safetensors: (changed|ends)"):
                in_process(recipe(llama_base, [str(tuned)], **SOUP), tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["tuned"]
        shutil.rmtree(tuned)


def test_the_index_names_every_tensor_once(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """Shards are cut by ``--out-shard-size``; index and shards agree."""
    from safetensors import safe_open

    out = in_process(
        recipe(llama_base, [str(llama_a)], **SOUP), tmp_path / "out", out_shard_size=40_000
    )
    index = json.loads((out / "model.safetensors.index.json").read_text())
    held: dict[str, str] = {}
    for shard in sorted(out.glob("*.safetensors")):
        with safe_open(shard, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a shard is no mapping
                assert name not in held
                held[name] = shard.name
    assert held == index["weight_map"]
    assert len(set(held.values())) > 2
    assert index["metadata"]["total_size"] == tensor_bytes(out)


@pytest.mark.parametrize("wrap", ["task_arithmetic", "ties", "karcher"])
@pytest.mark.parametrize("kind", [torch.nn.Parameter, torch.nn.Buffer])
def test_pickled_parameters_are_tensors(
    kind: Any, wrap: str, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """A file of Parameters or Buffers merges as its tensors do; no gradient is thought of."""
    pickled = shutil.copytree(llama_a, tmp_path / "pickled")
    tensors = models.read(pickled)
    torch.save({name: kind(one) for name, one in tensors.items()}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    outs = [
        in_process(
            recipe(llama_base, [str(model)], wrap=wrap, alpha="auto", beta=0.4),
            tmp_path / f"of-{model.name}",
        )
        for model in (llama_a, pickled)
    ]
    assert models.weights_digest(outs[0]) == models.weights_digest(outs[1])


def test_a_pickled_adapter_is_the_same_every_time(soup: Mapping[str, Path], tmp_path: Path) -> None:
    """An adapter in ``.bin`` is read in the calibration and again in the merge; nothing adds up."""
    pickled = tmp_path / "pickled"
    shutil.copytree(soup["plain"], pickled)
    torch.save(
        {k: v.float() for k, v in load_file(soup["plain"] / "adapter_model.safetensors").items()},
        pickled / "adapter_model.bin",
    )
    (pickled / "adapter_model.safetensors").unlink()
    words = {"wrap": "ties", "density": 0.5, "weight": 1.0, "alpha": "auto", "beta": 0.4}
    outs = [
        in_process(
            recipe(
                soup["base"], [f"{soup['base']}+{path}", f"{soup['base']}+{soup['rs']}"], **words
            ),
            tmp_path / name,
        )
        for name, path in (("safe", soup["plain"]), ("bin", pickled))
    ]
    assert models.weights_digest(outs[0]) == models.weights_digest(outs[1])


@pytest.mark.parametrize("wrap", ["linear", "multislerp", "karcher"])
def test_adapters_over_bf16_with_a_wrap_that_has_no_kernel(
    wrap: str, soup: Mapping[str, Path], tmp_path: Path
) -> None:
    """The output keeps the base's dtype, though adapted tensors are computed in fp32."""
    entries = [f"{soup['base']}+{soup[name]}" for name in ("plain", "rs")]
    words = {"wrap": wrap, "alpha": 0.4, "beta": 0.5}
    words |= {} if wrap == "karcher" else {"weight": 0.5}
    out = models.read(in_process(recipe(soup["base"], entries, **words), tmp_path / "out"))
    assert {tensor.dtype for tensor in out.values()} == {torch.bfloat16}


def test_adapters_over_a_layout_that_mergekit_infers(tmp_path: Path) -> None:
    """Also where mergekit has no definition of the architecture an adapter is merged."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=64,
        max_position_embeddings=32,
        word_embed_proj_dim=32,
    )
    base = tmp_path / "opt"
    OPTForCausalLM(config).save_pretrained(base)
    adapter = models.lora(base, tmp_path / "adapter", seed=1)
    edit = {**recipe(base, [f"{base}+{adapter}"], gamma=1.0), "merge_method": "lines_postprocess"}
    out, start = models.read(in_process(edit, tmp_path / "out")), models.read(base)
    changed = {name for name in start if not torch.equal(out[name], start[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("rows", [120, 136])
def test_pickles_of_another_size_than_their_config(
    rows: int, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """What a pickle holds counts, and not what its config says: nothing is cut or filled up."""
    folders = []
    for source in (llama_base, llama_a):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        tensors = models.read(source)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], tensors[name]])[:rows].t().contiguous().t()
        torch.save(tensors, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        folders.append(folder)
    out = in_process(recipe(folders[0], [str(folders[1])], **SOUP), tmp_path / "out")
    merged = models.read(out)
    assert merged["model.embed_tokens.weight"].shape[0] == rows
    start, tuned = (
        torch.load(folder / "pytorch_model.bin")["lm_head.weight"] for folder in folders
    )
    want = start.double() + 0.4 * 0.5 * (tuned.double() - start.double())
    assert models.max_error_ratio(merged["lm_head.weight"], want) <= 1e-6


@pytest.mark.parametrize("wrap", ["ties", "dare_linear"])
def test_what_compiled_kernels_read(
    read: dict[str, int], llama_base: Path, tmp_path: Path, wrap: str, monkeypatch
) -> None:
    """A tensor is read twice, and a sample of it besides. Bytes are those of torch's kernels."""
    tuned = [models.finetuned(llama_base, tmp_path / name, seed=n) for n, name in enumerate("ab")]
    words = recipe(llama_base, list(map(str, tuned)), wrap=wrap, alpha=0.4, beta=0.5, density=0.4)
    want = models.weights_digest(in_process(words, tmp_path / "torch"))
    monkeypatch.setenv("MERGEKIT_LINES_KERNELS", "compiled")
    monkeypatch.setattr(merging, "PIECE", 1 << 9)
    read.clear()
    out = in_process(words, tmp_path / "compiled")
    for model in tuned:
        assert 2.0 <= read[f"{model.name}/model.safetensors"] / tensor_bytes(model) < 2.49
    assert models.weights_digest(out) == want


@pytest.mark.parametrize("wrap", ["ties", "dare_linear", "breadcrumbs_ties"])
def test_what_the_norms_had_to_know_is_not_sought_again(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path, wrap: str, monkeypatch
) -> None:
    """With `alpha: auto` a tensor's thresholds are found once; without room twice, as the bytes."""
    words = recipe(llama_base, [str(llama_a), str(llama_b)], wrap=wrap, beta=0.5, density=0.4)
    searches: list[Any] = []
    prepare = Merge.prepare

    def counting(self: Merge, *arguments: Any) -> Any:
        searches.append(self)
        return prepare(self, *arguments)

    monkeypatch.setattr(Merge, "prepare", counting)
    out = in_process(words, tmp_path / "out")
    tensors = len(models.read(out))
    assert len(searches) == tensors
    searches.clear()
    monkeypatch.setattr(jobs, "KEPT", -1)
    assert models.weights_digest(in_process(words, tmp_path / "again")) == (
        models.weights_digest(out)
    )
    assert len(searches) == 2 * tensors


def test_memory_that_runs_out_keeps_what_is_whole(
    llama_base: Path, llama_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full memory, or a disk that fails to read, is told as such; whole shards stay."""
    want = in_process(
        recipe(llama_base, [str(llama_a)], **SOUP), tmp_path / "want", out_shard_size=40_000
    )
    original = merging.merge_tensor

    def failing(job: Job, *arguments: Any) -> None:
        if job.name == "model.norm.weight":
            raise torch.OutOfMemoryError("no room")
        original(job, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("mergekit_lines.engine.engine.merge_tensor", failing)
        with pytest.raises(Exception, match="the memory is full"):
            in_process(
                recipe(llama_base, [str(llama_a)], **SOUP), tmp_path / "out", out_shard_size=40_000
            )
    assert list((tmp_path / ".out.partial").glob("*.safetensors"))
    out = in_process(
        recipe(llama_base, [str(llama_a)], **SOUP), tmp_path / "out", out_shard_size=40_000
    )
    assert models.weights_digest(out) == models.weights_digest(want)


def test_another_tokenizer_is_another_merge(
    llama_base: Path, llama_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted merge of aligned vocabularies does not go on with another tokenizer."""
    tuned = tmp_path / "tuned"
    shutil.copytree(llama_a, tuned)
    words = {**recipe(llama_base, [str(tuned)], **SOUP), "tokenizer": {"source": "base"}}

    def failing(job: Job, *_arguments: Any) -> None:
        raise torch.OutOfMemoryError(job.name)

    original = merging.merge_tensor
    calls: list[str] = []

    def counting(job: Job, *arguments: Any) -> None:
        calls.append(job.name)
        (failing if len(calls) > 30 else original)(job, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("mergekit_lines.engine.engine.merge_tensor", counting)
        with pytest.raises(Exception, match="the memory is full"):
            in_process(words, tmp_path / "out", out_shard_size=20_000)
    path = tuned / "tokenizer.json"
    tokens = json.loads(path.read_text())
    vocabulary = tokens["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(tokens))
    with pytest.raises(Exception, match="the tokenizers differ"):
        in_process(words, tmp_path / "out", out_shard_size=20_000)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="cannot count open files")
def test_more_shards_than_files_may_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The soft limit of open files is raised; where that is not enough it is told."""
    import resource

    base = models.llama(tmp_path / "base", max_shard_size=4_000)
    tuned = [models.finetuned(base, tmp_path / name, seed=1) for name in "ab"]
    shards = len(list(base.glob("*.safetensors")))
    assert shards > sources.ROOM / 3
    given = recipe(base, [str(path) for path in tuned], **SOUP)
    want = in_process(given, tmp_path / "want")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    free = (number for number in range(soft) if number not in taken)
    few = next(number for place, number in enumerate(free) if place == 2 * shards + 10)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        out = in_process(given, tmp_path / "out")
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        monkeypatch.setattr(sources, "_allow_files", lambda _: None)
        with pytest.raises(Exception, match=r"\.safetensors: cannot be opened .* Raise the limit"):
            in_process(given, tmp_path / "again")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert models.weights_digest(out) == models.weights_digest(want)
