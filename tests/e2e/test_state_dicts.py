"""Whole models in memory and ``mergekit-pytorch``: the values of ``mergekit-yaml``'s files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from mergekit.merge_methods import merge_state_dicts, merge_tensors
from mergekit.merge_methods.base import PerGroupValues
from safetensors.torch import save_file

import mergekit_lines
from mergekit_lines import LinesError
from tests import models
from tests.e2e.runner import ForkServer, Result, in_process, mergekit_yaml, recipe_text
from tests.e2e.test_formula import RANDOM, WRAPS

Tensors = Mapping[str, torch.Tensor]
# What each wrap's recipe needs: how many models, and parameters of its own.
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    **WRAPS,
    **dict.fromkeys(sorted(RANDOM), (2, {"weight": 0.6, "density": 0.6})),
}


def recipe(method: str, base: Path, *others: Path, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": other} for other in others],
        "parameters": parameters,
    }


def in_memory(method: str, base: Path, *others: Path, **parameters: Any) -> Tensors:
    """The same merge by mergekit's ``merge_state_dicts``."""
    states = {"base": models.read(base)} | {path.name: models.read(path) for path in others}
    return merge_state_dicts(states, method, parameters=parameters, base="base")


def assert_same(got: Tensors, want: Tensors) -> None:
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


# --- merge_state_dicts -------------------------------------------------------------------


@pytest.mark.parametrize("wrap", SETTINGS)
def test_every_wrap_gives_the_recipes_bytes(
    wrap: str, llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """``merge_state_dicts(…, "lines")`` with ``alpha: auto`` equals the recipe's file."""
    count, own = SETTINGS[wrap]
    others = [llama_a, llama_b][:count]
    own = {f"wrap_{k}" if k == "alpha" else k: v for k, v in own.items()}
    words = {"wrap": wrap, "beta": 0.4, **own}
    want = models.read(in_process(recipe("lines", llama_base, *others, **words), tmp_path / "out"))
    assert_same(in_memory("lines", llama_base, *others, **words), want)


@pytest.mark.parametrize(
    "words",
    [
        {"alpha": 0.2, "schedule": "sqrt", "outside": 0.0},
        {"wrap": "dare_ties", "density": 0.5, "seed": 7, "norm": "l2"},
        {"wrap": "ties", "density": 0.5, "alpha": 1, "blocks": "model.layers", "num_blocks": 9},
    ],
)
def test_words_and_bf16(
    words: dict[str, Any],
    llama_bf16_base: Path,
    llama_bf16_a: Path,
    llama_bf16_b: Path,
    tmp_path: Path,
) -> None:
    """The other words mean what they mean in a recipe, and bf16 models stay bf16."""
    paths = (llama_bf16_base, llama_bf16_a, llama_bf16_b)
    words = {"beta": 0.5, **words}
    want = models.read(in_process(recipe("lines", *paths, **words), tmp_path / "out"))
    assert_same(in_memory("lines", *paths, **words), want)


def test_dtypes_are_the_recipes(
    llama_bf16_base: Path, llama_bf16_a: Path, llama_bf16_b: Path, tmp_path: Path
) -> None:
    """``dtype`` and ``out_dtype`` are those of a recipe."""
    paths = (llama_bf16_base, llama_bf16_a, llama_bf16_b)
    document = {**recipe("lines", *paths, beta=0.5, wrap="ties", density=0.4), "dtype": "float32"}
    want = models.read(in_process({**document, "out_dtype": "float16"}, tmp_path / "out"))
    got = merge_state_dicts(
        [models.read(path) for path in paths],
        "lines",
        parameters=document["parameters"],
        base=0,
        dtype=torch.float32,
        out_dtype=torch.float16,
    )
    assert_same(got, want)


def test_values_per_model_and_per_tensor(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """A weight per model, by id or in order, and a value per tensor are the recipe's own."""
    document = recipe("lines", llama_base, llama_a, llama_b, beta=0.5, wrap="ties", density=0.5)
    document["models"][0]["parameters"] = {"weight": 0.3}
    document["models"][1]["parameters"] = {"weight": 0.9}
    document["parameters"]["lambda"] = [{"filter": "mlp", "value": 0.5}, {"value": 2.0}]
    want = models.read(in_process(document, tmp_path / "out"))
    weight = {llama_a.name: 0.3, llama_b.name: 0.9}
    words = {"beta": 0.5, "wrap": "ties", "density": 0.5}
    words["lambda"] = PerGroupValues([0.5 if "mlp" in name else 2.0 for name in _names(llama_base)])
    assert_same(in_memory("lines", llama_base, llama_a, llama_b, weight=weight, **words), want)
    assert_same(in_memory("lines", llama_base, llama_a, llama_b, weight=[0.3, 0.9], **words), want)


def _names(path: Path) -> list[str]:
    return list(models.read(path))


def test_modules_with_ties(tmp_path: Path) -> None:
    """Live models with tied embeddings: a tie counts once in Eq. 2, is drawn once, and stays."""
    base = models.llama(tmp_path / "base", tied=True)
    others = [models.finetuned(base, tmp_path / f"m{seed}", seed=seed) for seed in (1, 2)]
    words = {"wrap": "dare_linear", "density": 0.5, "beta": 0.5}
    want = models.read(in_process(recipe("lines", base, *others, **words), tmp_path / "out"))
    assert "lm_head.weight" not in want
    live = [transformers.LlamaForCausalLM.from_pretrained(path) for path in (base, *others)]
    got = merge_state_dicts(live, "lines", parameters=words, base=0)
    assert got["lm_head.weight"] is got["model.embed_tokens.weight"]
    assert_same({name: got[name] for name in want}, want)


def test_two_containers_of_which_one_is_scaled(tmp_path: Path) -> None:
    """A T5: ``blocks`` picks the decoder, as in a recipe."""
    base = models.t5(tmp_path / "base", tied=True)
    tuned = models.finetuned(base, tmp_path / "tuned", seed=1)
    words = {"beta": 0.5, "blocks": "decoder.block", "norm": "l2"}
    want = models.read(in_process(recipe("lines", base, tuned, **words), tmp_path / "out"))
    assert_same(in_memory("lines", base, tuned, **words), want)


def test_postprocess_in_memory_and_by_edit_state_dict(
    llama_bf16_base: Path, llama_bf16_a: Path, tmp_path: Path
) -> None:
    """``lines_postprocess`` and ``edit_state_dict`` equal the recipe's file bit for bit."""
    words = {"gamma": 0.3, "schedule": "quadratic", "outside": 0.9}
    document = recipe("lines_postprocess", llama_bf16_base, llama_bf16_a, **words)
    want = models.read(in_process(document, tmp_path / "out"))
    assert_same(in_memory("lines_postprocess", llama_bf16_base, llama_bf16_a, **words), want)
    edited = mergekit_lines.edit_state_dict(
        models.read(llama_bf16_base), models.read(llama_bf16_a), **words
    )
    assert_same(edited, want)


def test_edit_of_unlike_dtypes_is_the_recipes(llama_base: Path, tmp_path: Path) -> None:
    """A bf16 model over an fp32 base gives what the recipe gives, in its dtype."""
    tuned = models.finetuned(llama_base, tmp_path / "tuned", seed=5, dtype=torch.bfloat16)
    document = recipe("lines_postprocess", llama_base, tuned, alpha=0.2, beta=0.6)
    want = models.read(in_process(document, tmp_path / "out"))
    base, state = models.read(llama_base), models.read(tuned)
    assert_same(mergekit_lines.edit_state_dict(base, state, alpha=0.2, beta=0.6), want)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"beat": 0.4}, "parameters.beat: nobody declares this name. Did you mean 'beta'?"),
        ({"beta": 1, "densty": 1}, "parameters.densty: nobody declares this name."),
        ({"beta": 1, "gamma": 1}, "belongs to merge_method: lines_postprocess"),
        ({}, "parameters.beta: found nothing, wanted the coefficient gained"),
        ({"beta": 1, "wrap": "tie"}, "parameters.wrap: found 'tie'"),
        ({"beta": 1, "wrap": "dare"}, "wanted `dare_linear` or `dare_ties`"),
        ({"beta": 1, "wrap": "slerp"}, "parameters.t: found nothing, wanted a value: slerp has"),
        ({"beta": 1, "weight": {"llama_a": 1, "lama_b": 1}}, "parameters.weight: found 'lama_b'"),
        ({"beta": 1, "weight": [1, 2, 3]}, "Parameter weight expects 2 values; got 3."),
        ({"beta": 1, "weight": True}, "parameters.weight: found True (a boolean), wanted a finite"),
        ({"beta": 1, "seed": PerGroupValues([1] * 39)}, "parameters.seed: found a value per tens"),
        ({"beta": 1, "num_blocks": 2}, "num_blocks is 2, but 'model.layers' has a block of"),
        ({"beta": 1, "weight": 0}, "norm of zero for τ_MTL"),
    ],
)
def test_wrong_words_are_refused(
    words: dict[str, Any], text: str, llama_base: Path, llama_a: Path, llama_b: Path
) -> None:
    """An unknown name, a missing or a wrong value is the recipe's error, before any merge."""
    with pytest.raises(LinesError) as caught:
        in_memory("lines", llama_base, llama_a, llama_b, **words)
    assert text in str(caught.value)


def test_models_that_do_not_fit_are_refused(llama_base: Path, llama_a: Path) -> None:
    """Eq. 2 without a change, a second model for lines_postprocess, no base."""
    states = [models.read(llama_base), models.read(llama_base)]
    with pytest.raises(LinesError, match="norm of zero for τ_sum"):
        merge_state_dicts(states, "lines", parameters={"beta": 1, "wrap": "ties"}, base=0)
    states.append(models.read(llama_a))
    with pytest.raises(LinesError, match="found 2 models besides the base, wanted one"):
        merge_state_dicts(states, "lines_postprocess", parameters={"gamma": 0.5}, base=0)
    with pytest.raises(ValueError, match="requires a base input"):
        merge_state_dicts(states, "lines", parameters={"beta": 1})


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
def test_dtypes_that_no_recipe_has(key: str, llama_base: Path, llama_a: Path) -> None:
    """Merging to 8 bits or to integers is refused by the argument's name."""
    states = [models.read(llama_base), models.read(llama_a)]
    for kind in (torch.float8_e4m3fn, torch.int8):
        with pytest.raises(LinesError, match=f" {key}: found {kind}, wanted one of torch.float16"):
            merge_state_dicts(states, "lines", parameters={"beta": 1}, base=0, **{key: kind})


def test_numbers_of_numpy(llama_base: Path, llama_a: Path, llama_b: Path) -> None:
    """numpy's numbers are taken for one value, per model and per tensor."""
    half, third = np.float32(0.5), np.float64(1 / 3)
    paths = (llama_base, llama_a, llama_b)
    want = in_memory("lines", *paths, beta=0.5, wrap="ties", density=1, weight=[0.5, 1 / 3])
    for weight in ([half, third], {llama_a.name: half, llama_b.name: third}):
        got = in_memory("lines", *paths, beta=half, wrap="ties", density=1, weight=weight)
        assert_same(got, want)
    every = PerGroupValues([half] * len(_names(llama_base)))
    assert_same(
        in_memory("lines", *paths, beta=0.5, weight=every),
        in_memory("lines", *paths, beta=0.5, weight=0.5),
    )


def test_one_tensor_alone() -> None:
    """``merge_tensors`` needs the tensor's name, ``num_blocks`` and a fixed alpha."""
    zero, one = torch.zeros(3), torch.ones(3)

    def merge(name: str | None, **words: Any) -> float:
        words = {"alpha": 0.25, "beta": 0.5, **words}
        given = merge_tensors([zero, one], "lines", parameters=words, base_index=0, name=name)
        return float(given[0])

    assert merge("model.layers.3.mlp.weight", num_blocks=5) == 0.625
    assert merge("lm_head.weight") == 0.25
    assert merge("enc.layers.3.mlp.weight", num_blocks=5, blocks="dec.layers") == 0.25
    assert merge("a.dec.layers.3.mlp.weight", num_blocks=5, blocks="dec.layers,x") == 0.625
    for name, words, text in (
        (None, {}, "found a tensor without a name"),
        ("model.layers.3.mlp.weight", {}, "wanted parameters.num_blocks beside it"),
        ("stages.1.layers.2.weight", {"num_blocks": 9}, "found numbers in 2 places"),
        ("lm_head.weight", {"alpha": "auto"}, "found 'auto' for one tensor alone"),
        ("model.layers.5.mlp.weight", {"num_blocks": 5}, "has a block of index 5"),
    ):
        with pytest.raises(LinesError, match=re.escape(text)):
            merge(name, **words)


# --- merge -------------------------------------------------------------------------------


def test_merge_is_the_command(
    llama_base: Path, llama_a: Path, llama_b: Path, server: ForkServer, tmp_path: Path
) -> None:
    """``merge`` of a file and of a mapping gives the files that ``mergekit-yaml`` gives."""
    document = recipe("lines", llama_base, llama_a, llama_b, beta=0.5, wrap="dare_ties", density=1)
    flags = ["--random-seed", "5", "--out-shard-size", "20K"]
    stock = mergekit_yaml(document, tmp_path / "stock", *flags, cwd=tmp_path, server=server)
    stock.succeeded()
    options = {"random_seed": 5, "out_shard_size": 20_000, "quiet": True}
    out = mergekit_lines.merge(tmp_path / "recipe.yml", tmp_path / "file" / "stock", **options)
    assert out == tmp_path / "file" / "stock"
    assert models.digest(out) == models.digest(tmp_path / "stock")
    mapped = mergekit_lines.merge(document, str(tmp_path / "mapping"), **options)
    assert models.weights_digest(mapped) == models.weights_digest(out)


def test_merge_of_mergekits_own_method(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """A recipe without ``lines`` is mergekit's merge."""
    document = recipe("task_arithmetic", llama_base, llama_a, weight=1.0)
    want = models.weights_digest(in_process(document, tmp_path / "stock"))
    assert models.weights_digest(mergekit_lines.merge(document, tmp_path / "ours")) == want


@pytest.mark.parametrize(
    ("given", "options", "text"),
    [
        ("nowhere.yml", {}, "recipe nowhere.yml: cannot be read (No such file or directory)"),
        ("merge_method: lines\nmodels: []", {}, "For a recipe in Python pass a mapping"),
        (3, {}, "recipe: found int, wanted the path of a YAML file or a mapping."),
        ({}, {"quite": True}, "option quite: mergekit has no such option. Did you mean 'quiet'?"),
        ({}, {"random_seed": "x"}, "option random_seed: Input should be a valid integer"),
        ({}, {"num_threads": 0}, "option num_threads: found 0, wanted 1 or more."),
        (
            {"merge_method": "lines", "parameters": {"beta": [1, {2}]}},
            {},
            "recipe.parameters.beta[1]: found {2} (set), wanted what a YAML file can hold",
        ),
        ({"merge_method": "lines"}, {}, "Exactly one of 'models', 'slices', or 'modules' must be"),
        ({"merge_method": "lines", "models": [{"mode": 1}]}, {}, "models.0.model: Field required"),
        (
            {"merge_method": "lines", "models": [{"model": "x/y/z"}], "parameters": {"beat": 1}},
            {},
            "parameters.beat: nobody declares this name. Did you mean 'beta'?",
        ),
    ],
)
def test_merge_refuses(given: Any, options: dict[str, Any], text: str, tmp_path: Path) -> None:
    """What is wrong with a recipe or an option is a LinesError, and nothing is made."""
    with pytest.raises(LinesError) as caught:
        mergekit_lines.merge(given, tmp_path / "out", **options)
    assert text in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", [None, "", 3])
def test_merge_wants_a_place(out: Any) -> None:
    """Without a folder to make there is nothing to do."""
    with pytest.raises(LinesError, match=f"out: found {out!r}, wanted the path of a folder"):
        mergekit_lines.merge({"merge_method": "lines"}, out)


# --- mergekit-pytorch --------------------------------------------------------------------


Raw = Callable[..., tuple[Result, Path]]


@pytest.fixture
def pytorch(server: ForkServer, tmp_path: Path) -> Raw:
    """Runs ``mergekit-pytorch`` on the same recipe, its models named by their files."""

    def run(document: Mapping[str, Any], *flags: str) -> tuple[Result, Path]:
        files = {**document, "base_model": _file(document["base_model"])}
        files["models"] = [
            {**entry, "model": _file(entry["model"])} for entry in document["models"]
        ]
        (tmp_path / "raw.yml").write_text(recipe_text(files), encoding="utf-8")
        out = tmp_path / "raw"
        return server.run(["mergekit-pytorch", "raw.yml", out, *flags], tmp_path, tmp_path), out

    return run


def _file(model: Path) -> Path:
    return model / "model.safetensors"


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"weight": 0.5, "schedule": "sqrt"},
        {"wrap": "dare_ties", "density": 0.5, "normalize": True, "num_blocks": 6, "seed": 3},
        {"wrap": "ramplus_tl", "wrap_alpha": 0.3},
        {"wrap": "linear", "weight": 0.5},
        {"wrap": "consensus_ta", "tall_lambda": 0.3, "min_agree": 1},
    ],
)
def test_raw_merge_gives_the_recipes_tensors(
    words: dict[str, Any],
    llama_base: Path,
    llama_a: Path,
    llama_b: Path,
    pytorch: Raw,
    tmp_path: Path,
) -> None:
    """With a fixed alpha ``mergekit-pytorch`` writes the recipe's values, of any wrap."""
    words = {"alpha": 0.3, "beta": 0.5, **words}
    document = recipe("lines", llama_base, llama_a, llama_b, **words)
    want = models.read(in_process(document, tmp_path / "yaml"))
    result, out = pytorch(document)
    result.succeeded()
    assert_same(models.read(out), want)


@pytest.mark.parametrize(
    "words",
    [
        {"wrap": "ties", "density": 0.5, "weight": 1.0},
        {"weight": 0.25},
        {"wrap": "dare_linear", "density": 0.5, "seed": 3, "norm": "l2"},
    ],
    ids=["ties", "closed form", "dare_linear"],
)
def test_raw_merge_finds_the_recipes_alpha(
    words: dict[str, Any],
    llama_base: Path,
    llama_a: Path,
    llama_b: Path,
    pytorch: Raw,
    tmp_path: Path,
) -> None:
    """With an automatic alpha ``mergekit-pytorch`` reads the model twice, and writes the same."""
    document = recipe("lines", llama_base, llama_a, llama_b, beta=0.5, **words)
    want = models.read(in_process(document, tmp_path / "yaml"))
    result, out = pytorch(document)
    result.succeeded()
    assert "alpha = " in result.stderr
    assert_same(models.read(out), want)


def test_raw_merge_of_a_model_that_mergekit_does_not_know(pytorch: Raw, tmp_path: Path) -> None:
    """A ViT goes through ``mergekit-pytorch`` whole, each tensor at its depth (in float64)."""
    base = models.vit(tmp_path / "base", layers=3)
    tuned = models.finetuned(base, tmp_path / "tuned", seed=1)
    result, out = pytorch(recipe("lines_postprocess", base, tuned, gamma=0.2))
    result.succeeded()
    got, zero, one = models.read(out), models.read(base), models.read(tuned)
    assert set(got) == set(zero)
    assert len(got) > 50
    for name, tensor in got.items():
        found = re.search(r"layers?\.(\d+)\.", name)
        kept = 0.2 + 0.8 * (int(found[1]) / 2 if found else 0)
        want = zero[name].double() + kept * (one[name].double() - zero[name].double())
        assert models.max_error_ratio(tensor, want) <= 1e-6, name


def test_raw_merge_takes_the_random_seed_flag(
    llama_base: Path, llama_a: Path, pytorch: Raw, tmp_path: Path
) -> None:
    """``--random-seed`` alone is the seed; with the parameter too it is refused."""
    words: dict[str, Any] = {"alpha": 1, "beta": 1, "wrap": "dare_linear", "density": 0.5}
    document = recipe("lines", llama_base, llama_a, **words)
    want = models.read(in_process(document, tmp_path / "yaml", random_seed=11))
    result, out = pytorch(document, "--random-seed", "11")
    result.succeeded()
    assert_same(models.read(out), want)
    document["parameters"]["seed"] = 3
    result, _ = pytorch(document, "--random-seed", "11")
    assert result.returncode == 1
    assert "found 3 and --random-seed 11 too" in result.last_line


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ({"alpha": 0.5}, ("parameters.beta: found nothing",)),
        ({"alpha": 0.5, "beta": 0.5, "wrap": "tie"}, ("Did you mean 'ties'?",)),
        (
            {"alpha": 0.5, "beta": 0.5, "wrap": "karcher", "density": 0.5},
            ("parameters.density: wrap karcher has no parameter of this name",),
        ),
        ({"alpha": 0.5, "beta": 0.5, "wrap": "ties", "density": 5}, ("parameters.density",)),
        (
            {"alpha": 0.5, "beta": 0.5, "wrap": "ties", "trim": "model"},
            ("parameters.trim: found 'model'", "mergekit-yaml"),
        ),
        ({"alpha": 0.5, "beta": 0.5, "blocks": "layer"}, ("blocks: no container is 'layer'",)),
    ],
)
def test_raw_merge_refuses_in_one_message(
    words: dict[str, Any],
    texts: tuple[str, ...],
    llama_base: Path,
    llama_a: Path,
    pytorch: Raw,
    tmp_path: Path,
) -> None:
    """What it cannot do is one message with the remedy, exit status 1, and no model written."""
    result, out = pytorch(recipe("lines", llama_base, llama_a, **words))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.last_line.startswith("Error: [lines] ")
    for text in texts:
        assert text in result.last_line
    assert not list(out.glob("*.safetensors"))


def test_raw_merge_of_a_part_of_a_model(
    llama_base: Path, llama_a: Path, pytorch: Raw, tmp_path: Path
) -> None:
    """Where block 0 is not in the file, the error asks for ``num_blocks``, which then tells."""
    parts = []
    for path in (llama_base, llama_a):
        part = models.llama(tmp_path / path.name)
        state = models.read(path)
        models.rewrite(part, lambda _, state=state: {n: t for n, t in state.items() if ".3." in n})
        parts.append(part)
    document = recipe("lines", *parts, alpha=0.0, beta=1.0)
    result, _ = pytorch(document)
    assert result.returncode == 1
    assert "Give all tensor names of the model, or num_blocks" in result.last_line
    document["parameters"]["num_blocks"] = 7
    result, out = pytorch(document)
    result.succeeded()
    zero, one = models.read(parts[0]), models.read(parts[1])
    for name, tensor in models.read(out).items():
        want = (zero[name].double() + one[name].double()) / 2
        assert models.max_error_ratio(tensor, want) <= 1e-6, name


def test_raw_merge_of_lists_that_are_no_blocks(pytorch: Raw, tmp_path: Path) -> None:
    """Lists of one tensor each count as blocks where the recipe names them, and not before."""
    for number, name in enumerate(("base", "tuned")):
        held = {f"layers.{i}.w": torch.full((4,), float(number)) for i in range(3)}
        (tmp_path / name).mkdir()
        save_file(held, tmp_path / name / "model.safetensors")
    document = recipe("lines_postprocess", tmp_path / "base", tmp_path / "tuned", gamma=0.3)
    result, out = pytorch(document)
    assert result.returncode == 1
    assert "e.g. `blocks: layers`" in result.last_line
    assert not list(out.glob("*.safetensors"))
    document["parameters"]["blocks"] = "layers"
    result, out = pytorch(document)
    result.succeeded()
    for i, want in enumerate((0.3, 0.65, 1.0)):
        torch.testing.assert_close(models.read(out)[f"layers.{i}.w"], torch.full((4,), want))


def test_raw_recipe_names_one_model_too_many(
    llama_base: Path, llama_a: Path, llama_b: Path, pytorch: Raw, tmp_path: Path
) -> None:
    """``lines_postprocess`` of two models, and a parameter under one model, are refused."""
    document = recipe("lines_postprocess", llama_base, llama_a, llama_b, gamma=0.5)
    result, _ = pytorch(document)
    assert "found 2 models besides the base, wanted one" in result.last_line
    document = recipe("lines", llama_base, llama_a, llama_b, alpha=0.5, beta=0.5)
    document["models"][0]["parameters"] = {"normalize": True}
    result, _ = pytorch(document)
    assert "parameters.normalize: found under one model" in result.last_line
    assert yaml.safe_load((tmp_path / "raw.yml").read_text())["parameters"]
