"""What a search measures beside LiNeS, and what it refuses to go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lines import LinesError, LiveModel, greedy, soup, sweep
from mergekit_lines.search.measuring.means import uniform, unscaled
from mergekit_lines.search.telling import draw_sweep
from tests import models
from tests.search.lm_tasks import write_task

PROBES = """
def size(model, tokenizer, split):
    import torch
    ids = torch.arange(8)[None] + (split == "test")
    return {"size": model(input_ids=ids).logits.double().abs().mean(-1)[0].tolist()}

def length(prompts, completions):
    return [float(len(text)) for text in completions]

def stopped(model, tokenizer):
    raise KeyboardInterrupt

def half(model, tokenizer):
    model.half()
    return 1.0
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with functions to evaluate by."""
    (tmp_path / "bench_probes.py").write_text(PROBES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(base: Path, *tuned: Path, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(model)} for model in tuned],
        "parameters": {"alpha": 0.25, "beta": 0.5, **parameters},
    }


def sliced(base: Path, tuned: Path, first: list[int], second: list[int]) -> dict[str, Any]:
    """Two slices, the second with a schedule of its own."""
    slices = [
        {"sources": [{"model": str(model), "layer_range": place} for model in (base, tuned)]}
        for place in (first, second)
    ]
    slices[1]["parameters"] = {"alpha": 0.6, "beta": 0.9, "schedule": "sqrt"}  # type: ignore[assignment]
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "slices": slices,
        "parameters": {"alpha": 0.2, "beta": 0.3, "outside": 0.1},
    }


def test_what_has_no_depth_has_one_coefficient(llama_base: Path, llama_a: Path) -> None:
    """Slices' own words would win over the recipe's: in every block λ is 1, or the mean."""
    given = sliced(llama_base, llama_a, [0, 2], [2, 4])
    with LiveModel(given, quiet=True) as live:
        live.set_recipe(unscaled(given))
        (blocks,) = live.summary.containers.values()
        assert blocks == [[1.0]] * 4
        assert set(live.summary.outside.values()) == {1.0}
        live.set_recipe(uniform(given, 0.4))
        (blocks,) = live.summary.containers.values()
        assert blocks == [[0.4]] * 4
        assert set(live.summary.outside.values()) == {0.1}  # the recipe's own


def test_gamma_is_ours_in_lines_postprocess_alone() -> None:
    """Under lines it is the wrapped method's, as breadcrumbs has it."""
    ours = {"merge_method": "lines_postprocess", "parameters": {"gamma": 0.3}}
    assert uniform(ours, 0.5)["parameters"] == {"alpha": 0.5, "beta": 0.0}
    other = {"merge_method": "lines", "parameters": {"gamma": 0.01, "wrap": "breadcrumbs"}}
    assert unscaled(other)["parameters"]["gamma"] == 0.01


def test_a_frankenmerge_is_not_measured_beside_its_inputs(
    llama_base: Path, llama_a: Path, place: Path
) -> None:
    """The base has four blocks, the output eight: no number of the output is the base's."""
    given = sliced(llama_base, llama_a, [0, 4], [0, 4])
    with (
        LiveModel(given, quiet=True) as live,
        pytest.raises(LinesError, match="other blocks than the output"),
    ):
        live.load()
    by = ["python:bench_probes:size"]
    with pytest.raises(LinesError, match=r"--objective mean: model .* has other blocks"):
        sweep(given, "parameters.outside=0,1", by, "found", quiet=True)
    found = sweep(given, "outside=0,1", by, "found", objective="size", quiet=True)
    assert not found.inputs
    assert len(found.points) == 2


def test_a_key_that_every_model_overrides_is_refused(
    llama_base: Path, llama_a: Path, place: Path
) -> None:
    """A sweep of it would be flat, and its choice mean nothing."""
    given = recipe(llama_base, llama_a)
    given["models"][0]["parameters"] = {"weight": 0.5}
    with pytest.raises(LinesError, match=r"every model has a weight of its own.*Set models\.0"):
        sweep(given, "weight=0.1,0.9", ["python:bench_probes:size"], "found", quiet=True)


def test_changed_tokenizer_and_options_are_another_search(
    llama_base: Path, llama_a: Path, place: Path
) -> None:
    """What the numbers hang on beside weights: the base's tokenizer, model options."""
    base = place / "base"
    shutil.copytree(llama_base, base)
    given, by = recipe(base, llama_a), ["python:bench_probes:size"]
    sweep(given, "beta=0.1", by, "found", quiet=True)
    with pytest.raises(LinesError, match="options differ"):
        sweep(given, "beta=0.1", by, "found", quiet=True, copy_tokenizer=False)
    with pytest.raises(LinesError, match=r"random_seed: found 1, wanted parameters\.seed"):
        sweep(given, "beta=0.1", by, "other", quiet=True, random_seed=1)
    path = base / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))
    path.write_text(json.dumps(content))
    with pytest.raises(LinesError, match="inputs differ"):
        sweep(given, "beta=0.1", by, "found", quiet=True)


def test_nothing_of_the_users_is_written_over(llama_base: Path, llama_a: Path, place: Path) -> None:
    """A folder with a best.yml of somebody else's is refused, and left as it is."""
    (place / "mine").mkdir()
    (place / "mine" / "best.yml").write_text("mine")
    given = recipe(llama_base, llama_a)
    with pytest.raises(LinesError, match=r"found best\.yml without the search\.json"):
        sweep(given, "beta=0.1", ["python:bench_probes:size"], "mine", quiet=True)
    assert (place / "mine" / "best.yml").read_text() == "mine"


def test_what_was_of_another_choice_does_not_stay(
    llama_base: Path, llama_a: Path, place: Path
) -> None:
    """Results for a card go when the next choice has no test; nothing of the model's is left."""
    given, by = recipe(llama_base, llama_a), ["python:bench_probes:size"]
    sweep(given, "beta=0.1", by, "found", test=by, quiet=True)
    (place / "found" / "results.json").write_text("{}")
    sweep(given, "beta=0.1,0.2", by, "found", quiet=True)
    assert not (place / "found" / "results.json").exists()
    assert not (place / "found" / ".work").exists()


def test_an_evaluator_that_changes_the_model_is_told(
    llama_base: Path, llama_a: Path, place: Path
) -> None:
    """Later points would be rounded to what it left behind; so they would in a live model."""
    with LiveModel(recipe(llama_base, llama_a), quiet=True) as live:
        live.model.half()
        with pytest.raises(LinesError, match=r"was changed from outside: found torch\.float16"):
            live.set(beta=0.2)
    with pytest.raises(LinesError, match=r"half: changed the model's weights \(parameter lm_head"):
        sweep(
            recipe(llama_base, llama_a),
            "beta=0.1,0.2",
            ["python:bench_probes:half"],
            "found",
            objective="half",
            quiet=True,
        )


def test_ctrl_c_tells_how_to_go_on(
    llama_base: Path, llama_a: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It passes, after a line that says where the results are."""
    with pytest.raises(KeyboardInterrupt):
        sweep(recipe(llama_base, llama_a), "beta=0.1", ["python:bench_probes:stopped"], "found")
    assert "[lines] what was measured is kept in found: the same command" in capsys.readouterr().err
    assert not (place / "found" / ".work").exists()


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        (["one.txt", "two.txt"], "other data for"),
        (["one.txt", "one.txt&limit=2"], "other (data|options) for"),
        (["single.txt", "single.txt"], "of two prompts or more"),
    ],
)
def test_a_front_is_of_one_set_of_prompts(
    rewards: list[str], told: str, llama_base: Path, llama_a: Path, llama_b: Path, place: Path
) -> None:
    """Its intervals pair the scores of two rewards prompt by prompt."""
    for name, texts in {"one": "abc", "two": "xyz", "single": "a"}.items():
        (place / f"{name}.txt").write_text("\n".join(texts))
    specs = [
        f"{name}=rewards:bench_probes:length?prompts={file}"
        for name, file in zip(("first", "second"), rewards, strict=True)
    ]
    with pytest.raises(LinesError, match=told):
        soup(recipe(llama_base, llama_a, llama_b), specs, "found", points=2, quiet=True)


def test_a_greedy_soup_is_a_mean(
    llama_base: Path, llama_a: Path, llama_b: Path, place: Path
) -> None:
    """lambda, and an α that counts models, would make it something else."""
    by = ["python:bench_probes:size"]
    with pytest.raises(LinesError, match=r"parameters\.lambda: found 0\.3"):
        greedy(recipe(llama_base, llama_a, llama_b, **{"lambda": 0.3}), by, "found", quiet=True)
    with pytest.raises(LinesError, match=r"parameters\.alpha: found auto"):
        greedy(recipe(llama_base, llama_a, llama_b, alpha="auto"), by, "found", quiet=True)


@pytest.mark.parametrize("given", [None, [], "", {"merge_method": "lines", "models": ["a", "b"]}])
def test_no_recipe_is_one_sentence(given: Any, place: Path) -> None:
    """An empty file, a list, models without their key."""
    path = place / "recipe.yml"
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    by = ["rewards:bench_probes:length"]
    for search in (soup, greedy):
        with pytest.raises(LinesError, match="recipe"):
            search(path, by, "found")
    with pytest.raises(LinesError, match="recipe"):
        sweep(path, "beta=1", by, "found")


def test_shared_examples_are_refused_after_a_resumed_run_too(
    llama_base: Path, llama_a: Path, place: Path
) -> None:
    """What lm-eval's tasks hold is known by measuring: an earlier run's knowledge counts."""
    pytest.importorskip("lm_eval")
    for name, rows in {"one": ["a", "b"], "two": ["b", "c"]}.items():
        write_task(place, name, [f"tok{ord(q)}" for q in rows])
    given = recipe(llama_base, llama_a)
    one = f"lm_eval:one?include_path={place}"
    sweep(given, "beta=0.1", [one], "found", objective="one", quiet=True)
    with pytest.raises(LinesError, match="1 example is in both"):
        sweep(
            given,
            "beta=0.1",
            [one],
            "found",
            test=[f"lm_eval:two?include_path={place}"],
            objective="one",
            quiet=True,
        )


def test_the_weights_are_those_of_the_point(llama_base: Path, llama_a: Path) -> None:
    """A uniform coefficient of 1 and the unscaled merge are the fine-tuned model itself."""
    given = recipe(llama_base, llama_a)
    tuned = models.read(llama_a)
    with LiveModel(given, quiet=True) as live:
        live.set_recipe(unscaled(given))
        state = live.model.state_dict()
        for name, tensor in tuned.items():
            assert models.max_error_ratio(state[name], tensor) <= 1e-6
        live.load(str(llama_a))
        assert all(torch.equal(state[name], tensor) for name, tensor in tuned.items())


def test_values_by_depth_are_an_axis_beside_their_mean(
    llama_base: Path, llama_a: Path, place: Path
) -> None:
    """Coefficients in a sweep have the uniform one of equal mean beside them, measured once."""
    given = recipe(llama_base, llama_a)
    given["parameters"] = {"wrap": "task_arithmetic"}
    axis = "schedule=0.1,0.2,0.4,0.9;0.4,0.4,0.4,0.4;0.9,0.4,0.2,0.1;0.1,0.9"
    by = ["python:bench_probes:size"]
    swept = sweep(given, axis, by, "found", objective="size", quiet=True)
    means = [0.4, 0.4, 0.4, 0.5]  # over the four blocks
    assert [point.lines.mean for point in swept.points] == pytest.approx(means, rel=1e-12)
    flat = [point.records["uniform, equal mean"] for point in swept.points]
    assert [record.recipe["parameters"] for record in flat] == [
        {"wrap": "task_arithmetic", "alpha": mean, "beta": 0.0} for mean in means
    ]
    assert swept.points[1].scores["LiNeS"] == swept.points[1].scores["uniform, equal mean"]
    lines = (place / "found" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 2 + 4 + 2 + 1  # inputs, LiNeS, two means, unscaled
    draw_sweep(swept, place / "figure.png")
    assert (place / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize("rule", [{"alpha": "block", "beta": 0.5}, {"schedule": "larv"}])
def test_a_rule_is_measured_beside_its_mean(
    rule: dict[str, Any], llama_base: Path, llama_a: Path, llama_b: Path, place: Path
) -> None:
    """What the weights tell is set on the live model; its mean is that of the blocks' λ."""
    given = recipe(llama_base, llama_a, llama_b)
    given["parameters"] = {"wrap": "ties", "density": 0.5, **rule}
    by = ["python:bench_probes:size"]
    swept = sweep(given, "outside=0.2,0.3", by, "found", objective="size", quiet=True)
    with LiveModel({**given, "parameters": {**given["parameters"], "outside": 0.2}}) as live:
        (blocks,) = live.summary.containers.values()
    mean = sum(value for (value,) in blocks) / len(blocks)
    flat = swept.points[0].records["uniform, equal mean"].recipe["parameters"]
    assert flat == {
        "wrap": "ties",
        "density": 0.5,
        "outside": 0.2,
        "alpha": pytest.approx(mean, rel=1e-11),
        "beta": 0.0,
    }
