"""Trunks that their own class saved without a pooler are whole, and load again as such."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mergekit_lines import LiveModel
from mergekit_lines.errors import LinesError
from mergekit_lines.hub.whole import merged_model
from tests import models
from tests.e2e.runner import in_process

SAVED = {
    "BertModel": models.bert_seqcls,
    "ViTModel": models.vit,
}


def trunk(kind: str, path: Path, *, pooler: bool = False) -> Path:
    """Save a trunk of a class, with a pooler or without."""
    whole = SAVED[kind](path.with_name(f"{path.name}-whole"), layers=3, seed=1)
    cls = getattr(transformers, kind)
    cls.from_pretrained(whole, add_pooling_layer=pooler).save_pretrained(path)
    assert ("pooler.dense.weight" in models.read(path)) == pooler
    return path


def recipe(base: Path, tuned: Path) -> dict[str, Any]:
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(tuned)}],
        "parameters": {"alpha": 0.5, "beta": 0.0, "weight": 0.5},
    }


def as_loaded(kind: str, out: Path) -> dict[str, torch.Tensor]:
    """Return what transformers reads of a merge, which has a tensor for every parameter."""
    cls = getattr(transformers, kind)
    model, loading = cls.from_pretrained(out, add_pooling_layer=False, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    state: dict[str, torch.Tensor] = model.state_dict()
    assert len(state) == len(models.read(out))
    return state


def assert_alike(model: Any, state: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    assert set(own) == set(state)
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())


def lose_pooler(path: Path) -> None:
    models.rewrite(path, lambda held: {n: t for n, t in held.items() if "pooler" not in n})


@pytest.mark.parametrize("kind", SAVED)
def test_trunks_without_a_pooler_merge(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every tensor is the formula's in float64, the card's lines load it, and a push takes it."""
    base = trunk(kind, tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    out = in_process(recipe(base, tuned), tmp_path / "out", quiet=False)
    assert (
        f"model {base}: its files hold no pooler, nor does OUT, which is loaded with "
        f"add_pooling_layer=False"
    ) in capsys.readouterr().err
    start, end, merged = models.read(base), models.read(tuned), models.read(out)
    assert set(merged) == set(start)
    for name, tensor in merged.items():
        first = start[name].double()
        expected = first + 0.5 * 0.5 * (end[name].double() - first)
        assert models.max_error_ratio(tensor, expected) <= 1e-6, name
    text = (out / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0].replace("path/to/out", str(out))
    names: dict[str, Any] = {}
    exec(code, names)
    assert type(names["model"]).__name__ == kind
    assert_alike(names["model"], as_loaded(kind, out))
    notes = merged_model(out).notes
    assert "its files hold no pooler: it is loaded with add_pooling_layer=False" in notes


@pytest.mark.parametrize("kind", SAVED)
def test_trunks_without_a_pooler_are_live(kind: str, tmp_path: Path) -> None:
    """The live model has no pooler either, and the merge's tensors bit for bit."""
    base = trunk(kind, tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    out = in_process(recipe(base, tuned), tmp_path / "out")
    with LiveModel(recipe(base, tuned), quiet=True) as live:
        assert_alike(live.model, as_loaded(kind, out))


@pytest.mark.parametrize("kind", SAVED)
def test_a_fine_tune_that_lost_its_base_s_pooler_is_refused(kind: str, tmp_path: Path) -> None:
    """It is no trunk of the base's kind: loaded as it, it would have a pooler drawn at random."""
    base = trunk(kind, tmp_path / "base", pooler=True)
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    lose_pooler(tuned)
    with pytest.raises(LinesError, match=r"pooler\.dense\.weight"):
        in_process(recipe(base, tuned), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", SAVED)
def test_a_trunk_that_lacks_more_than_a_pooler_is_refused(kind: str, tmp_path: Path) -> None:
    """All that a class does without is the pooler: matrices of a block are named."""
    base = trunk(kind, tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "a", seed=2)
    for path in (base, tuned):
        models.rewrite(path, lambda held: {n: t for n, t in held.items() if ".1.output" not in n})
    with pytest.raises(LinesError, match=rf"lacks tensors of {kind}.*(output|fc2)"):
        in_process(recipe(base, tuned), tmp_path / "out")
    assert not (tmp_path / "out").exists()
