"""Opening models: what cannot be opened is named, and copies last as long as they are used."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from mergekit.common import ModelReference
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.headers import read_headers
from mergekit_lines.errors import LinesError
from mergekit_lines.host.state import fresh_caches
from mergekit_lines.plan.opening import adapter_of, open_model, open_models
from tests import models
from tests.plan.preparing import configuration


def reference(path: Path | str) -> ModelReference:
    return ModelReference.model_validate(str(path))


def test_a_model_is_opened_with_all_its_names(llama_base: Path) -> None:
    """The index of a checkpoint is every name that its file holds."""
    with fresh_caches():
        LoaderCache().setup(options=MergeOptions())
        loader = open_model(reference(llama_base))
    assert set(loader.index.tensor_paths) == set(models.read(llama_base))


def test_broken_weights_are_named(llama_base: Path, tmp_path: Path) -> None:
    """A file that is no checkpoint is told with the model and what to do."""
    folder = models.finetuned(llama_base, tmp_path / "tuned", seed=5)
    (folder / "model.safetensors").write_bytes(b"no header at all")
    with fresh_caches():
        LoaderCache().setup(options=MergeOptions())
        with pytest.raises(LinesError) as caught:
            open_model(reference(folder))
    text = str(caught.value)
    assert text.startswith(f"[lines] model {folder}: its files (model.safetensors)")
    assert text.endswith("Download or save it again.")


def test_an_adapter_is_read_over_its_base(llama_base: Path, adapter: Path) -> None:
    """A LoRA adapter is opened as one; nothing is copied for it, and its base is no copy either."""
    options = MergeOptions()
    model = reference(f"{llama_base}+{adapter}")
    with fresh_caches():
        opened = adapter_of(model, read_headers(llama_base).tensors, options)
    assert opened is not None
    assert opened.reason is None
    opened.close()


def test_over_a_pickled_base_peft_merges(llama_base: Path, adapter: Path) -> None:
    """Without headers of the base there are no shards to read an adapter over."""
    assert adapter_of(reference(f"{llama_base}+{adapter}"), None, MergeOptions()) is None


def test_peft_would_quantise_the_base(llama_base: Path, adapter: Path, tmp_path: Path) -> None:
    """Where peft has to merge, a quantization_config left over the base's weights is refused."""
    base = shutil.copytree(llama_base, tmp_path / "base")
    models.edit_config(base, quantization_config={"quant_method": "bitsandbytes"})
    other = shutil.copytree(adapter, tmp_path / "other")
    text = (other / "adapter_config.json").read_text()
    (other / "adapter_config.json").write_text(text.replace('"LORA"', '"LOHA"'))
    tensors = read_headers(base).tensors
    with fresh_caches():
        model = reference(f"{base}+{other}")
        with pytest.raises(LinesError, match=rf"quantization_config in {base}/config.json. Take"):
            adapter_of(model, tensors, MergeOptions())
        opened = adapter_of(reference(f"{base}+{adapter}"), tensors, MergeOptions())
        assert opened is not None
        opened.close()


def test_an_adapter_of_another_base(adapter: Path, tmp_path: Path) -> None:
    """An adapter that does not fit is refused under the name of model and adapter together."""
    base = models.llama(tmp_path / "wide", hidden=64, tokenizer=False)
    model = reference(f"{base}+{adapter}")
    with fresh_caches(), pytest.raises(LinesError) as caught:
        adapter_of(model, read_headers(base).tensors, MergeOptions())
    assert str(model) in str(caught.value)


def test_a_copy_lasts_as_long_as_the_merge(
    llama_base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What peft merges lies in the cache that was given, and is gone with the stack."""
    from mergekit_lines.plan import opening

    monkeypatch.setattr(opening, "adapter_of", lambda *_: None)
    cache = tmp_path / "cache"
    config = configuration(llama_base, Path(f"{llama_base}+{adapter}"))
    options = MergeOptions(lora_merge_cache=str(cache))
    with fresh_caches(), ExitStack() as stack:
        LoaderCache().setup(options=options)
        open_models(config, options, tmp_path / "partial", stack)
        assert list(cache.rglob("*.safetensors"))
    assert not cache.exists()
    assert not (tmp_path / "partial").exists()
