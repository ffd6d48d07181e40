"""A live model beside the loaded one: recipes of all kinds, offload, failures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mergekit_lines import LinesError, LiveModel
from mergekit_lines.engine import pieces
from mergekit_lines.evaluate import Settings, measure_all, parse_evaluators
from mergekit_lines.live import model as live_model
from mergekit_lines.live.blueprint import Blueprint
from tests import models, shaped
from tests.live.compare import assert_as_files, assert_as_merged, same_bits, weights

TIES = {"wrap": "ties", "density": 0.5, "alpha": 0.4, "beta": 0.5}
Recipe = dict[str, Any]


def made(folder: Path, architecture: str = "llama", **options: Any) -> Recipe:
    """Make a base and two fine-tuned models, and return a recipe of TIES over them."""
    base = models.ARCHITECTURES[architecture](folder / "base", **options)
    tuned = [models.finetuned(base, folder / n, seed=s, scale=0.05) for s, n in enumerate("ab")]
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in tuned],
        "parameters": dict(TIES),
    }


def opened(recipe: Recipe, **options: Any) -> LiveModel:
    """Open a recipe as a live model."""
    return LiveModel(recipe, quiet=True, **options)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """TIES over a bf16 LLaMA with a tied head. Its models are read, never written."""
    folder = tmp_path_factory.mktemp("llama")
    return made(folder, dtype=torch.bfloat16, tied=True)


@pytest.fixture
def own(tmp_path: Path) -> Recipe:
    """The same in fp32 and untied, of models that the test may change."""
    return made(tmp_path / "models")


def outputs(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a model's logits for some tokens, and what it generates from them."""
    tokens = torch.randint(4, 128, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
    return logits, model.generate(tokens, max_new_tokens=3, do_sample=False)


def logits_of(model: Any) -> torch.Tensor:
    """Return an encoder-decoder's logits for some tokens."""
    tokens = torch.randint(4, 128, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=tokens, decoder_input_ids=tokens).logits
    return found


def pickled(folder: Path) -> None:
    """Replace a checkpoint's safetensors by a pickle."""
    tensors = models.read(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


# --- the model is the one that transformers loads from the files ------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gpt2"])
def test_it_is_the_model_that_transformers_loads(architecture: str, tmp_path: Path) -> None:
    """Buffers, logits, generated tokens and mode are those of the merged files, loaded."""
    with opened(made(tmp_path, architecture, dtype=torch.bfloat16)) as live:
        live.set(beta=0.2)
        out = assert_as_merged(live, tmp_path / "out")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
        want = dict(loaded.named_buffers())
        got = dict(live.model.named_buffers())
        assert list(got) == list(want)
        assert [n for n in want if not same_bits(got[n], want[n])] == []
        assert not live.model.training
        assert not any(parameter.requires_grad for parameter in live.model.parameters())
        for one, other in zip(outputs(live.model), outputs(loaded), strict=True):
            assert torch.equal(one, other)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        assert live.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("tied", [False, True])
def test_an_encoder_decoder_is_tied_as_its_files_are(tied: bool, tmp_path: Path) -> None:
    """A T5 whose head is stored beside its embeddings keeps both, whatever its config says."""
    with opened(made(tmp_path, "t5", tied=tied)) as live:
        live.set(blocks="decoder.block", beta=0.3)
        out = assert_as_merged(live, tmp_path / "out")
        assert ("lm_head.weight" in models.read(out)) == (not tied)
        loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(out)
        assert torch.equal(logits_of(live.model), logits_of(loaded))


# --- recipes of all kinds ---------------------------------------------------------------------


def test_a_frankenmerge(recipe: Recipe, tmp_path: Path) -> None:
    """Slices make a model of six blocks out of four."""
    base, (a, b) = recipe["base_model"], [entry["model"] for entry in recipe["models"]]
    slices = [
        {"sources": [{"model": each, "layer_range": span} for each in (base, a, b)]}
        for span in ([0, 3], [1, 4])
    ]
    sliced = {key: value for key, value in recipe.items() if key != "models"} | {"slices": slices}
    with opened(sliced) as live:
        assert live.model.config.num_hidden_layers == 6
        live.set({"slices.1.sources.1.parameters.weight": 0.4}, beta=0.7)
        assert_as_merged(live, tmp_path / "out")
        with pytest.raises(LinesError, match="weights: found 2 numbers, wanted 0"):
            live.set(weights=[0.3, 0.7])


def test_a_union_of_vocabularies(tmp_path: Path) -> None:
    """Aligned embeddings are set as they are merged; the tokenizer is the union."""
    folders = []
    for seed, tokens in enumerate([(), ("alpha",), ("beta", "gamma")]):
        path = tmp_path / f"model{seed}"
        folders.append(models.llama(path, seed=seed, vocab=128 + len(tokens), tokens=tokens))
    recipe = {
        "merge_method": "lines",
        "base_model": str(folders[0]),
        "models": [{"model": str(path)} for path in folders[1:]],
        "parameters": dict(TIES),
        "tokenizer": {"source": "union"},
    }
    with opened(recipe) as live:
        for settings in ({"beta": 0.2}, {"alpha": "auto"}):
            live.set(settings)
        out = assert_as_merged(live, tmp_path / "out")
        loaded = transformers.AutoTokenizer.from_pretrained(out)
        assert live.tokenizer.get_vocab() == loaded.get_vocab()
        assert len(live.tokenizer) == 131


def test_inputs_of_other_kinds(tmp_path: Path) -> None:
    """Shards, a pickle and an fp32 model beside bf16 ones, in one recipe with an out_dtype."""
    recipe = made(tmp_path, dtype=torch.bfloat16, max_shard_size="20KB")
    a, b = (Path(entry["model"]) for entry in recipe["models"])
    shutil.rmtree(a)
    models.finetuned(recipe["base_model"], a, seed=9, scale=0.05, dtype=torch.float32)
    for file in b.glob("*.json"):
        if file.name == models.INDEX:
            pickled(b)
            file.unlink()
    recipe |= {"dtype": "float32", "out_dtype": "float16"}
    with opened(recipe) as live:
        live.set(alpha="auto")
        live.set(beta=0.9)
        assert_as_merged(live, tmp_path / "out")


def test_one_block(tmp_path: Path) -> None:
    """A model of one block has one coefficient inside."""
    with opened(made(tmp_path, layers=1)) as live:
        summary = live.set(alpha=0.25, beta=0.5)
        assert summary.containers == {"model.layers": [[0.25]]}
        assert_as_merged(live, tmp_path / "out")


def test_it_goes_back_to_an_input(own: Recipe, tmp_path: Path) -> None:
    """``load`` gives the base or a fine-tuned model as it is; the next setting is right."""
    with opened(own) as live:
        for model in (None, own["models"][1]["model"]):
            live.load(model)
            assert_as_files(live, Path(model or own["base_model"]))
        live.set(beta=0.3)
        assert_as_merged(live, tmp_path / "out")


# --- offload ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [70_000, 45_000])
@pytest.mark.parametrize("tied", [True, False])
def test_offloaded_to_disk(tied: bool, limit: int, recipe: Recipe, tmp_path: Path) -> None:
    """Under a limit some parts lie on disk: weights, logits and tokens are those without it."""
    if not tied:
        recipe = made(tmp_path, dtype=torch.bfloat16)
    working = Blueprint(recipe).working
    limits = {"cpu": working + limit}
    with opened(recipe) as free, opened(recipe, max_memory=limits) as live:
        assert set(live.accounting.weights) == {"cpu", "disk"}
        assert live.accounting.weights["cpu"] <= limit
        assert sum(live.accounting.weights.values()) == free.accounting.weights["cpu"]
        for settings in ({"beta": 0.1}, {"weights": [0.2, 0.9]}):
            free.set(settings)
            live.set(settings)
            got, want = weights(live), weights(free)
            assert [n for n in want if not same_bits(got[n], want[n])] == []
            for one, other in zip(outputs(live.model), outputs(free.model), strict=True):
                assert torch.equal(one, other)
        live.load()
        free.load()
        assert torch.equal(outputs(live.model)[0], outputs(free.model)[0])


def test_task_vectors_beyond_the_budget_lie_on_disk(own: Recipe, tmp_path: Path) -> None:
    """With a budget for some task vectors the others go to files, and nothing else changes."""
    place = tmp_path / "offload"
    place.mkdir()
    with opened(own, memory_budget=100_000, offload_folder=place) as live:
        for settings in ({"beta": 0.1}, {"alpha": 0.7}, {"density": 0.7}, {"beta": 0.3}):
            live.set(settings)
        kept = sum(file.stat().st_size for file in place.rglob("*.tau"))
        assert live.accounting.vectors - 100_000 <= kept < live.accounting.vectors
        assert_as_merged(live, tmp_path / "out")
    assert list(place.iterdir()) == []


# --- failures ---------------------------------------------------------------------------------

REFUSED = [
    ({"bta": 0.3}, "parameters.bta: nobody declares this name. Did you mean 'beta'"),
    ({"beta": float("nan")}, "parameters.beta: found nan"),
    ({"beta": "much"}, "parameters.beta: found 'much'"),
    ({"beta": None}, "parameters.beta: found nothing"),
    ({"density": -1}, "density"),
    ({"wrap": "dare"}, "wanted `dare_linear` or `dare_ties`"),
    ({"weights": [1.0]}, "weights: found 1 numbers, wanted 2"),
    ({"weights": 0.5}, "weights: found 0.5, wanted a list of 2 numbers"),
    ({"models.2.parameters.weight": 0.5}, "no models.2, wanted a number from 0 to 1"),
    ({"models.-1.parameters.weight": 0.5}, "wanted a number from 0 to 1"),
    ({"modules.parameters.weight": 0.5}, "the recipe has no modules"),
    ({"base_model.x": 1}, "found a key outside of parameters"),
    ({"out_dtype.": 1}, "found a key outside of parameters"),
    ({"blocks": "nothing.here"}, "nothing.here"),
    ({"beta": [{"filter": "nothing", "value": 1}]}, "the filter 'nothing' matches no tensor"),
]


def test_a_refused_setting_changes_nothing(recipe: Recipe) -> None:
    """Whatever is wrong with a setting, weights, recipe and coefficients are as they were."""
    with opened(recipe) as live:
        live.set(beta=0.2)
        before = {name: tensor.clone() for name, tensor in weights(live).items()}
        state = live.recipe, live.summary
        for settings, words in REFUSED:
            with pytest.raises(LinesError) as refusal:
                live.set(settings)
            assert words in str(refusal.value)
            assert (live.recipe, live.summary) == state
            after = weights(live)
            assert [n for n in before if not same_bits(after[n], before[n])] == [], settings


def test_alpha_that_was_found_is_told_for_auto_alone(recipe: Recipe) -> None:
    """After auto, a number is reported as that number; auto again is what it was."""
    with opened(recipe) as live:
        found = live.set(alpha="auto").alpha
        assert live.set(alpha=0.3).alpha == 0.3
        assert live.set(alpha="auto").alpha == found


def test_nan_in_an_input(own: Recipe, tmp_path: Path) -> None:
    """An input that is not finite is refused by name when it is opened."""

    def spoil(tensors: models.Tensors) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = float("nan")

    models.rewrite(own["models"][0]["model"], spoil)
    with pytest.raises(LinesError, match=r"layers\.2\.mlp\.up_proj.*/a: found NaN"):
        opened(own)
    with opened(own | {"parameters": {**TIES, "allow_nonfinite": True}}) as live:
        with pytest.raises(LinesError, match="found NaN"):
            live.set(allow_nonfinite=False, beta=0.9)
        live.set(beta=0.1)
        assert_as_merged(live, tmp_path / "out")


@pytest.mark.parametrize("how", ["written", "replaced", "removed", "touched"])
def test_an_input_that_changes_is_refused(how: str, own: Recipe) -> None:
    """A file that is not what it was when it was opened is named, before anything is set."""
    file = Path(own["models"][1]["model"], "model.safetensors")
    with opened(own) as live:
        before = {name: tensor.clone() for name, tensor in weights(live).items()}
        if how == "written":
            with file.open("r+b") as handle:
                handle.seek(-4, os.SEEK_END)
                handle.write(b"\1\2\3\4")
        elif how == "replaced":
            shutil.copy2(file, file.with_name("new"))
            file.with_name("new").rename(file)
        elif how == "removed":
            file.unlink()
        else:
            os.utime(file, (1, 1))
        for change in (lambda: live.set(beta=0.1), live.load):
            with pytest.raises(LinesError, match=r"/b/model\.safetensors: changed"):
                change()
        after = weights(live)
        assert [n for n in before if not same_bits(after[n], before[n])] == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, LinesError("tensor x: refused")])
def test_a_setting_that_is_stopped_midway(
    error: Any, own: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C or a failure between tensors: the next setting is right, and no budget is lost."""
    with opened(own, memory_budget=200_000) as live:
        engine, count = live._engine, 0
        compute = engine._compute
        budget = engine.vectors._left

        def stop(*arguments: Any) -> None:
            nonlocal count
            count += 1
            compute(*arguments)
            if count == 12:
                raise error

        with monkeypatch.context() as patch:
            patch.setattr(engine, "_compute", stop)
            with pytest.raises(type(error) if isinstance(error, Exception) else error):
                live.set(density=0.7, beta=0.9)
        assert live.recipe["parameters"] == TIES
        live.set(beta=0.3)
        assert engine.vectors._left == budget
        assert_as_merged(live, tmp_path / "out")


def test_a_checkpoint_with_other_tensors_than_the_model(own: Recipe) -> None:
    """Names that are no parameters, and shapes that the config does not promise, are told."""
    for folder in (own["base_model"], *(entry["model"] for entry in own["models"])):
        models.edit_config(folder, intermediate_size=48)
    with pytest.raises(LinesError, match=r"LlamaForCausalLM: .* differ between recipe and config"):
        opened(own)


def test_a_recipe_of_another_method(own: Recipe) -> None:
    """Only coefficients of ours can be set."""
    with pytest.raises(LinesError, match="merge_method: found 'ties', wanted lines or lines_post"):
        opened(own | {"merge_method": "ties", "parameters": {"density": 0.5, "weight": 1.0}})


BAD_OPTIONS = [
    ({"max_memory": {"cpu": 1000}}, r"max_memory\['cpu'\]: found 1,000 bytes, of which merging"),
    ({"max_memory": {"disk": "1GiB"}}, r"max_memory\['cpu'\]: found 0 bytes"),
    ({"max_memory": {"cpu": "lots"}}, "max_memory: found {'cpu': 'lots'}"),
    ({"max_memory": {"gpu": "1GiB"}}, "max_memory: found {'gpu': '1GiB'}"),
    ({"max_memory": {"cpu": "1GiB"}, "device": "cpu"}, "max_memory: found device too"),
    ({"offload_folder": "/nowhere/at/all"}, "No such file or directory .*offload_folder"),
    ({"memory_budget": "4GiB"}, "memory_budget: found '4GiB', wanted a number of bytes"),
    ({"threads": 3}, "threads"),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS)
def test_bad_options(options: dict[str, Any], words: str, recipe: Recipe) -> None:
    """What cannot be is refused in one sentence when the model is opened."""
    with pytest.raises(LinesError, match=words):
        opened(recipe, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants a machine without a GPU")
@pytest.mark.parametrize("options", [{"device": "cuda"}, {"max_memory": {0: "1GiB"}}])
def test_a_gpu_that_is_not_there(options: dict[str, Any], recipe: Recipe) -> None:
    """A GPU that the machine lacks is refused by name."""
    with pytest.raises(LinesError, match=r"cuda|device"):
        opened(recipe, **options)


def test_a_closed_model(own: Recipe, tmp_path: Path) -> None:
    """A closed model says so, its files are gone, and its weights stay."""
    live = opened(own, memory_budget=0, offload_folder=tmp_path)
    before = outputs(live.model)[0]
    live.close()
    live.close()
    for change in (lambda: live.set(beta=0.1), live.load):
        with pytest.raises(LinesError, match="live model was closed"):
            change()
    assert torch.equal(outputs(live.model)[0], before)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96K", "tmpfs", disk]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("what", ["vectors", "weights"])
def test_a_full_disk(what: str, own: Recipe, small_disk: Path) -> None:
    """Task vectors or weights that find no room on disk are refused, and nothing is left."""
    options: dict[str, Any] = {"memory_budget": 0}
    if what == "weights":
        options = {"max_memory": {"cpu": Blueprint(own).working + 40_000}}
    with pytest.raises(LinesError, match=r"the disk is full, and .* bytes more"):
        opened(own, offload_folder=small_disk, **options)
    assert list(small_disk.iterdir()) == []


# --- accounting -------------------------------------------------------------------------------


def test_a_7b_model_fits_a_card_of_24_gb(tmp_path: Path) -> None:
    """LLaMA-2-7B in fp16 and what setting it takes are below 24 GB; all of it is on the card."""
    folders = [
        shaped.write(tmp_path / name, shaped.LLAMA.config, shaped.LLAMA.shapes, shaped.LLAMA.dtype)
        for name in ("base", "a", "b")
    ]
    for wrap in ({"wrap": "task_arithmetic"}, {"wrap": "ties", "density": 0.2}):
        recipe = {
            "merge_method": "lines",
            "base_model": str(folders[0]),
            "models": [{"model": str(path)} for path in folders[1:]],
            "parameters": {**wrap, "alpha": 0.5, "beta": 0.5},
        }
        plan = Blueprint(recipe, max_memory={0: "24GiB"}, options={"copy_tokenizer": False})
        accounting = plan.accounting()
        assert accounting.main == "0"
        assert accounting.weights == {"0": 2 * shaped.LLAMA.parameters}
        assert accounting.device < 24e9
        # Two pieces at once, or one of the largest tensor's size, in fp32; ten bytes too few fail.
        assert accounting.working < 3e9
        assert all(parameter.is_meta for parameter in plan.device_plan.model.parameters())


def test_a_gpus_limit_is_cut_by_what_merging_takes_there(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the largest tensor is one piece, of two models and seven more; not so on the CPU."""
    monkeypatch.setattr(pieces, "PIECE", 1 << 10)
    recipe = recipe | {"parameters": {"alpha": 0.4, "beta": 0.5}}
    tensors = models.read(Path(recipe["base_model"])).values()
    on_gpu, on_cpu = (4 * (2 + 7) * n for n in (max(t.numel() for t in tensors), 1 << 10))
    one = {"num_threads": 1, "copy_tokenizer": False}
    assert Blueprint(recipe, max_memory={"cpu": "1GiB"}, options=one).working == on_cpu
    assert Blueprint(recipe, max_memory={0: "1GiB", "cpu": "1GiB"}, options=one).working == on_gpu
    with pytest.raises(LinesError, match=rf"max_memory\[0\]: found {on_gpu:,} bytes, of which mer"):
        Blueprint(recipe, max_memory={0: on_gpu, "cpu": "1GiB"}, options=one)
    room = sum(tensor.nbytes for tensor in tensors) // 2
    limits = {0: on_gpu + room, "cpu": "1GiB"}
    placed = Blueprint(recipe, max_memory=limits, options=one).accounting().weights
    assert 0 < placed["0"] <= room and placed["cpu"] > 0


def test_the_recipe_is_a_copy(recipe: Recipe) -> None:
    """What the caller does with the recipe that he gave or got changes no live model."""
    given = json.loads(json.dumps(recipe))
    with opened(given) as live:
        given["parameters"]["beta"] = 9.0
        live.recipe["parameters"]["beta"] = 8.0
        assert live.recipe == recipe
        assert live_model.BUDGET == 4 << 30


def test_evaluators_find_an_offloaded_model_as_it_was(own: Recipe, tmp_path: Path) -> None:
    """What accelerate moves in and out for each block is no change that an evaluator left."""
    (tmp_path / "a.txt").write_text("tok10 tok11 tok12\n\ntok20 tok21")
    specs = [f"perplexity:{tmp_path}/a.txt", f"again=perplexity:{tmp_path}/a.txt?batch_size=1"]
    evaluators = parse_evaluators(specs, "validation", Settings())
    values, told = [], list[str]()
    for options in ({}, {"max_memory": {"cpu": Blueprint(own).working + 40_000}}):
        with opened(own, **options) as live:
            offloaded = any(each.is_meta for each in live.model.parameters())
            assert offloaded == bool(options)
            metrics = measure_all(evaluators, live.model, live.tokenizer, told.append)
            values.append(metrics["perplexity"].value)
            assert metrics["again"].value == pytest.approx(values[-1], rel=1e-5)
    assert values[1] == values[0]
    assert told == []
