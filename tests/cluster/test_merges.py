"""Merges by workers on two machines: the bytes of one process, whoever is lost on the way.

Ray's nodes are two on this machine, in a network of their own; each driver joins them.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.cluster.server import ClusterServer, Kill
from tests.e2e.runner import recipe_text
from tests.e2e.torture import check_left, output_digest

FLAGS = ("--out-shard-size", "100K")
KILLS, STRUCK = 10, ("ties_auto", "dare_ties", "lora_auto")
TUNED, ADAPTED = ("a", "b"), ("base+adapter_a", "base+adapter_b")
LINES = {"merge_method": "lines"}
RECIPES: dict[str, tuple[Mapping[str, Any], tuple[str, str], dict[str, Any]]] = {
    "ties": (LINES, TUNED, {"wrap": "ties", "density": 0.4, "alpha": 0.4}),
    "ties_auto": (LINES, TUNED, {"wrap": "ties", "density": 0.4}),
    "dare_ties": (LINES, TUNED, {"wrap": "dare_ties", "density": 0.5, "seed": 7, "alpha": 0.4}),
    "dare_ties_auto": (LINES, TUNED, {"wrap": "dare_ties", "density": 0.5, "seed": 7}),
    "lora": (LINES, ADAPTED, {"wrap": "task_arithmetic", "alpha": 0.4}),
    "lora_auto": (LINES, ADAPTED, {"wrap": "task_arithmetic"}),
    # What else goes over all tensors first, what has no kernel, and aligned vocabularies.
    "trim": (LINES, TUNED, {"wrap": "ties", "density": 0.4, "trim": "model"}),
    "larv": (LINES, TUNED, {"wrap": "ties", "density": 0.4, "schedule": "larv", "alpha": 0.4}),
    "whole": (LINES, TUNED, {"wrap": "karcher", "alpha": 0.4}),
    "union": ({**LINES, "tokenizer": {"source": "union"}}, TUNED, {"wrap": "ties", "density": 0.4}),
    "stock": ({"merge_method": "ties"}, TUNED, {"density": 0.4}),
}


def write_recipes(folder: Path) -> None:
    """Write every recipe, over the models that lie beside them."""
    for name, (words, tuned, parameters) in RECIPES.items():
        scaled = {} if name in ("stock", "larv") else {"beta": 0.5}
        weights = {} if parameters.get("wrap") == "karcher" else {"weight": 0.6}
        recipe = {
            **words,
            "base_model": "base",
            "models": [{"model": model, "parameters": weights} for model in tuned],
            "parameters": {**parameters, **scaled},
        }
        (folder / f"{name}.yml").write_text(recipe_text(recipe), encoding="utf-8")


@pytest.fixture(scope="module")
def arena(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and recipes."""
    folder = tmp_path_factory.mktemp("arena")
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    write_recipes(folder)
    return folder


@pytest.fixture(scope="module")
def alone(arena: Path, cluster: ClusterServer) -> dict[str, dict[str, str]]:
    """What one process makes of each recipe."""
    digests = {}
    for name in RECIPES:
        out = f"{name}-alone"
        cluster.merge(arena, f"{name}.yml", out, *FLAGS, shared=False)[0].succeeded()
        digests[name] = digest(arena / out)
    return digests


def shards(arena: Path, name: str) -> list[Path]:
    """Return the shards that one process makes of a recipe."""
    return list((arena / f"{name}-alone").glob("*.safetensors"))


def digest(out: Path) -> dict[str, str]:
    """Return the digests of a merge's files; of the card without its title, OUT's name."""
    digests = output_digest(out)
    digests.pop("README.md")
    return digests


def test_bytes_are_those_of_one_process_whoever_is_killed(
    arena: Path, cluster: ClusterServer, alone: dict[str, dict[str, str]]
) -> None:
    """Two workers, of whom ten are killed at random moments, give what one process gives."""
    numbers, strikes, place = random.Random(15), 0, 0
    while strikes < KILLS:  # again, where a busy machine let workers end before their kill
        place += 1
        names = [*STRUCK, *(name for name in RECIPES if name not in STRUCK and place == 1)]
        commands = [[f"{name}.yml", f"{name}-{place}", *FLAGS] for name in names]
        kills = [
            Kill("worker", arena / f"{name}-{place}", number, numbers.uniform(0, 0.02), choice)
            for name in STRUCK
            for number in sorted(numbers.choices(range(len(shards(arena, name)) // 2), k=4))
            for choice in numbers.choices(range(2))
        ]
        result, struck = cluster.merges(arena, commands, kills)
        strikes += sum(struck)
        assert "a worker was lost (WorkerCrashedError)" in result.succeeded().stderr
        for name in names:
            out = arena / f"{name}-{place}"
            assert digest(out) == alone[name], name
            assert [path.name for path in out.iterdir() if path.is_dir()] == []
            report = json.loads((out / "lines_report.json").read_text(encoding="utf-8"))
            assert report["run"]["threads"] == 2


def test_a_killed_driver_is_followed_by_the_same_command(
    arena: Path, cluster: ClusterServer, alone: dict[str, dict[str, str]]
) -> None:
    """A driver that is killed five times leaves nothing that loads; the sixth gives the bytes."""
    numbers = random.Random(5)
    out = arena / "killed"
    whole = models.read(arena / "ties_auto-alone")
    words = ("ties_auto.yml", "killed", *FLAGS, "--workers", "1")
    for number in sorted(numbers.choices(range(len(shards(arena, "ties_auto")) - 1), k=5)):
        kill = Kill("driver", out, number, numbers.uniform(0, 0.1))
        result, struck = cluster.merge(arena, *words, kills=[kill])
        assert (result.returncode, struck) == (-9, [True]), result.stderr
        check_left(out, whole)
    again, _ = cluster.merge(arena, *words)
    assert "left by a merge that was killed or stopped" in again.succeeded().stderr
    assert digest(out) == alone["ties_auto"]
    assert [path.name for path in arena.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_a_machine_does_not_see_is_refused(
    arena: Path, cluster: ClusterServer
) -> None:
    """Where a worker does not find the driver's token, nothing is read and nothing stays."""
    out = cluster.private / "out"
    result, _ = cluster.merge(arena, "ties.yml", str(out), *FLAGS)
    assert result.returncode == 1
    assert f"machine 127.0.0.1: does not see {out.parent} as this machine does" in result.stderr
    assert "one storage that all of them share" in result.stderr
    assert list(cluster.private.iterdir()) == []


def test_a_ray_of_the_commands_own_ends_with_it(
    arena: Path, cluster: ClusterServer, alone: dict[str, dict[str, str]]
) -> None:
    """``--workers 2``: a killed command takes its workers along, and the same command goes on."""
    out = arena / "local"
    words = ("lora_auto.yml", "local", *FLAGS, "--workers", "2")
    kill = Kill("driver", out, 3, 0.0)
    killed, struck = cluster.merge(arena, *words, kills=[kill], shared=False)
    assert (killed.returncode, struck) == (-9, [True]), killed.stderr
    check_left(out, models.read(arena / "lora_auto-alone"))
    again, _ = cluster.merge(arena, *words, shared=False)
    assert "left by a merge that was killed or stopped" in again.succeeded().stderr
    assert digest(out) == alone["lora_auto"]
    assert [path.name for path in arena.iterdir() if path.name.startswith(".")] == []
