"""The same recipe gives the same bytes, in every process."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.e2e.runner import Recipe, in_process, merge_many


def three_times(
    make: Callable[[Path], dict[str, Recipe]], folder: Path, **options: Any
) -> list[dict[str, str]]:
    """Merge every recipe in three processes that differ in hash seed and threads."""
    recipes = make(folder)

    def once(number: int) -> dict[str, str]:
        here = folder / f"run{number}"
        here.mkdir()
        jobs = {name: (recipe, {"quiet": True, **options}) for name, recipe in recipes.items()}
        env = {"PYTHONHASHSEED": str(number), "OMP_NUM_THREADS": str(1 + number % 2)}
        report = merge_many(jobs, cwd=here, env=env)
        assert report.errors == dict.fromkeys(recipes)
        return {
            f"{name}/{file}": value
            for name in recipes
            for file, value in models.digest(here / name).items()
        }

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(once, range(3)))


def opt(path: Path) -> Path:
    """A model whose layout mergekit has to infer."""
    from transformers import OPTConfig

    config = OPTConfig(
        vocab_size=128,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
    )
    return models.save("OPTForCausalLM", config, path, tokenizer=True)


def test_three_processes_give_the_same_files(tmp_path: Path) -> None:
    """Union tokenizers, random wraps, inferred layouts: every file is the same each time."""

    def make(folder: Path) -> dict[str, Recipe]:
        base = models.llama(folder / "base")
        a = models.finetuned(base, folder / "a", seed=1)
        b = models.finetuned(base, folder / "b", seed=2)
        words = [f"new{n}" for n in range(20)]
        wide = models.llama(folder / "wide", vocab=148, tokens=words)
        other = models.llama(
            folder / "other", vocab=138, tokens=words[:4] + [f"z{n}" for n in range(6)]
        )
        plain = opt(folder / "opt")
        tuned = models.finetuned(plain, folder / "opt_a", seed=3)

        def recipe(*sources: Path, **parameters: Any) -> dict[str, Any]:
            return {
                "merge_method": "lines",
                "base_model": sources[0],
                "models": [{"model": source} for source in sources[1:]],
                "parameters": {"beta": 0.4, **parameters},
                "dtype": "bfloat16",
            }

        return {
            "auto": recipe(base, a, b),
            "ties": recipe(base, a, b, wrap="ties", density=0.3),
            "dare": recipe(base, a, b, wrap="dare_ties", density=0.5, seed=5),
            "della": recipe(base, a, b, wrap="della", density=0.5),
            "union": {**recipe(base, wide, other, wrap="ties"), "tokenizer": {"source": "union"}},
            "inferred": recipe(plain, tuned, wrap="della_linear", density=0.5),
        }

    first, second, third = three_times(make, tmp_path, out_shard_size=50_000)
    assert first == second == third
    assert any(name.endswith("index.json") for name in first)
    assert {name.split("/")[0] for name in first if name.endswith("tokenizer.json")} >= {"union"}


def test_the_alpha_found_gives_the_same_weights(
    llama_bf16_base: Path, llama_bf16_a: Path, llama_bf16_b: Path, tmp_path: Path
) -> None:
    """A recipe with the α of the report writes the bytes that ``alpha: auto`` wrote."""
    auto = {
        "merge_method": "lines",
        "base_model": llama_bf16_base,
        "models": [{"model": llama_bf16_a}, {"model": llama_bf16_b}],
        "parameters": {"wrap": "dare_ties", "density": 0.5, "beta": 0.5, "seed": 3},
    }
    out = in_process(auto, tmp_path / "auto")
    alpha = json.loads((out / "lines_report.json").read_text())["alpha"]["value"]
    auto["parameters"]["alpha"] = alpha
    again = in_process(auto, tmp_path / "number")
    assert models.weights_digest(out) == models.weights_digest(again)


def test_seed_and_flag_say_the_same(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """``seed: 7`` and ``--random-seed 7`` draw the same; another seed draws otherwise."""

    def merge(name: str, seed: int | None, **options: Any) -> Any:
        recipe = {
            "merge_method": "lines",
            "base_model": llama_base,
            "models": [{"model": llama_a}, {"model": llama_b}],
            "parameters": {"wrap": "dare_linear", "density": 0.5, "beta": 0.5, "alpha": 0.5},
        }
        if seed is not None:
            recipe["parameters"]["seed"] = seed
        return models.read(in_process(recipe, tmp_path / name, **options))

    word, flag, other = merge("w", 7), merge("f", None, random_seed=7), merge("o", 8)
    name = "model.layers.3.mlp.up_proj.weight"
    assert word[name].equal(flag[name])
    assert not word[name].equal(other[name])


@pytest.mark.parametrize("shards", [50_000, 5_000_000_000])
def test_shard_size_changes_no_tensor(
    shards: int, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """Tensors are the same whatever the size of the output's shards."""
    recipe = {
        "merge_method": "lines",
        "base_model": llama_base,
        "models": [{"model": llama_a}],
        "parameters": {"wrap": "dare_linear", "density": 0.5, "beta": 0.5, "alpha": 0.5},
    }
    got = models.read(in_process(recipe, tmp_path / "out", out_shard_size=shards))
    want = models.read(in_process(recipe, tmp_path / "plain"))
    assert all(got[name].equal(want[name]) for name in want)
    assert set(got) == set(want)
