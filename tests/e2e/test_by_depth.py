"""Coefficients of any shape by depth, against the formulas in float64."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from mergekit_lines import LiveModel, edit_state_dict, scale_task_vector
from mergekit_lines.cli import main
from mergekit_lines.errors import LinesError
from tests import models
from tests.e2e import runner
from tests.e2e.runner import in_process
from tests.live.compare import assert_as_merged

BLOCKS = 4  # of the tiny LLaMA
VALUES = (0.1, 0.9, 0.2, 0.6)
TEXT = "0.1, 0.9, 0.2, 0.6"
PAIR, SPREAD = "-0.5,1", (-0.5, 0.0, 0.5, 1.0)  # two values over four blocks
PLACE = re.compile(r"model\.layers\.(\d+)\.")


def recipe(base: Path, *tuned: Path | str, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(model)} for model in tuned],
        "parameters": parameters,
        "dtype": "float32",
    }


def edit_of(base: Path, tuned: Path | str, **parameters: Any) -> dict[str, Any]:
    return {**recipe(base, tuned, **parameters), "merge_method": "lines_postprocess"}


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def report(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "lines_report.json").read_text(encoding="utf-8")))


def block_of(name: str) -> int | None:
    found = PLACE.match(name)
    return int(found[1]) if found else None


def assert_scaled(
    out: Mapping[str, torch.Tensor],
    base: Path,
    *tuned: Path,
    by_block: tuple[float, ...],
    outside: float,
    weight: float = 1.0,
) -> None:
    """Assert θ_0 + λ·w·Σ τ_t in float64 for every tensor, λ by its block."""
    zero, models_in = models.read(base), [models.read(path) for path in tuned]
    assert out.keys() == zero.keys()
    for name, got in out.items():
        start = zero[name].double()
        task = weight * sum(one[name].double() - start for one in models_in)
        block = block_of(name)
        coefficient = outside if block is None else by_block[block]
        assert models.max_error_ratio(got, start + coefficient * task) <= 1e-6, name


def test_the_command_takes_values_by_depth(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """The stock command merges by one value per block; outside has the first; it is told."""
    text = runner.recipe_text(recipe(llama_base, llama_a, llama_b, schedule=TEXT, weight=0.5))
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    done = runner.run(["mergekit-yaml", "recipe.yml", "out"], tmp_path).succeeded()
    assert any("model.layers: 4 blocks, coefficient 0.1 to 0.6" in m for m in done.messages)
    assert_scaled(
        models.read(tmp_path / "out"),
        *(llama_base, llama_a, llama_b),
        by_block=VALUES,
        outside=0.1,
        weight=0.5,
    )
    written = report(tmp_path / "out")
    (container,) = written["containers"]
    assert container["coefficients"] == list(VALUES)
    assert set(written["outside"].values()) == {0.1}
    verified = command("verify", tmp_path / "out", "--all", "--json")
    assert verified.exit_code == 0, verified.output


def test_other_numbers_of_values_are_interpolated(
    llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """Two values over four blocks are a line; outside is its own number where one is said."""
    lines = recipe(llama_base, llama_a, schedule=PAIR, outside=0.25)
    out = models.read(in_process(lines, tmp_path / "lines"))
    assert_scaled(out, llama_base, llama_a, by_block=SPREAD, outside=0.25)
    edit = edit_of(llama_base, llama_a, schedule=PAIR, outside=0.25)
    edited = models.read(in_process(edit, tmp_path / "edit"))
    assert all(torch.equal(edited[name], out[name]) for name in out)


def test_filters_give_a_container_values_of_its_own(
    llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """Some tensors have values, the others α and β, through mergekit's own filters."""
    lines = recipe(
        llama_base,
        llama_a,
        schedule=[{"filter": "self_attn", "value": TEXT}, {"value": "linear"}],
        alpha=[{"filter": "mlp", "value": 0.3}, {"filter": "norm", "value": 0.3}],
        beta=[{"filter": "mlp", "value": 0.6}, {"filter": "norm", "value": 0.6}],
    )
    with pytest.raises(LinesError, match="beta: found nothing"):  # of embedding and head
        in_process(lines, tmp_path / "short")
    for name in ("alpha", "beta"):
        value = lines["parameters"][name][0]["value"]
        lines["parameters"][name] += [
            {"filter": part, "value": value} for part in ("embed_tokens", "lm_head")
        ]
    out = models.read(in_process(lines, tmp_path / "out"))
    zero, one = models.read(llama_base), models.read(llama_a)
    for name, got in out.items():
        block, start = block_of(name), zero[name].double()
        coefficient = 0.3 if block is None else 0.3 + 0.2 * block
        if "self_attn" in name and block is not None:
            coefficient = VALUES[block]
        want = start + coefficient * (one[name].double() - start)
        assert models.max_error_ratio(got, want) <= 1e-6, name


def test_edit_takes_values_as_its_schedule(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """`edit --schedule` is the recipe with the same text, of folders and of single files."""
    flags = ("--schedule", TEXT.replace(" ", ""), "--dtype", "float32")
    done = command("edit", llama_a, "--base", llama_base, "--out", tmp_path / "out", *flags)
    assert done.exit_code == 0, done.output
    assert_scaled(models.read(tmp_path / "out"), llama_base, llama_a, by_block=VALUES, outside=0.1)
    files = [path / "model.safetensors" for path in (llama_a, llama_base)]
    target = tmp_path / "one.safetensors"
    done = command("edit", files[0], "--base", files[1], "--out", target, *flags)
    assert done.exit_code == 0, done.output
    want = models.read(tmp_path / "out")
    got = load_file(target)
    assert all(torch.equal(got[name], want[name]) for name in want)
    refused = command("edit", llama_a, "--base", llama_base, "--out", "o", *flags, "--gamma", "1")
    assert refused.exit_code == 1
    assert "parameters.schedule: found values together with gamma" in refused.output


def test_state_dicts_take_values(llama_base: Path, llama_a: Path) -> None:
    """The two functions of Python give what the recipe gives."""
    zero, one = models.read(llama_base), models.read(llama_a)
    edited = edit_state_dict(zero, one, schedule=TEXT)
    assert_scaled(edited, llama_base, llama_a, by_block=VALUES, outside=0.1)
    vector = {name: one[name] - zero[name] for name in one}
    for name, scaled in scale_task_vector(vector, schedule=TEXT).items():
        block = block_of(name)
        coefficient = 0.1 if block is None else VALUES[block]
        assert torch.equal(scaled, vector[name] * coefficient), name
    with pytest.raises(LinesError, match="found values together with alpha and beta"):
        scale_task_vector(vector, schedule=TEXT, alpha=0.1, beta=0.2)
    with pytest.raises(LinesError, match=r"parameters\.beta: found nothing, wanted alpha and beta"):
        scale_task_vector(vector, alpha=0.1)


def test_a_live_model_holds_what_the_files_hold(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """Values that are set on a live model are those of the merge, to the bit."""
    start = recipe(llama_base, llama_a, llama_b, wrap="ties", density=0.5, beta=0.3)
    with LiveModel(start, quiet=True) as live:
        live.set(schedule=TEXT, beta=None)
        assert_as_merged(live, tmp_path / "values")
        live.set(schedule=PAIR, outside=0.4)
        assert_as_merged(live, tmp_path / "pair")
        with pytest.raises(LinesError, match=r'ONE text: schedule: "0.1, 0.2"'):
            live.set(schedule=[0.1, 0.2])
