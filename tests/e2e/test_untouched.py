"""Recipes of mergekit's own methods behave exactly as if this package were not installed.

The oracle is mergekit itself with ``MERGEKIT_LINES_AUTOLOAD=0``: the same recipes, in the
shapes of the examples that mergekit publishes, must give the same bytes and the same errors.
Only LLaMA-type models, and one hash seed for both sides: for architectures it has to infer,
and for union tokenizers, mergekit's own output differs from run to run. So does the order of
the models that a card lists, see :func:`contents`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests import models
from tests.e2e import runner

ACTIVE: dict[str, str | None] = {"PYTHONHASHSEED": "0"}
OFF: dict[str, str | None] = {"PYTHONHASHSEED": "0", "MERGEKIT_LINES_AUTOLOAD": "0"}
T = TypeVar("T")
Way = TypeVar("Way")


def both(work: Path, act: Callable[[Path, Way], T], active: Way, off: Way) -> tuple[T, T]:
    """Do something with the package active and with it off, side by side in two folders."""
    folders = (work / "active", work / "off")
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(act, folders, (active, off))
    return first, second


Servers = tuple[runner.ForkServer, runner.ForkServer]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The stock commands with the package active, and with it off."""
    logs = (tmp_path_factory.mktemp(name) / "log" for name in ("active", "off"))
    active, off = (
        runner.ForkServer(log, env, ours=False)
        for log, env in zip(logs, (ACTIVE, OFF), strict=True)
    )
    with active, off:
        yield active, off


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file, of a model card with its list of models sorted.

    mergekit lists them in the order of a set; their hash holds that of None, which is an
    address before Python 3.12 and so differs from process to process whatever the hash seed.
    """
    result = models.digest(folder)
    for name in result:
        if name.endswith("README.md"):
            lines = (folder / name).read_text(encoding="utf-8").split("\n")
            listed = iter(sorted(line for line in lines if line.startswith("* ")))
            text = "\n".join(next(listed) if line.startswith("* ") else line for line in lines)
            result[name] = hashlib.sha256(text.encode()).hexdigest()
    return result


def recipes(base: Path, a: Path, b: Path, adapter: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return the recipes of :data:`NAMES`, each with its merge options."""

    def entry(model: Path | str, **parameters: Any) -> dict[str, Any]:
        return {"model": model, "parameters": parameters} if parameters else {"model": model}

    def all_blocks(*sources: Path) -> list[dict[str, Any]]:
        return [{"sources": [{"model": model, "layer_range": [0, 4]} for model in sources]}]

    tied_to_depth = {
        "t": [
            {"filter": "self_attn", "value": [0, 0.4, 0.2, 0.9, 1]},
            {"filter": "mlp", "value": [1, 0.6, 0.8, 0.1, 0]},
            {"value": 0.5},
        ]
    }
    ties = {
        "models": [entry(a, density=0.5, weight=0.6), entry(b, density=[1, 0.6, 0.2], weight=0.4)],
        "merge_method": "ties",
        "base_model": base,
        # mergekit's published recipes still carry int8_mask, which no method declares.
        "parameters": {"normalize": False, "int8_mask": True},
        "dtype": "float16",
    }
    dare_ties = {
        "models": [entry(base), entry(a, density=0.5, weight=0.7), entry(b, density=0.4, weight=1)],
        "merge_method": "dare_ties",
        "base_model": base,
        "dtype": "bfloat16",
    }
    return {
        "linear": (
            {
                "models": [entry(base, weight=1.0), entry(a, weight=0.3), entry(b, weight=0.5)],
                "merge_method": "linear",
                "dtype": "float16",
            },
            {},
        ),
        "slerp-gradient": (
            {
                "slices": all_blocks(a, b),
                "merge_method": "slerp",
                "base_model": a,
                "parameters": tied_to_depth,
                "dtype": "float32",
            },
            {},
        ),
        "task-arithmetic-gradient": (
            {
                "slices": all_blocks(base, a, b),
                "merge_method": "task_arithmetic",
                "base_model": base,
                "parameters": {"weight": 0.5, "lambda": [0.2, 1.1]},
                "dtype": "float32",
            },
            {},
        ),
        "ties": (ties, {}),
        "dare-ties": (dare_ties, {"random_seed": 7}),
        "della": ({**dare_ties, "merge_method": "della"}, {"random_seed": 7}),
        "frankenmerge": (
            {
                "slices": [
                    {"sources": [{"model": a, "layer_range": [0, 3]}]},
                    {"sources": [{"model": b, "layer_range": [1, 4]}]},
                ],
                "merge_method": "passthrough",
                "dtype": "float16",
            },
            {},
        ),
        "model-stock": (
            {"models": [entry(a), entry(b)], "merge_method": "model_stock", "base_model": base},
            {},
        ),
        "nuslerp": (
            {
                "models": [entry(a, weight=0.7), entry(b, weight=0.3)],
                "merge_method": "nuslerp",
                "base_model": base,
                "dtype": "float32",
            },
            {},
        ),
        "base-tokenizer-in-shards": (
            {
                "models": [entry(a, weight=1), entry(b, weight=1)],
                "merge_method": "task_arithmetic",
                "base_model": base,
                "tokenizer": {"source": "base"},
                "dtype": "float32",
            },
            {"out_shard_size": 40_000},
        ),
        "adapter": (
            {
                "models": [entry(f"{base}+{adapter}", weight=0.5), entry(a, weight=0.5)],
                "merge_method": "task_arithmetic",
                "base_model": base,
                "dtype": "float32",
            },
            {"lora_merge_cache": "lora-cache"},
        ),
        "no-such-method": ({**ties, "merge_method": "tie"}, {}),
        "no-such-model": ({**ties, "base_model": base / "absent" / "model"}, {}),
        "no-weight": (
            {"models": [entry(a), entry(b)], "merge_method": "linear", "dtype": "float32"},
            {},
        ),
    }


FAILING = {
    "no-such-method": "RuntimeError: Unimplemented merge method tie",
    "no-such-model": "OSError: ",
    "no-weight": "RuntimeError: Missing required parameter weight for ",
}
NAMES = (
    "linear",
    "slerp-gradient",
    "task-arithmetic-gradient",
    "ties",
    "dare-ties",
    "della",
    "frankenmerge",
    "model-stock",
    "nuslerp",
    "base-tokenizer-in-shards",
    "adapter",
    *FAILING,
)


@dataclass(frozen=True)
class Side:
    """What one of the two processes did, and where."""

    report: runner.Report
    folder: Path


@pytest.fixture(scope="module")
def sides(
    tmp_path_factory: pytest.TempPathFactory,
    llama_base: Path,
    llama_a: Path,
    llama_b: Path,
    adapter: Path,
) -> tuple[Side, Side]:
    """All recipes, merged in one process with the package active and in one with it off."""
    jobs = recipes(llama_base, llama_a, llama_b, adapter)
    assert tuple(jobs) == NAMES

    def act(folder: Path, env: dict[str, str | None]) -> Side:
        return Side(runner.merge_many(jobs, cwd=folder, env=env), folder)

    return both(tmp_path_factory.mktemp("untouched"), act, ACTIVE, OFF)


def test_the_two_sides_differ_in_what_they_know(sides: tuple[Side, Side]) -> None:
    """The package is really active in one process and really off in the other."""
    active, off = (side.report for side in sides)
    own = {"consensus_ta", "consensus_ties", "cart", "tsv_m", "iso_c", "iso_cts"}
    assert active.methods - off.methods == {"lines", "lines_postprocess", *own}
    assert off.methods <= active.methods
    assert "mergekit_lines.plugin" in active.modules
    assert "mergekit_lines.plugin" not in off.modules


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FAILING])
def test_recipe_gives_the_same_bytes(sides: tuple[Side, Side], name: str) -> None:
    """Every file of the merged model, the model card too, is the same to the last byte."""
    active, off = sides
    assert off.report.errors[name] is None
    assert active.report.errors[name] is None
    want = contents(off.folder / name)
    assert {"README.md", "config.json", "mergekit_config.yml", "tokenizer.json"} <= set(want)
    assert any(file.endswith(".safetensors") for file in want)
    assert contents(active.folder / name) == want


@pytest.mark.parametrize("name", FAILING)
def test_failing_recipe_fails_the_same_way(sides: tuple[Side, Side], name: str) -> None:
    """A recipe that mergekit refuses is refused with mergekit's own error, and leaves as much."""
    active, off = sides
    error = off.report.errors[name]
    assert error is not None and error.startswith(FAILING[name])
    assert active.report.errors[name] == error
    assert contents(active.folder / name) == contents(off.folder / name)


def test_nothing_else_is_written(sides: tuple[Side, Side]) -> None:
    """Both processes leave the same files beside the models: no partial folder, no log."""
    active, off = sides
    assert set(models.digest(active.folder)) == set(models.digest(off.folder))


def assert_same_end(active: runner.Result, off: runner.Result, work: Path) -> None:
    """Assert that two commands ended, and left files, in the same way."""
    assert active.returncode == off.returncode, active.stderr
    assert active.stdout == off.stdout
    assert active.messages == off.messages
    assert contents(work / "active") == contents(work / "off")


def test_mergekit_yaml_gives_the_same_bytes(
    servers: Servers, tmp_path: Path, llama_base: Path, llama_a: Path, llama_b: Path, adapter: Path
) -> None:
    """The stock command with ``--random-seed`` writes the same model with the package active."""
    recipe, _ = recipes(llama_base, llama_a, llama_b, adapter)["dare-ties"]

    def act(folder: Path, server: runner.ForkServer) -> runner.Result:
        return runner.mergekit_yaml(
            recipe, "merged", "--random-seed", "7", cwd=folder, server=server
        )

    active, off = both(tmp_path, act, *servers)
    off.succeeded()
    assert_same_end(active, off, tmp_path)
    assert models.read(tmp_path / "active" / "merged").keys() == models.read(llama_base).keys()


def test_mergekit_yaml_fails_the_same_way(
    servers: Servers, tmp_path: Path, llama_base: Path, llama_a: Path
) -> None:
    """For a method nobody registered the stock command ends with the same status and line."""
    recipe = {"models": [{"model": llama_a}], "merge_method": "tie", "base_model": llama_base}

    def act(folder: Path, server: runner.ForkServer) -> runner.Result:
        return runner.mergekit_yaml(recipe, "merged", cwd=folder, server=server)

    active, off = both(tmp_path, act, *servers)
    assert off.returncode == 1
    assert off.last_line == "RuntimeError: Unimplemented merge method tie"
    assert active.last_line == off.last_line
    assert active.returncode == off.returncode
    assert contents(tmp_path / "active") == contents(tmp_path / "off")


def test_mergekit_multi_gives_the_same_bytes(
    servers: Servers, tmp_path: Path, llama_base: Path, llama_a: Path, llama_b: Path, adapter: Path
) -> None:
    """A file of two documents, the second merging the first's result, gives the same models."""
    stock = recipes(llama_base, llama_a, llama_b, adapter)
    first, _ = stock["slerp-gradient"]
    ties, _ = stock["ties"]
    second = {
        **ties,
        "models": [
            {"model": "between", "parameters": {"density": [1, 0.7, 0.1], "weight": 1.0}},
            {
                "model": llama_b,
                "parameters": {
                    "density": 0.33,
                    "weight": [{"filter": "mlp", "value": 0.5}, {"value": 0}],
                },
            },
        ],
        "parameters": {"normalize": True},
    }

    def act(folder: Path, server: runner.ForkServer) -> runner.Result:
        documents = [{"name": "between", **first}, second]
        return runner.mergekit_multi(documents, "merged", cwd=folder, server=server)

    active, off = both(tmp_path, act, *servers)
    off.succeeded()
    assert_same_end(active, off, tmp_path)
    between = tmp_path / "active" / "merges" / "steps" / "between"
    assert models.read(between).keys() == models.read(tmp_path / "active" / "merged").keys()
