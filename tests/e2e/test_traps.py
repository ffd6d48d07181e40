"""Traps that a review of the code found, each with what should happen."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mergekit_lines.checkpoint.out import partial_path
from mergekit_lines.checkpoint.state import MARK
from mergekit_lines.errors import LinesError
from tests import models
from tests.e2e.runner import in_process


def recipe(base: Path, *others: Path, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": "lines",
        "base_model": str(base),
        "models": [{"model": str(other)} for other in others],
        "parameters": {"alpha": 0.3, "beta": 0.3, **parameters},
        "dtype": "float32",
    }


def untied(path: Path) -> Path:
    """A Gemma whose head is its own, though its class can tie it."""
    from transformers import GemmaConfig

    config = GemmaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        tie_word_embeddings=False,
    )
    return models.save("GemmaForCausalLM", config, path)


def test_an_untied_head_is_not_taken_for_a_tied_one(tmp_path: Path) -> None:
    """A head that the config does not tie and mergekit has no place for is merged, not lost."""
    base = untied(tmp_path / "base")
    tuned = models.finetuned(base, tmp_path / "tuned", seed=1)
    in_process(recipe(base, tuned), tmp_path / "out")
    origin, change = (models.read(path)["lm_head.weight"].double() for path in (base, tuned))
    merged = models.read(tmp_path / "out")["lm_head.weight"]
    expected = origin + 0.3 * (change - origin)  # outside the blocks: alpha
    assert models.max_error_ratio(merged, expected) <= 1e-6


def test_a_head_that_nobody_holds_is_refused(tmp_path: Path) -> None:
    """A config that unties a head which no file holds: transformers would draw it at random."""
    base = models.llama(tmp_path / "base", tied=True)
    models.edit_config(base, tie_word_embeddings=False)
    tuned = models.finetuned(base, tmp_path / "tuned", seed=1)
    with pytest.raises(LinesError, match=r"no model holds lm_head\.weight.*tie_word_embeddings"):
        in_process(recipe(base, tuned), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_unties_the_head_is_refused(tmp_path: Path) -> None:
    """A base that ties its head and a model with a head of its own do not go together."""
    base = models.llama(tmp_path / "base", tied=True)
    tuned = models.llama(tmp_path / "tuned", tied=False, seed=2)
    with pytest.raises(LinesError, match=r"unties lm_head\.weight"):
        in_process(recipe(base, tuned), tmp_path / "out")


def test_a_configuration_can_be_used_again(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """``run_merge`` leaves the caller's configuration as it was: twice the same model."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(recipe(llama_base, llama_a, llama_b, wrap="linear"))
    before = config.model_copy(deep=True)
    for name in ("first", "second"):
        run_merge(config, str(tmp_path / name), MergeOptions(quiet=True))
    assert config == before
    assert models.weights_digest(tmp_path / "first") == models.weights_digest(tmp_path / "second")


@pytest.mark.parametrize("wrap", ["linear", "karcher"])
def test_base_ignoring_wraps_in_slices(
    wrap: str, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """In slices it cannot be told whether the base is one of the models: refused."""
    made = recipe(llama_base, wrap=wrap)
    del made["models"]
    layers = {"layer_range": [0, 4]}
    made["slices"] = [{"sources": [{"model": str(p), **layers} for p in (llama_base, llama_a)]}]
    with pytest.raises(LinesError, match=f"{wrap} ignores the base"):
        in_process(made, tmp_path / "out")


def test_slices_with_more_sources_later(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """The head is merged from the last slice's models, all of them."""
    made = recipe(llama_base)
    del made["models"]

    def piece(first: int, last: int, *paths: Path) -> dict[str, Any]:
        layers = {"layer_range": [first, last]}
        return {"sources": [{"model": str(p), **layers} for p in (llama_base, *paths)]}

    made["slices"] = [piece(0, 2, llama_a), piece(2, 4, llama_a, llama_b)]
    out = models.read(in_process(made, tmp_path / "out"))["lm_head.weight"]
    zero, one, two = (
        models.read(path)["lm_head.weight"].double() for path in (llama_base, llama_a, llama_b)
    )
    assert models.max_error_ratio(out, zero + 0.3 * (one - zero + two - zero)) <= 1e-6


def test_postprocess_never_counts_the_base(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """A base that is listed, or needed in slices, does not make two models of one."""
    listed = recipe(llama_base, llama_base, llama_a)
    sliced = recipe(llama_base)
    del sliced["models"]
    layers = {"layer_range": [0, 4]}
    sliced["slices"] = [{"sources": [{"model": str(p), **layers} for p in (llama_base, llama_a)]}]
    plain = recipe(llama_base, llama_a)
    outs = []
    for name, made in (("listed", listed), ("sliced", sliced), ("plain", plain)):
        edit = made | {"merge_method": "lines_postprocess"}
        outs.append(models.read(in_process(edit, tmp_path / name)))
    for name, tensor in outs[2].items():
        assert outs[0][name].equal(tensor)
        assert outs[1][name].equal(tensor)


def test_merges_in_threads(llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path) -> None:
    """Merges of one process in several threads draw what they draw alone."""
    made = recipe(llama_base, llama_a, llama_b, wrap="dare_ties", density=0.5)
    text = yaml.safe_dump(made)
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    def merge(name: str) -> None:
        config = MergeConfiguration.model_validate(yaml.safe_load(text))
        run_merge(config, str(tmp_path / name), MergeOptions(quiet=True), text)

    merge("alone")
    threads = [threading.Thread(target=merge, args=(f"t{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = models.weights_digest(tmp_path / "alone")
    assert [models.weights_digest(tmp_path / f"t{n}") for n in range(3)] == [want] * 3


def test_a_tokenizer_that_cannot_be_copied_is_refused(
    llama_a: Path, llama_base: Path, tmp_path: Path
) -> None:
    """mergekit would log a traceback, write no tokenizer and call the merge successful."""
    import shutil

    base = tmp_path / "base"
    shutil.copytree(llama_base, base)
    (base / "tokenizer_config.json").unlink()
    (base / "tokenizer.json").write_text("{")
    with pytest.raises(LinesError, match="Give --no-copy-tokenizer"):
        in_process(recipe(base, llama_a), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_through_a_link(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """OUT may be a link to an empty folder, which then holds the model."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    in_process(recipe(llama_base, llama_a), tmp_path / "link")
    assert (tmp_path / "real" / "config.json").exists()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir(), reason="needs a second file system that can be written to"
)
def test_out_on_another_file_system(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """Where OUT is a mount point its partial folder lies inside it, and the rename works."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        (tmp_path / "link").symlink_to(place)
        in_process(recipe(llama_base, llama_a), tmp_path / "link")
        assert (Path(place) / "model.safetensors").exists()
        assert not [path for path in Path(place).iterdir() if "partial" in path.name]
    assert partial_path(Path("/dev/shm")).parent == Path("/dev/shm")


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_in_the_way_of_the_partial_folder(
    kind: str, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """A file, a link or somebody's folder of that name is left alone, and named."""
    partial = tmp_path / ".out.partial"
    if kind == "file":
        partial.write_text("mine")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        partial.symlink_to(tmp_path / "elsewhere")
    else:
        partial.mkdir()
        (partial / "notes.txt").write_text("mine")
    with pytest.raises(LinesError, match="in the way of the partial folder"):
        in_process(recipe(llama_base, llama_a), tmp_path / "out")
    assert partial.exists()
    assert not (partial / MARK).exists()


def test_the_root_is_no_output_folder(llama_base: Path, llama_a: Path) -> None:
    """OUT ``/`` is refused."""
    with pytest.raises(LinesError, match="root of the file system"):
        in_process(recipe(llama_base, llama_a), Path("/"))


def test_values_beyond_the_dtype_are_told_as_such(
    llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """An input that the recipe's dtype makes infinite is not called broken."""
    import shutil

    big = tmp_path / "big"
    shutil.copytree(llama_a, big)

    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][0, 0] = 1e5

    models.rewrite(big, enlarge)
    made = recipe(llama_base, big) | {"dtype": "float16"}
    with pytest.raises(LinesError, match=r"beyond the recipe's dtype torch\.float16"):
        in_process(made, tmp_path / "out")


def test_all_that_is_static_is_told_at_once(llama_base: Path, tmp_path: Path) -> None:
    """A bad dtype, a missing β, a missing model and a bad word come in one message."""
    made = recipe(llama_base, tmp_path / "absent", norm="l3") | {"dtype": "float17"}
    del made["parameters"]["beta"]
    with pytest.raises(LinesError) as caught:
        in_process(made, tmp_path / "out")
    text = caught.value.format_message()
    for place in ("dtype: found 'float17'", "parameters.norm", "no such folder"):
        assert place in text


def test_calibration_has_a_progress_bar(
    llama_base: Path, llama_a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading every input for Eq. 2 shows how far it is."""
    made = recipe(llama_base, llama_a, wrap="ties", alpha="auto")
    in_process(made, tmp_path / "out", quiet=False)
    assert "Calibrating alpha" in capsys.readouterr().err


def test_a_recipe_with_a_fence_stays_inside_the_card(
    llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """Three backticks in a comment do not end the card's code block."""
    text = "# ```\n" + yaml.safe_dump(recipe(llama_base, llama_a))
    card = (in_process(text, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    assert "````yaml\n# ```\n" in card
