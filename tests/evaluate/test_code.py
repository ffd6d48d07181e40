"""Which files of code an evaluator's numbers hang on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from mergekit_lines import LinesError
from mergekit_lines.evaluate.harness.files import code_digests
from tests.evaluate.conftest import one


def code(spec: str) -> dict[str, str]:
    files: dict[str, str] = one(spec).identity()["code"]
    return files


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_what_a_module_imports_of_yours_counts(here: Any) -> None:
    """At the top, in functions, by packages, by relative names, and of what is imported in turn."""
    texts = {
        "judge.py": "import helper, torch\nfrom kit import words\ndef f(m, t):\n    import late\n",
        "helper.py": "from deep import thing\n",
        "deep.py": "thing = 1\n",
        "late.py": "",
        "kit/__init__.py": "from .inner import x\n",
        "kit/inner.py": "from . import more\nx = 1\n",
        "kit/more.py": "",
        "kit/words.py": "from loose.part import z\n",
        "loose/part.py": "z = 1\n",
        "other.py": "",
        "kit/other.py": "",
    }
    for name, text in texts.items():
        here(name, text)
    wanted = {name: digest(text) for name, text in texts.items() if "other" not in name}
    assert code("python:judge:f") == wanted
    here("late.py", "x = 2\n")
    assert code("python:judge:f") == {**wanted, "late.py": digest("x = 2\n")}


def test_a_reward_s_helper_counts(here: Any) -> None:
    """Likewise of functions that score texts."""
    here("score.py", "import aid\ndef f(p, c):\n    return [0.0] * len(p)\n")
    here("aid.py", "")
    here("prompts.txt", "w1")
    assert sorted(code("rewards:score:f?prompts=prompts.txt")) == ["aid.py", "score.py"]


def test_a_helper_that_changed_since_it_was_imported_is_told(here: Any) -> None:
    """Python runs what it was: the digest would be of another program."""
    here("judge.py", "import aid\ndef f(m, t):\n    return aid.x\n")
    path = here("aid.py", "x = 1\n")
    assert set(code("python:judge:f")) == {"judge.py", "aid.py"}
    here("aid.py", "x = 2\n")
    with pytest.raises(LinesError, match=rf"{path}: changed since it was imported"):
        one("python:judge:f")


def test_installed_packages_are_not_walked(here: Any) -> None:
    """Of an installed package the evaluator's own file counts, and nothing beside it."""
    (name,) = code("python:torch.nn.functional:gelu")
    assert Path(name).name == "functional.py"
    here("judge.py", "import torch, mergekit.merge, yaml\ndef f(m, t):\n    return 1\n")
    assert set(code("python:judge:f")) == {"judge.py"}


def test_what_a_task_s_functions_import_counts(here: Any) -> None:
    """A task of lm-evaluation-harness hangs on its Python files' helpers too."""
    path = here("tasks/mine.yaml", "task: mine\nprocess_docs: !function utils.f\n")
    here("tasks/utils.py", "import task_helper_of_mine\ndef f(docs):\n    return docs\n")
    here("task_helper_of_mine.py", "")
    here("judge.py", "def f(m, t):\n    return 1\n")
    one("python:judge:f")  # the current directory is one that Python imports from
    names = {Path(name).name for name in code_digests(path, path.parent)}
    assert names == {"mine.yaml", "utils.py", "task_helper_of_mine.py"}


@pytest.mark.parametrize("ends", ["sys.exit()", "sys.exit(0)", "sys.exit('no data')", "exit()"])
def test_an_exit_is_a_failure(here: Any, model: Any, ends: str) -> None:
    """When it is called and when it is imported: never the end of the program."""
    here("leaving.py", f"import sys\ndef f(m, t):\n    {ends}\n")
    with pytest.raises(LinesError, match=r"raised SystemExit.* at .*leaving\.py, line 3"):
        one("python:leaving:f").measure(model, None)
    here("left.py", f"import sys\n{ends}\n")
    with pytest.raises(LinesError, match=r"left cannot be imported \(SystemExit.*left\.py, line 2"):
        one("python:left:f")


def test_ctrl_c_passes(here: Any, model: Any) -> None:
    """It is the user's."""
    here("stopping.py", "def f(m, t):\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        one("python:stopping:f").measure(model, None)


def test_an_import_that_changes_the_directory_moves_nothing(here: Any) -> None:
    """The next file is found where it was named."""
    folder = here("moving.py", "import os\nos.chdir('/')\ndef f(m, t):\n    return 1\n").parent
    assert set(code("python:moving:f")) == {"moving.py"}
    assert Path.cwd() == folder
