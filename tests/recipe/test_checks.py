"""What is wrong with a recipe before any model is opened, all of it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_lines.recipe.checks import check_recipe

SOUND: dict[str, Any] = {
    "merge_method": "lines",
    "base_model": "org/base",
    "models": [{"model": "org/a"}, {"model": "org/b"}],
    "parameters": {"alpha": 0.3, "beta": 0.3},
    "dtype": "float32",
}


def problems(flags: dict[str, Any] | None = None, /, **changes: Any) -> list[str]:
    """Check the sound recipe with changes; its models are nowhere, and nothing opens them."""
    source = yaml.safe_dump(SOUND | changes)
    config = MergeConfiguration.model_validate(yaml.safe_load(source))
    found = check_recipe(config, None, MergeOptions(**flags or {}), source)
    return [str(problem) for problem in found]


def test_a_sound_recipe_has_no_problem() -> None:
    """Models that nobody has are none of its business."""
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"dtpye": "float32"}, "dtpye: nobody declares this key."),
        ({"beta": 0.3}, "beta: found outside of parameters. Move it to parameters.beta."),
        ({"dtype": "float23"}, "dtype: found 'float23', wanted one of float32, float16"),
        ({"out_dtype": "torch.float16"}, "out_dtype: found 'torch.float16', wanted one of"),
        ({"base_model": None}, "base_model: found nothing, wanted the pre-trained model"),
        ({"models": [{"model": "org/base"}]}, "models: found no model besides base_model"),
        ({"models": [{"model": "org/a"}] * 2}, "models: found org/a twice, wanted each model once"),
        ({"chat_template": "chatlm"}, "chat_template: found 'chatlm', wanted `auto`, one of"),
        (
            {"tokenizer": {"source": "union", "pad_to_multiple_of": 0}},
            "tokenizer.pad_to_multiple_of: found 0, wanted a whole number above 0.",
        ),
    ],
)
def test_a_fault_is_one_problem(changes: dict[str, Any], start: str) -> None:
    """Each fault of keys, values or structure is told once, from its key on."""
    (problem,) = problems(**changes)
    assert problem.startswith(start)


@pytest.mark.parametrize(
    ("flags", "start"),
    [
        ({"out_shard_size": 0}, "--out-shard-size: found 0, wanted a size above 0"),
        (
            {"random_seed": -1},
            "--random-seed: found -1, wanted a whole number from 0 to 4294967295",
        ),
        ({"lora_merge_dtype": "int8"}, "--lora-merge-dtype: found 'int8', wanted one of float32"),
        ({"device": "nowhere"}, "--device nowhere: this torch"),
    ],
)
def test_flags(flags: dict[str, Any], start: str) -> None:
    """A flag that no merge can follow is told under its own name."""
    (problem,) = problems(flags)
    assert problem.startswith(start)


def test_a_base_by_another_path(tmp_path: Path) -> None:
    """One folder under two names is one model."""
    (tmp_path / "base").mkdir()
    (tmp_path / "also").symlink_to(tmp_path / "base")
    models = [{"model": str(tmp_path / "also")}, {"model": "org/a"}]
    (problem,) = problems(base_model=str(tmp_path / "base"), models=models)
    assert "under another name, wanted it once" in problem


def test_all_faults_are_told_together() -> None:
    """Three faults in three places are three problems, in one go."""
    assert len(problems({"out_shard_size": 0}, dtype="float23", dtpye="float32")) == 3
