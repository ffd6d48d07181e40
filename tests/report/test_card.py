"""Names for others: recipes, reports and cards without the paths of the merging machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from mergekit.config import MergeConfiguration

from mergekit_lines.errors import LinesError
from mergekit_lines.report.card import card, is_edited
from mergekit_lines.report.metadata import Facts, Licence, checked, inherited
from mergekit_lines.report.origins import Origins, is_local

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPORT: dict[str, Any] = {
    "mergekit_lines": "0.1.0",
    "versions": {"torch": "2.5"},
    "merge_method": "lines",
    "wrap": ["ties"],
    "alpha": {"value": 0.5, "source": "recipe"},
    "containers": [{"name": "model.layers", "coefficients": [0.5, [0.5, 0.75], 1.0]}],
    "outside": {"lm_head.weight": 0.5},
}


def parsed(text: str) -> MergeConfiguration:
    return MergeConfiguration.model_validate(yaml.safe_load(text))


def origins(text: str, inputs: dict[str, Any] | None = None, out: str = "OUT") -> Origins:
    return Origins(parsed(text), inputs or {}, Path(out))


def recipe(*names: str) -> str:
    listed = "".join(f"- model: {name}\n" for name in names[1:])
    return (
        f"merge_method: lines\nbase_model: {names[0]}\nmodels:\n{listed}parameters: {{beta: 1}}\n"
    )


def test_a_recipe_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hub ids stay, snapshots become ids at their commit, folders `./NAME`; the rest stays."""
    monkeypatch.chdir(tmp_path)
    for name in ("ties", "deep/model", "other/model", "adapter"):
        (tmp_path / name).mkdir(parents=True)
    cached = tmp_path / "models--org--cached" / "snapshots" / COMMIT
    cached.mkdir(parents=True)
    text = f"""# by me, in {tmp_path}/deep, see https://example.org/a/b
merge_method: lines
base_model: {cached}   # downloaded
models:
  - model: "{tmp_path}/deep/model"
  - model: other/model   # relative
  - {{model: ties}}
  - model: org/hub@dev+./adapter
parameters:
  wrap: ties   # no folder
  weight: [{{filter: /home/x, value: 1.0}}, {{value: 0.5}}]
tokenizer:
  source: union
  tokens: {{a: {{source: other/model}}}}
"""
    found = origins(text)
    assert (
        found.recipe(text)
        == f"""# by me, in deep, see https://example.org/a/b
merge_method: lines
base_model: org/cached@{COMMIT}   # downloaded
models:
  - model: ./model
  - model: ./model-2   # relative
  - {{model: ./ties}}
  - model: org/hub@dev+./adapter
parameters:
  wrap: ties   # no folder
  weight: [{{filter: /home/x, value: 1.0}}, {{value: 0.5}}]
tokenizer:
  source: union
  tokens: {{a: {{source: ./model-2}}}}
"""
    )
    assert [origin.name for origin in found.hub] == ["org/cached", "org/hub"]
    assert [origin.name for origin in found.local] == ["model", "model-2", "ties", "adapter"]


def test_the_report_knows_what_came_from_the_hub() -> None:
    """Where the command runs tells nothing: a relative path may look like an id."""
    text = recipe("org/base", "mine/model")
    inputs = {"org/base": {"revision": COMMIT, "files": {}}, "mine/model": {"files": {}}}
    found = origins(text, inputs)
    assert [origin.name for origin in found.hub] == ["org/base"]
    assert "- model: ./model\n" in found.recipe(text)
    assert f"base_model: org/base@{COMMIT}\n" in found.pinned(text)
    report = found.report({"inputs": inputs, "dropped": {"mine/model": ["a"]}, "recipe": text})
    assert list(report["inputs"]) == ["org/base", "./model"]
    assert report["dropped"] == {"./model": ["a"]}
    assert "mine" not in json.dumps(report)


def test_one_model_at_two_revisions() -> None:
    """Each is pinned to its own commit."""
    other = COMMIT[::-1]
    text = recipe("org/base", "org/base@dev", "org/base+org/adapter@v1")
    inputs = {
        "org/base": {"revision": COMMIT},
        "org/base@dev": {"revision": other},
        "org/base+org/adapter@v1": {"revision": COMMIT, "adapter": {"revision": other}},
    }
    found = origins(text, inputs)
    assert found.recipe(text) == text
    assert found.pinned(text) == recipe(
        f"org/base@{COMMIT}", f"org/base@{other}", f"org/base@{COMMIT}+org/adapter@{other}"
    )
    # Anyone may write a report.
    found = origins(text, {"org/base": {"revision": "main; x"}})
    assert found.pinned(text) == text


@pytest.mark.parametrize(
    ("licences", "wanted"),
    [
        (["mit", "mit"], "mit"),
        (["mit", None], None),
        (["mit", "apache-2.0"], None),
        (["other", "other"], None),
        ([("other", "a", "LICENSE"), ("other", "b", "LICENSE")], None),
        ([("other", "a", "https://x.y/1"), ("other", "a", "https://x.y/2")], "other"),
    ],
)
def test_which_licence_is_inherited(licences: list[Any], wanted: str | None) -> None:
    """One that all inputs have by name; `other` alone is no name."""
    (origin,) = origins(recipe("org/a", "org/a")).hub
    listed = [
        entry if isinstance(entry, tuple) or entry is None else (entry,) for entry in licences
    ]
    found = [Facts(origin, entry and Licence(*entry)) for entry in listed]
    licence = inherited(found)
    assert (licence and licence.license) == wanted
    assert licence is None or licence == found[0].licence


@pytest.mark.parametrize(
    ("path", "local"),
    [
        *((path, True) for path in ("/a/b", "./a", "../a", "~/a", "a/b/c", "C:\\a", "a b/c", "")),
        *((path, False) for path in ("gpt2", "org/name", "meta-llama/Llama-2-7b-hf")),
    ],
)
def test_what_is_a_folder(path: str, local: bool) -> None:
    assert is_local(path) is local


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json and its like lose paths, whoever wrote them, and no byte where there is none."""
    found = origins(recipe(f"{tmp_path}/base", "org/a"))
    plain = '{"_name_or_path": "org/a",\n "x": [1, "a/b"]}'
    assert found.settings(plain) == plain
    for given, name in ((f"{tmp_path}/base", "base"), ("/mnt/somebody/else", "else")):
        text = found.settings(json.dumps({"_name_or_path": given, "x": f"{tmp_path}/y/z"}))
        assert json.loads(text) == {"_name_or_path": name, "x": "z"}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/srv/kept/hub")
    found = origins(recipe(f"{tmp_path}/base", "org/a"))
    text = json.dumps({"map_file": f"/srv/kept/hub/models--org--a/snapshots/{COMMIT}/map.json"})
    assert json.loads(found.settings(text)) == {"map_file": "map.json"}
    assert found.leak(f"see {tmp_path}/base/x, or not") == f"{tmp_path}/base/x"
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    found = origins(recipe("org/b", "org/a"))
    assert found.leak('"/root": 17, "/root/": 18') is None  # a vocabulary
    assert found.leak("in /root/.cache/x") == "/root/.cache/x"
    found = origins(recipe(f"{tmp_path}/base", "org/a"))
    assert found.leak(f"see {tmp_path}-other, http://a{tmp_path}") is None


def test_the_card_of_a_local_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is inherited from cards on this machine; an editor of the text is noticed."""
    monkeypatch.chdir(tmp_path)
    for name, language in (("base", "de"), ("tuned", "en")):
        (tmp_path / name).mkdir()
        named = "license: other\nlicense_name: mine\nlicense_link: LICENSE\n"  # a file beside it
        text = f"---\n{named}language: {language}\n---\n# x\n"
        (tmp_path / name / "README.md").write_text(text)
    out = tmp_path / "OUT"
    out.mkdir()
    (out / "config.json").write_text('{"architectures": ["WhisperForConditionalGeneration"]}')
    text = recipe(f"{tmp_path}/base", "tuned")
    content = {**REPORT, "recipe": text, "inputs": {f"{tmp_path}/base": {}, "tuned": {}}}
    written = card(out, parsed(text), content, "OUT")
    found = ModelCard(written)
    assert found.data.to_dict() == {
        "language": ["de"],
        "library_name": "transformers",
        "license": "other",
        "license_name": "mine",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["mergekit", "merge", "lines"],
    }
    assert str(tmp_path) not in written
    assert "| block 2 | 0.5, 0.75 |" in written
    assert "AutoModelForSpeechSeq2Seq" in written and "AutoTokenizer" not in written
    assert checked(written) == written
    assert "mergekit-yaml recipe.yml OUT\n" in written
    flags = ["--random-seed", "7", "--out-shard-size", "60000"]
    again = card(out, parsed(text), {**content, "flags": flags}, "OUT")
    assert f"mergekit-yaml recipe.yml OUT {' '.join(flags)}\n" in again
    assert not is_edited(written)
    assert not is_edited(written.replace("license_name: mine", "license_name: yours"))
    assert is_edited(written.replace("# OUT", "# Better"))
    assert is_edited("# mine\n")
    (tmp_path / "tuned" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert ModelCard(card(out, parsed(text), content, "OUT")).data.license is None


@pytest.mark.parametrize("text", ["# no front matter\n", "---\n- a\n---\n", "---\n{\n---\n"])
def test_front_matter_that_is_none(text: str) -> None:
    with pytest.raises(LinesError, match="front matter"):
        checked(text)
