"""Bad recipes and bad models are refused by ``mergekit-yaml`` in one message, leaving no trace.

The faults and the words wanted of each message are in :mod:`tests.cases`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import models as make
from tests.cases import BY_ID, CASES
from tests.cases.case import ALL_LAYERS, Build, Case, Models
from tests.cases.checkpoints import sharded, with_adapter
from tests.cases.recipes import entry, listing, post, slices, words
from tests.e2e import runner

# One of each kind of fault, as a shell would run it.
INSTALLED = (
    "misspelt-parameter",
    "wrap-dare",
    "model-typo",
    "shard-missing",
    "nan-in-a-model",
    "out-holds-a-model",
)
_NUMBERED = re.compile(r"^  \d+\. ", re.MULTILINE)
_ERROR = re.compile(r"^Error: ", re.MULTILINE)


@pytest.fixture(scope="module")
def models(llama_base: Path, llama_a: Path, llama_b: Path, adapter: Path) -> Models:
    """The session's checkpoints."""
    return Models(llama_base, llama_a, llama_b, adapter)


Run = Callable[[list[str], Path, Path], runner.Result]
Refusal = tuple[runner.Result, str, dict[str, Any], dict[str, Any]]


def refuse(case: Case, folder: Path, models: Models, run: Run) -> Refusal:
    """Build and run a case; return its result, its message, and the disk before and after."""
    bad = runner.recipe_text(case.build(folder, models))
    (folder / "recipe.yml").write_text(bad, encoding="utf-8")
    (folder / "scratch").mkdir()
    with case.during(folder):
        before = seen(folder, models)
        command = ["mergekit-yaml", "recipe.yml", case.out, *case.flags]
        result = run(command, folder, folder / "scratch")
        after = seen(folder, models)
    return result, message(result, folder, models), before, after


def seen(folder: Path, models: Models) -> dict[str, Any]:
    """Return what is on disk: all files with their digests and all folders, the inputs too."""
    return {
        "folders": sorted(str(path) for path in folder.rglob("*") if path.is_dir()),
        "files": make.digest(folder),
        "inputs": {str(path): make.digest(path) for path in models.folders},
    }


def message(result: runner.Result, folder: Path, models: Models) -> str:
    """Return what stands after ``Error: [lines] ``, or all of stderr where that is not there once.

    The folders of the test are taken out of it: no phrase may be found in their names.
    """
    text = result.stderr
    if len(_ERROR.findall(text)) == 1:
        text = text.partition("\nError: ")[2] or text.removeprefix("Error: ")
        text = text.removeprefix("[lines] ").rstrip("\n")
    for place in (folder, models.base.parent):
        text = text.replace(f"{place}/", "")
    return text


def contains(text: str, phrase: str) -> bool:
    """Tell whether a text holds a phrase as whole words."""
    start = r"(?<!\w)" if phrase[0].isalnum() else ""
    end = r"(?!\w)" if phrase[-1].isalnum() else ""
    return bool(re.search(start + re.escape(phrase) + end, text))


def check(case: Case, refusal: Refusal) -> None:
    """Assert that a command refused the case as it should and left the disk as it was."""
    result, text, before, after = refusal
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == 1, f"exit status {result.returncode}\n{result.stderr}"
    assert result.stderr.count("Error: [lines] ") == 1, result.stderr
    lacking = [phrase for phrase in case.expected if not contains(text, phrase)]
    assert not lacking, f"the message lacks {lacking}:\n{text}"
    numbered = len(_NUMBERED.findall(text))
    assert len(text.splitlines()) == (numbered + 1 if numbered else 1), f"more lines:\n{text}"
    problems = numbered or 1
    wanted = problems if case.problems is None else case.problems
    assert problems == wanted, f"{problems} problems, wanted {wanted}:\n{text}"
    assert after == before


SOUND = {
    "lines": words(),
    "lines_postprocess": post(gamma=0.3),
    "adapter": with_adapter(lambda path: None),
    "shards": sharded(lambda path: None),
    "slices": slices(base=ALL_LAYERS, a=ALL_LAYERS, b=ALL_LAYERS),
    "wrap": listing("a", parameters={"wrap": "slerp", "t": 0.5, "alpha": 0.3, "beta": 0.3}),
}


@pytest.mark.parametrize("build", SOUND.values(), ids=SOUND)
def test_recipe_without_a_fault_merges(
    build: Build, tmp_path: Path, models: Models, server: runner.ForkServer
) -> None:
    """What the cases spoil are recipes that merge, so the fault alone is what is refused."""
    good = runner.recipe_text(build(tmp_path, models))
    (tmp_path / "recipe.yml").write_text(good, encoding="utf-8")
    command = ["mergekit-yaml", "recipe.yml", "out", "--lora-merge-cache", "cache"]
    server.run(command, tmp_path, tmp_path).succeeded()
    assert make.read(tmp_path / "out").keys() == make.read(models.base).keys()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_refused(case: Case, tmp_path: Path, models: Models, server: runner.ForkServer) -> None:
    """A fault ends ``mergekit-yaml`` with status 1, one full message, and nothing left on disk."""
    check(case, refuse(case, tmp_path, models, server.run))


@pytest.fixture(scope="module")
def installed(
    tmp_path_factory: pytest.TempPathFactory, models: Models
) -> Iterator[dict[str, Future[Refusal]]]:
    """The cases :data:`INSTALLED` as real commands, two at a time: each imports for seconds."""

    def act(case: Case, folder: Path) -> Refusal:
        def run(command: list[str], cwd: Path, scratch: Path) -> runner.Result:
            return runner.run(command, cwd, {"TMPDIR": str(scratch)})

        return refuse(case, folder, models, run)

    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(act, BY_ID[name], tmp_path_factory.mktemp("installed"))
            for name in INSTALLED
        }


@pytest.mark.parametrize("name", INSTALLED)
def test_refused_by_the_installed_command(name: str, installed: dict[str, Future[Refusal]]) -> None:
    """The command as a shell starts it refuses in the same way as its forked stand-in."""
    check(BY_ID[name], installed[name].result())


def two_documents(
    name: str, folder: Path, models: Models, server: runner.ForkServer, **top: Any
) -> runner.Result:
    """Run ``mergekit-multi`` on a first merge called ``name`` and a merge with ``wrap: ties``.

    ``top`` are more keys of the second document.
    """
    second = words(wrap="ties")(folder, models) | top
    second["models"] = [entry(name), entry(models.b)]
    documents = [{"name": name, **words()(folder, models)}, second]
    text = "---\n".join(runner.recipe_text(document) for document in documents)
    (folder / "recipe.yml").write_text(text, encoding="utf-8")
    places = ["--intermediate-dir", "steps", "--out-path", "merged"]
    return server.run(["mergekit-multi", "recipe.yml", *places], folder, folder)


def test_multi_documents_merge(tmp_path: Path, models: Models, server: runner.ForkServer) -> None:
    """A ``mergekit-multi`` file of two documents merges under a name that means nothing else."""
    two_documents("step", tmp_path, models, server).succeeded()
    assert make.read(tmp_path / "merged").keys() == make.read(models.base).keys()


def test_multi_document_named_as_the_wrap(
    tmp_path: Path, models: Models, server: runner.ForkServer
) -> None:
    """A document named ``ties`` is refused: mergekit puts its path in place of the wrap's name."""
    result = two_documents("ties", tmp_path, models, server)
    assert result.returncode == 1, result.stderr
    assert not (tmp_path / "merged").exists()
    text = message(result, tmp_path, models)
    assert "Traceback" not in result.stderr, result.stderr
    assert all(contains(text, phrase) for phrase in ("wrap", "ties", "name", "document")), text


def test_multi_document_with_an_unknown_key(
    tmp_path: Path, models: Models, server: runner.ForkServer
) -> None:
    """A key that nobody declares is refused in ``mergekit-multi`` too, before the first merge."""
    result = two_documents("step", tmp_path, models, server, out_dtpye="bfloat16")
    assert result.returncode == 1, result.stderr
    assert not (tmp_path / "merged").exists() and not list((tmp_path / "steps").iterdir())
    assert "Traceback" not in result.stderr, result.stderr
    text = message(result, tmp_path, models)
    assert text == "out_dtpye: nobody declares this key. Did you mean 'out_dtype'?"


def test_case_ids_are_distinct() -> None:
    """No case hides another of the same name."""
    assert len(BY_ID) == len(CASES) >= 30
