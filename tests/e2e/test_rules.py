"""Coefficients that the weights tell: ``alpha: block`` and ``schedule: larv``."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from mergekit.merge_methods import merge_state_dicts

from mergekit_lines import LiveModel
from mergekit_lines.cli import main
from mergekit_lines.engine.engine import Engine
from mergekit_lines.errors import LinesError
from mergekit_lines.inspection.plot import Panel, draw
from mergekit_lines.lines import larv as rule
from tests import models
from tests.e2e import runner
from tests.e2e.runner import in_process
from tests.e2e.test_by_depth import block_of, edit_of, recipe, report
from tests.live.compare import assert_as_merged

BLOCKS = 4  # of the tiny LLaMA
TIES = {"wrap": "ties", "density": 0.4, "weight": 1.0}
Change = Callable[[models.Tensors], None]


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def uneven(llama_base: Path, checkpoints: Path) -> list[Path]:
    """The base and two models: no two blocks are alike, and one of them nobody changed."""
    base, scales = models.read(llama_base), (0.001, 0.02, 0.0, 0.3)
    folders = [llama_base]
    for seed in (1, 2):
        path = models.finetuned(llama_base, checkpoints / f"uneven_{seed}", seed=seed, scale=1.0)

        def shape(tensors: models.Tensors) -> None:
            for name, tensor in tensors.items():
                block = block_of(name)
                move = tensor - base[name]
                if block == 3 and move.ndim == 2:  # low rank, and half of it shared
                    move = move.mean(1, keepdim=True).expand_as(move) + move.mean(0) + 0.5
                scale = 0.01 if block is None else scales[block]
                tensors[name] = base[name] + scale * move

        folders.append(models.rewrite(path, shape))
    return folders


def by_block(vectors: Mapping[str, torch.Tensor]) -> dict[int | None, np.ndarray[Any, Any]]:
    """Return the entries of every block, and of all tensors under None."""
    parts: dict[int | None, list[np.ndarray[Any, Any]]] = {}
    for name, vector in vectors.items():
        entries = vector.double().numpy().ravel()
        for key in {block_of(name), None}:
            parts.setdefault(key, []).append(entries)
    return {key: np.concatenate(entries) for key, entries in parts.items()}


def equation_2(
    base: Path, tuned: Sequence[Path], merged: Path, order: int
) -> tuple[list[float], float]:
    """Return α = (1/N)·‖Σ τ_t‖/‖τ_MTL‖ of every block, and of the whole; zero norms take that."""
    zero, made = models.read(base), models.read(merged)
    inputs = [models.read(path) for path in tuned]
    task = by_block({name: made[name].double() - zero[name].double() for name in zero})
    total = by_block(
        {
            name: torch.stack([one[name].double() - zero[name].double() for one in inputs]).sum(0)
            for name in zero
        }
    )

    def norm(values: np.ndarray[Any, Any]) -> float:
        return float(np.linalg.norm(values, order))

    whole = norm(total[None]) / norm(task[None]) / len(tuned)
    blocks = [
        norm(total[n]) / norm(task[n]) / len(tuned) if norm(task[n]) and norm(total[n]) else whole
        for n in range(BLOCKS)
    ]
    return blocks, whole


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_alpha_block_is_equation_2_of_each_block(
    norm: str, uneven: list[Path], tmp_path: Path
) -> None:
    """λ(ℓ) = α_ℓ + β·x over mergekit's own TIES; outside has the α of the whole model."""
    stock = in_process(
        {**recipe(*uneven, density=0.4, weight=1.0), "merge_method": "ties"},
        tmp_path / "stock",
    )
    blocks, whole = equation_2(*(uneven[0], uneven[1:], stock), order=1 if norm == "l1" else 2)
    assert max(blocks) > 1.02 * min(blocks)  # there is something to tell
    lines = recipe(*uneven, alpha="block", beta=0.3, norm=norm, **TIES)
    out = in_process(lines, tmp_path / "out")
    written = report(out)
    assert written["alpha"]["value"] == pytest.approx(whole, rel=1e-5)
    assert written["alpha"]["blocks"] == {"model.layers": pytest.approx(blocks, rel=1e-5)}
    (container,) = written["containers"]
    want = [alpha + 0.1 * number for number, alpha in enumerate(blocks)]
    assert container["coefficients"] == pytest.approx(want, rel=1e-5)
    zero, merged, got = models.read(uneven[0]), models.read(stock), models.read(out)
    for name, start in zero.items():
        block = block_of(name)
        coefficient = whole if block is None else want[block]
        task = merged[name].double() - start.double()
        assert models.max_error_ratio(got[name], start.double() + coefficient * task) <= 2e-6
    verified = command("verify", out, "--all", "--json")
    assert verified.exit_code == 0, verified.output


def test_of_a_plain_sum_all_blocks_have_one_alpha(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """With one weight the ratio is 1/(N·w) in every block: no weight is read, none is listed."""
    lines = recipe(llama_base, llama_a, llama_b, alpha="block", beta=0.3, weight=0.8)
    written = report(in_process(lines, tmp_path / "out"))
    assert written["alpha"]["value"] == 1 / (2 * 0.8)
    assert "blocks" not in written["alpha"] and written["alpha"]["tau_sum"] is None


# --- larv --------------------------------------------------------------------------------


def rank_of(matrix: np.ndarray[Any, Any]) -> float:
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    shares = squares[squares > 1e-300] / squares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def larv(base: Path, tuned: Sequence[Path]) -> list[tuple[float, float, float]]:
    """Return contrast, conflict and level of every block, by the documented rule in numpy."""
    zero = {name: tensor.double().numpy() for name, tensor in models.read(base).items()}
    updates = [
        {name: tensor.double().numpy() - zero[name] for name, tensor in models.read(path).items()}
        for path in tuned
    ]
    pairs = []
    for block in range(BLOCKS):
        names = [name for name in zero if block_of(name) == block and zero[name].ndim == 2]
        ratios = [
            rank_of(zero[name]) / rank_of(update[name])
            for name in names
            for update in updates
            if np.any(update[name])
        ]
        flat = [np.concatenate([update[name].ravel() for name in names]) for update in updates]
        cosines = [
            one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            for one, other in itertools.combinations(flat, 2)
            if np.any(one) and np.any(other)
        ]
        contrast = float(np.mean(ratios)) if ratios else 0.0
        pairs.append((contrast, float(np.mean([(1 - c) / 2 for c in cosines] or [0.0]))))
    changed = [pair for pair in pairs if pair[0]]
    means, spreads = np.mean(changed, axis=0), np.std(changed, axis=0)
    result = []
    for pair in pairs:
        z = (np.asarray(pair) - means) / spreads if pair[0] else np.zeros(2)
        score = z[0] - z[1]
        result.append((*pair, 0.75 if score <= -0.5 else 1.25 if score >= 0.5 else 1.0))
    return result


def test_larv_scales_alpha_by_levels(uneven: list[Path], tmp_path: Path) -> None:
    """The stock command: λ = α·s(ℓ), s by ranks and conflict; told, reported, and verified."""
    want = larv(uneven[0], uneven[1:])
    assert [level for *_, level in want].count(1.0) < BLOCKS
    assert want[2] == (0.0, 0.0, 1.0)  # the block that nobody changed
    text = runner.recipe_text(recipe(*uneven, schedule="larv", alpha=0.4))
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    done = runner.run(["mergekit-yaml", "recipe.yml", "out"], tmp_path).succeeded()
    assert any("model.layers: larv multiplies alpha by 0.75 for" in m for m in done.messages)
    written = report(tmp_path / "out")
    (tiers,) = written["larv"].values()
    for tier, (contrast, conflict, level) in zip(tiers, want, strict=True):
        assert tier["contrast"] == pytest.approx(contrast, rel=1e-5)
        assert tier["conflict"] == pytest.approx(conflict, rel=1e-4)
        assert tier["level"] == level
    (container,) = written["containers"]
    assert container["coefficients"] == [0.4 * level for *_, level in want]
    assert set(written["outside"].values()) == {0.4}
    zero, got = models.read(uneven[0]), models.read(tmp_path / "out")
    inputs = [models.read(path) for path in uneven[1:]]
    for name, start in zero.items():
        block = block_of(name)
        coefficient = 0.4 * (1.0 if block is None else want[block][2])
        task = sum(one[name].double() - start.double() for one in inputs)
        assert models.max_error_ratio(got[name], start.double() + coefficient * task) <= 1e-6
    verified = command("verify", tmp_path / "out", "--all", "--json")
    assert verified.exit_code == 0, verified.output
    for key, told in (
        ("contrast", "the contrast 9 of block 1 of model.layers under larv is"),
        ("conflict", "the conflict 9 of block 1"),
    ):
        edited = json.loads(json.dumps(written))
        edited["larv"]["model.layers"][0][key] = 9.0
        (tmp_path / "out" / "lines_report.json").write_text(json.dumps(edited), encoding="utf-8")
        refused = command("verify", tmp_path / "out", "--all")
        assert refused.exit_code == 1 and told in refused.output, refused.output
        some = command("verify", tmp_path / "out", "--sample", "3")
        assert some.exit_code == 0 and "--all finds them again" in some.stdout
    (tmp_path / "out" / "lines_report.json").write_text(json.dumps(written), encoding="utf-8")
    shown = command("inspect", tmp_path / "out")
    assert "conflict" in shown.stdout and "0.75" in shown.stdout
    draw([Panel.reported(written)], tmp_path / "depth.png")  # as a card has it
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_level_is_found(
    uneven: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge by another level than the rule's is whole, and `verify --all` refuses it."""
    number = next(n for n, (*_, level) in enumerate(larv(uneven[0], uneven[1:])) if level == 0.75)
    monkeypatch.setattr(rule, "LOW", 0.5)
    out = in_process(recipe(*uneven, schedule="larv", alpha=0.4), tmp_path / "out")
    monkeypatch.undo()
    refused = command("verify", out, "--all")
    assert refused.exit_code == 1
    told = f"the level 0.5 of block {number + 1} of model.layers under larv is 0.75"
    assert told in refused.output


def test_larv_of_one_model_has_no_conflict(uneven: list[Path], tmp_path: Path) -> None:
    """With one model the contrast alone decides, around any wrap and an automatic α."""
    lines = recipe(*uneven[:2], schedule="larv", **TIES)
    written = report(in_process(lines, tmp_path / "out"))
    (tiers,) = written["larv"].values()
    assert [tier["conflict"] for tier in tiers] == [0.0] * BLOCKS
    (container,) = written["containers"]
    alpha = written["alpha"]["value"]
    assert container["coefficients"] == [alpha * tier["level"] for tier in tiers]


@pytest.mark.parametrize("rule", ["larv", "block"])
def test_threads_and_interruptions_change_nothing(
    rule: str, uneven: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One and two threads, and a run that goes on behind an interrupted one: the same bytes."""
    words = {"schedule": "larv"} if rule == "larv" else {"beta": 0.3}
    lines = recipe(*uneven, **words, alpha="block", **TIES)
    options = {"out_shard_size": 20_000, "write_model_card": False}
    want = models.digest(in_process(lines, tmp_path / "one", num_threads=1, **options))
    assert models.digest(in_process(lines, tmp_path / "two", num_threads=2, **options)) == want

    merge, done = Engine.merge, 0

    def interrupted(self: Engine, *arguments: Any) -> None:
        nonlocal done
        done += 1
        if done > 20:
            raise KeyboardInterrupt
        merge(self, *arguments)

    def never(self: Engine, *arguments: Any) -> None:
        raise AssertionError("what the interrupted run read is taken over")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "merge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            in_process(lines, tmp_path / "three", **options)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "spectrum", never)
        patch.setattr(Engine, "norms", never)
        assert models.digest(in_process(lines, tmp_path / "three", **options)) == want


def test_live_models_take_the_same_readings(uneven: list[Path], tmp_path: Path) -> None:
    """Set on a live model, one rule after the other, the weights are the files', to the bit."""
    with LiveModel(recipe(*uneven, beta=0.3, **TIES), quiet=True) as live:
        for number, words in enumerate(
            (
                {"alpha": "block"},
                {"alpha": "auto"},
                {"alpha": "block", "norm": "l2"},
                {"alpha": 0.4, "beta": None, "schedule": "larv"},
                {"alpha": "block"},
                {"alpha": None, "blocks": "layers"},
            )
        ):
            live.set(words)
            assert_as_merged(live, tmp_path / f"out{number}")


def test_state_dicts_take_the_same_readings(uneven: list[Path], tmp_path: Path) -> None:
    """mergekit's `merge_state_dicts` gives the files' tensors, by either rule."""
    states = {"base": models.read(uneven[0])}
    states |= {path.name: models.read(path) for path in uneven[1:]}
    for number, words in enumerate(({"alpha": "block", "beta": 0.3}, {"schedule": "larv"})):
        lines = recipe(*uneven, **words, **TIES)
        want = models.read(in_process(lines, tmp_path / f"out{number}"))
        got = merge_state_dicts(states, "lines", parameters={**words, **TIES}, base="base")
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_mergekit_pytorch_takes_the_same_readings(uneven: list[Path], tmp_path: Path) -> None:
    """The command that sees one tensor at a time reads the model twice, and writes the same."""
    lines = recipe(*uneven, schedule="larv", alpha="block", **TIES)
    want = models.read(in_process(lines, tmp_path / "yaml"))
    raw = {**lines, "base_model": str(uneven[0] / "model.safetensors")}
    raw["models"] = [{"model": str(path / "model.safetensors")} for path in uneven[1:]]
    (tmp_path / "raw.yml").write_text(runner.recipe_text(raw), encoding="utf-8")
    runner.run(["mergekit-pytorch", "raw.yml", "raw"], tmp_path).succeeded()
    got = models.read(tmp_path / "raw")
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_inspect_says_that_weights_tell(uneven: list[Path], tmp_path: Path) -> None:
    """Without reading weights, λ is α and more for `block`, and unknown for `larv`."""
    text = runner.recipe_text(recipe(*uneven, alpha="block", beta=0.3, **TIES))
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    found = json.loads(command("inspect", tmp_path / "recipe.yml", "--json").stdout)
    (document,) = found["documents"]
    assert document["alpha_source"] == "Eq. 2, found for each block when the weights are read"
    (container,) = document["containers"]
    values = [block["coefficients"] for block in container["blocks"]]
    assert values == [[{"value": pytest.approx(0.1 * n), "plus_alpha": True}] for n in range(4)]
    text = runner.recipe_text(recipe(*uneven, schedule="larv", alpha=0.4))
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    shown = command("inspect", tmp_path / "recipe.yml")
    assert shown.exit_code == 0 and "schedule: larv reads" in shown.stdout
    found = json.loads(command("inspect", tmp_path / "recipe.yml", "--json").stdout)
    ((container,),) = ([*one["containers"]] for one in found["documents"])
    assert all(block["coefficients"] == [] for block in container["blocks"])
    plot = command("inspect", tmp_path / "recipe.yml", "--plot", tmp_path / "depth.png")
    assert plot.exit_code == 0, plot.output


def test_models_that_equal_the_base(llama_base: Path, tmp_path: Path) -> None:
    """larv of no update at all is α everywhere; `block` has no norm, and is refused."""
    twin = models.finetuned(llama_base, tmp_path / "twin", seed=1, scale=0.0)
    written = report(
        in_process(recipe(llama_base, twin, schedule="larv", alpha=0.4), tmp_path / "out")
    )
    (container,) = written["containers"]
    assert container["coefficients"] == [0.4] * BLOCKS
    with pytest.raises(LinesError, match="found a norm of zero"):
        in_process(recipe(llama_base, twin, alpha="block", beta=0.3, **TIES), tmp_path / "no")


def test_one_block_has_nothing_to_compare_with(tmp_path: Path) -> None:
    """A container of one block has the middle level, and the α of that block."""
    base = models.llama(tmp_path / "base", layers=1)
    tuned = [models.finetuned(base, tmp_path / f"m{seed}", seed=seed) for seed in (1, 2)]
    written = report(in_process(recipe(base, *tuned, schedule="larv", alpha=0.4), tmp_path / "a"))
    assert written["containers"][0]["coefficients"] == [0.4]
    written = report(
        in_process(recipe(base, *tuned, alpha="block", beta=0.3, **TIES), tmp_path / "b")
    )
    (alpha,) = written["alpha"]["blocks"]["model.layers"]
    assert written["containers"][0]["coefficients"] == [alpha] and math.isfinite(alpha)


def test_one_edited_model_is_not_compared(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """lines_postprocess refuses both rules, and says what to write."""
    with pytest.raises(LinesError, match="lines_postprocess sees one model, and larv compares"):
        in_process(edit_of(llama_base, llama_a, gamma=0.3, schedule="larv"), tmp_path / "out")
    with pytest.raises(LinesError, match="found 'block', wanted a finite number"):
        in_process(edit_of(llama_base, llama_a, alpha="block", beta=0.3), tmp_path / "out")
