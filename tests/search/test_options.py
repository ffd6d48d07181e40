"""Options of a search that would change nothing are refused, and not dropped in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mergekit_lines import LinesError, greedy, soup, sweep
from mergekit_lines.cli import main
from mergekit_lines.evaluate import Settings

WORDS = {"alpha": 1, "beta": 1}


@pytest.fixture
def place(
    tmp_path: Path, llama_base: Path, llama_a: Path, llama_b: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The current directory, with the recipe of a rewarded soup."""
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe(llama_base, llama_a, llama_b)))
    (tmp_path / "option_probes.py").write_text("def one(model, tokenizer, split):\n    return 1\n")
    (tmp_path / "prompts.txt").write_text("tok10\ntok11\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(base: Path, *tuned: Path) -> dict[str, Any]:
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(model)} for model in tuned],
        "parameters": WORDS,
    }


def write(*flags: str) -> Any:
    command = ["soup", "recipe.yml", "--write", "c=0.3", "--out", "model", *flags]
    return CliRunner().invoke(main, command)


@pytest.mark.parametrize(
    "flags",
    [
        ["--max-memory", "cpu=4GiB"],
        ["--memory-budget", "1GiB"],
        ["--limit", "2"],
        ["--prompts", "prompts.txt"],
        ["--max-new-tokens", "3"],
        ["--batch-size", "3"],
        ["--seed", "0"],
        ["--include-path", "."],
        ["--points", "11"],
    ],
)
def test_a_merge_of_one_point_takes_no_option_of_measuring(place: Path, flags: list[str]) -> None:
    """Each is named with exit status 2, its default typed out too, and nothing is merged."""
    refused = write(*flags)
    assert refused.exit_code == 2
    assert f"found {flags[0]}, which only a measured front takes. Leave it out." in refused.output
    assert not (place / "model").exists()


def test_several_are_named_together(place: Path) -> None:
    """In the order of the help."""
    refused = write("--limit", "2", "--prompts", "prompts.txt")
    assert "found --prompts, --limit, which only a measured front takes. Leave them out." in (
        refused.output
    )


def test_a_merge_of_one_point_honours_no_tokenizer(place: Path) -> None:
    """The model comes without the base's tokenizer, as with mergekit-yaml's flag."""
    merged = write("--no-tokenizer", "--quiet", "--num-threads", "1")
    assert merged.exit_code == 0, merged.output
    assert (place / "model" / "model.safetensors").exists()
    assert not list((place / "model").glob("tokenizer*"))


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        (Settings(prompts=Path("prompts.txt")), "--prompts: found prompts.txt"),
        (Settings(limit=3), "--limit: found 3"),
        (Settings(max_new_tokens=5), "--max-new-tokens: found 5"),
        (Settings(batch_size=2), "--batch-size: found 2"),
        (Settings(include_path=Path()), "--include-path: found ."),
    ],
)
def test_a_setting_that_no_evaluator_looks_at_is_refused(
    place: Path, settings: Settings, option: str
) -> None:
    """A function of one's own generates nothing and takes no limit."""
    by = "python:option_probes:one"
    for search in (
        lambda: sweep("recipe.yml", "beta=1", by, "out", settings=settings),
        lambda: greedy("recipe.yml", [by], "out", settings=settings),
    ):
        with pytest.raises(LinesError) as caught:
            search()
        assert f"{option}, and no evaluator of this search looks at it." in caught.value.message
    assert not (place / "out").exists()


def test_nothing_to_measure_by_is_told(place: Path) -> None:
    """Every search wants an evaluator, and names the option that gives one."""
    for search in (lambda: sweep("recipe.yml", "beta=1", [], "out"),
                   lambda: greedy("recipe.yml", [], "out")):  # fmt: skip
        with pytest.raises(LinesError, match="--evaluate: found none, wanted at least one"):
            search()
    with pytest.raises(LinesError, match="--rewards: found none, wanted at least one"):
        soup("recipe.yml", [], "out")
