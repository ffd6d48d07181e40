"""Every seam of mergekit that the package relies on, by name.

An upgrade of mergekit that moves one of them fails here.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel

import mergekit_lines
from mergekit_lines.errors import LinesError
from mergekit_lines.host import seams
from mergekit_lines.host.seams import SEAMS, Seam
from tests.e2e import runner

PACKAGE = Path(mergekit_lines.__file__).parent
COVERED = {(seam.module, seam.name) for seam in SEAMS}

# Names that the sources use and that no seam can check, with the reason.
NOT_SEAMS = {
    # An annotation, without a value: see test_every_method_has_a_spec.
    ("mergekit.merge_methods.base", "MergeMethod.spec"),
}


def named(seam: Seam) -> str:
    """Return a seam's whole name."""
    return f"{seam.module}.{seam.name}"


# --- each seam, in mergekit as it was installed --------------------------------------------

DIFFERENCES = """
import json
from mergekit_lines.host import seams
print(json.dumps({f"{s.module}.{s.name}": seams._difference(s) for s in seams.SEAMS}))
"""


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What the check says of every seam where mergekit is not extended.

    In an extended mergekit the planner is ours, and would be compared with itself.
    """
    command = [sys.executable, "-c", DIFFERENCES]
    off = {"MERGEKIT_LINES_AUTOLOAD": "0"}
    done = runner.run(command, tmp_path_factory.mktemp("seams"), off).succeeded()
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("seam", SEAMS, ids=named)
def test_seam(differences: dict[str, str | None], seam: Seam) -> None:
    """The installed mergekit has this seam, with the parameters or fields we use."""
    assert differences[named(seam)] is None


def test_each_seam_is_named_once() -> None:
    """No seam stands in the list twice."""
    assert len(COVERED) == len(SEAMS)


# --- the list is whole ---------------------------------------------------------------------


def _submodule(package: str, name: str) -> str | None:
    """Return the whole name of a package's module, or None where ``name`` is no module."""
    if not hasattr(importlib.import_module(package), "__path__"):
        return None
    return f"{package}.{name}" if importlib.util.find_spec(f"{package}.{name}") else None


class Uses(ast.NodeVisitor):
    """Collects (module, name) of all that one source file takes from mergekit.

    Followed are imports, attributes of mergekit modules (imported, or got by
    ``import_module("mergekit...")`` directly, through a function that returns it, or through a
    table from module names to functions), attributes of classes of mergekit, and those of
    parameters that are annotated with such a class.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.found: set[tuple[str, str]] = set()
        self.modules: dict[str, str] = {}  # local name -> mergekit module
        self.classes: dict[str, tuple[str, str]] = {}  # local name -> (module, class)
        self.getters: dict[str, str] = {}  # function -> the module it returns
        self.tables: dict[str, str] = {}  # function -> the module its first argument is
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return):
                if module := self._module(node.body[-1].value):
                    self.getters[node.name] = module
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    name = str(getattr(key, "value", ""))
                    if name.startswith("mergekit.") and isinstance(value, ast.Name):
                        self.tables[value.id] = name
        self.visit(tree)

    def _module(self, node: ast.AST | None) -> str | None:
        """Return the name of the mergekit module that an expression gives, if it is one."""
        if isinstance(node, ast.Name):
            return self.modules.get(node.id)
        if isinstance(node, ast.Attribute) and (owner := self._module(node.value)):
            return _submodule(owner, node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self.getters.get(node.func.id)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            name = getattr(node.args[0], "value", "")
            return name if str(name).startswith("mergekit.") else None
        return None

    def visit_Import(self, node: ast.Import) -> None:
        """Remember a module's name; ``import mergekit.plan`` binds ``mergekit``."""
        for alias in node.names:
            if alias.name.partition(".")[0] == "mergekit":
                self.modules[alias.asname or "mergekit"] = (
                    alias.name if alias.asname else "mergekit"
                )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Collect a name, or remember it as a module's."""
        module = str(node.module)
        if module.partition(".")[0] != "mergekit":
            return
        for alias in node.names:
            local = alias.asname or alias.name
            if whole := _submodule(module, alias.name):
                self.modules[local] = whole
            else:
                self.found.add((module, alias.name))
                self.classes[local] = (module, alias.name)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Remember a variable that holds a module."""
        if module := self._module(node.value):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    self.modules[target.id] = module
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Follow a function's parameters: modules from a table, or annotated with a class."""
        outer = self.modules, self.classes
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        own = {argument.arg: argument.annotation for argument in arguments}
        self.modules = {name: value for name, value in outer[0].items() if name not in own}
        self.classes = {name: value for name, value in outer[1].items() if name not in own}
        if node.name in self.tables:
            self.modules[arguments[0].arg] = self.tables[node.name]
        for name, annotation in own.items():
            if isinstance(annotation, ast.Name) and annotation.id in outer[1]:
                self.classes[name] = outer[1][annotation.id]
        self.generic_visit(node)
        self.modules, self.classes = outer

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Collect an attribute of a module, of a class, or of a parameter of that class."""
        if module := self._module(node.value):
            if not _submodule(module, node.attr):
                self.found.add((module, node.attr))
        elif isinstance(node.value, ast.Name) and node.value.id in self.classes:
            module, owner = self.classes[node.value.id]
            self.found.add((module, f"{owner}.{node.attr}"))
        self.generic_visit(node)


def all_uses() -> Iterator[tuple[tuple[str, str], str]]:
    """Yield all that the package takes from mergekit, each with the file that takes it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for use in Uses(tree).found:
            yield use, str(path.relative_to(PACKAGE))


def is_covered(module: str, name: str) -> bool:
    """Tell whether a seam checks ``module.name``, as itself, by its parts, or by its fields."""
    if (module, name) in COVERED or (module, name) in NOT_SEAMS:
        return True
    owner, _, attribute = name.partition(".")
    if not attribute:
        return any(seam.module == module and seam.name.startswith(f"{name}.") for seam in SEAMS)
    value = getattr(importlib.import_module(module), owner)
    if issubclass(value, BaseModel) and hasattr(BaseModel, attribute):
        return True
    home = value.__module__  # a class may be imported from a package that only passes it on
    return (home, name) in COVERED or any(
        (seam.module, seam.name) == (home, owner) and attribute in seam.fields + seam.parameters
        for seam in SEAMS
    )


def test_every_use_of_mergekit_is_a_seam() -> None:
    """Whatever the sources take from mergekit, by import or as an attribute, is in SEAMS."""
    missing = sorted({f"{'.'.join(u)} ({f})" for u, f in all_uses() if not is_covered(*u)})
    assert missing == []


WRITTEN = """
import importlib
import mergekit.graph
import mergekit.io.tasks as tasks
from mergekit import config
from mergekit.merge_methods.base import BasePolicy
from mergekit.options import MergeOptions

def registry():
    return importlib.import_module("mergekit.merge_methods.registry")

def extend(merge):
    merge.run_merge()

TABLE = {"mergekit.merge": extend}

def use(options: MergeOptions, config: int):
    found = registry()
    return options.device, config.not_mergekits, found.get, registry().register

config.ConditionalParameter, tasks.LoaderCache, mergekit.graph.Task, BasePolicy.REQUIRED
"""


def test_uses_are_found_in_each_way_they_can_be_written() -> None:
    """The search sees names however they are reached, and no names of something else."""
    assert Uses(ast.parse(WRITTEN)).found == {
        ("mergekit.merge_methods.base", "BasePolicy"),
        ("mergekit.options", "MergeOptions"),
        ("mergekit.merge", "run_merge"),
        ("mergekit.options", "MergeOptions.device"),
        ("mergekit.merge_methods.registry", "get"),
        ("mergekit.merge_methods.registry", "register"),
        ("mergekit.config", "ConditionalParameter"),
        ("mergekit.io.tasks", "LoaderCache"),
        ("mergekit.graph", "Task"),
        ("mergekit.merge_methods.base", "BasePolicy.REQUIRED"),
    }


def test_nothing_is_excused_that_is_not_used() -> None:
    """The list of exceptions holds only what the sources still use."""
    uses = {use for use, _ in all_uses()}
    assert uses >= NOT_SEAMS


def test_every_method_has_a_spec() -> None:
    """Every method that is registered carries a ``MergeMethodSpec`` as ``spec``."""
    from mergekit.merge_methods import registered_methods
    from mergekit.merge_methods.base import MergeMethodSpec

    assert all(isinstance(method.spec, MergeMethodSpec) for method in registered_methods())


def test_the_planner_keeps_what_ours_builds_on() -> None:
    """Every attribute that LinesPlanner takes from mergekit's planner is made by that planner."""
    from mergekit_lines.plan.planner import LinesPlanner

    (stock,) = LinesPlanner.__bases__
    (ours,) = ast.parse(inspect.getsource(LinesPlanner)).body
    loaded, stored = set(), set()
    for node in ast.walk(ours):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "self":
            (stored if isinstance(node.ctx, ast.Store) else loaded).add(node.attr)
    inherited = (loaded | stored) - set(vars(LinesPlanner)) - _own(ours)
    assert {"_tensors", "_method", "_tokenizer_task", "config", "options"} <= inherited
    made = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(stock).strip()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert inherited <= made | set(vars(stock))


def _own(planner: ast.stmt) -> set[str]:
    """Return the attributes that LinesPlanner's ``__init__`` adds."""
    assert isinstance(planner, ast.ClassDef)
    (init,) = (x for x in planner.body if isinstance(x, ast.FunctionDef) and x.name == "__init__")
    own = set()
    for node in ast.walk(init):
        if isinstance(node, ast.Assign):
            targets = node.targets
        else:  # without a value it only gives the type of one of mergekit's
            targets = [node.target] if isinstance(node, ast.AnnAssign) and node.value else []
        for target in targets:  # `self.a, self.b = …` has its own inside
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            own |= {part.attr for part in parts if isinstance(part, ast.Attribute)}
    return own - {"_tokenizer_task"}  # replaced there, made by mergekit


# --- how mergekit behaves at its seams -----------------------------------------------------


def stock(function: Any) -> Any:
    """Return mergekit's own function behind our wrapper."""
    return inspect.unwrap(function)


def test_run_merge_takes_what_we_pass_on() -> None:
    """``run_merge`` has exactly the four parameters that the wrapper has, in this order."""
    from mergekit import merge

    mergekit_lines.register()
    parameters = inspect.signature(stock(merge.run_merge)).parameters
    assert list(parameters) == ["merge_config", "out_path", "options", "config_source"]
    assert [p.default for p in parameters.values()] == [inspect.Parameter.empty] * 3 + [None]
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())


def test_run_merge_takes_the_planner_from_its_module_when_it_runs() -> None:
    """``run_merge`` looks ``MergePlanner`` up in mergekit.merge, where ours is put."""
    from mergekit import merge

    mergekit_lines.register()
    code = stock(merge.run_merge).__code__
    assert {"MergePlanner", "plan_to_disk", "_model_out_config"} <= set(code.co_names)
    assert stock(merge.run_merge).__globals__ is vars(merge)


def test_the_planner_asks_for_all_tensors_before_it_plans_the_disk() -> None:
    """``plan_to_disk`` and ``plan_in_memory`` call ``_plan`` and read ``_tensors``."""
    from mergekit_lines.plan.planner import LinesPlanner

    (planner,) = LinesPlanner.__bases__
    for name in ("plan_to_disk", "plan_in_memory"):
        assert {"_plan", "_tensors"} <= set(getattr(planner, name).__code__.co_names)
    assert {"_method", "_tensors"} <= set(planner.plan_tensor.__code__.co_names)


@pytest.mark.parametrize("name", ["run_yaml", "multimerge"])
def test_the_commands_bind_run_merge_from_mergekit_merge(name: str) -> None:
    """The script takes ``run_merge`` by name from mergekit.merge, so it gets the wrapped one."""
    from mergekit import merge

    mergekit_lines.register()
    script = importlib.import_module(f"mergekit.scripts.{name}")
    imports = {
        (node.module, alias.name)
        for node in ast.parse(inspect.getsource(script)).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert ("mergekit.merge", "run_merge") in imports
    assert script.run_merge is merge.run_merge


def test_multimerge_has_its_file_among_its_parameters() -> None:
    """The text that mergekit-multi keeps from run_merge is read from the command's own file."""
    from mergekit.scripts.multimerge import main

    assert main.name == "mergekit-multimerge"
    assert "config_file" in {parameter.name for parameter in main.params}


def test_a_click_exception_of_run_merge_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``mergekit-yaml`` shows a ClickException raised within run_merge and exits with status 1."""
    from mergekit.scripts import run_yaml

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise LinesError("parameters.beat: found a misprint.")

    monkeypatch.setattr(run_yaml, "run_merge", refuse)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text("merge_method: lines\nmodels: [{model: a}]\n")
    result = CliRunner().invoke(run_yaml.main, [str(recipe), str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr == "Error: [lines] parameters.beat: found a misprint.\n"
    assert issubclass(LinesError, click.ClickException)


# --- what the check says -------------------------------------------------------------------


def refusal(monkeypatch: pytest.MonkeyPatch, *found: Seam, modules: tuple[str, ...] = ()) -> str:
    """Return the text with which ``check`` refuses a mergekit that lacks these seams."""
    monkeypatch.setattr(seams, "SEAMS", found)
    with pytest.raises(LinesError) as error:
        seams.check(*modules)
    return error.value.message


@pytest.mark.parametrize(
    ("seam", "text"),
    [
        (Seam("mergekit.plan", "NoPlanner"), "mergekit.plan.NoPlanner is gone"),
        (Seam("mergekit.no_plan", "MergePlanner"), "mergekit.no_plan.MergePlanner is gone"),
        (
            Seam("mergekit.options", "MergeOptions.no_method"),
            "mergekit.options.MergeOptions.no_method is gone",
        ),
        (
            Seam("mergekit.common", "dtype_from_name", ("name", "strict", "default")),
            "mergekit.common.dtype_from_name lacks strict, default",
        ),
        (
            Seam("mergekit.options", "MergeOptions", fields=("device", "no_device")),
            "mergekit.options.MergeOptions lacks no_device",
        ),
    ],
)
def test_a_moved_seam_is_refused_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, seam: Seam, text: str
) -> None:
    """The refusal names the version, the seam, what is wrong with it, and what to do."""
    version = importlib.metadata.version("mergekit")
    assert refusal(monkeypatch, seam) == (
        f"[lines] mergekit {version} is not as this mergekit-lines knows it ({text}): install "
        f"another release of one of the two."
    )


def test_our_planner_does_not_hide_a_seam_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where ours has taken its place, it is mergekit's planner that is checked."""
    import mergekit.plan

    mergekit_lines.register()
    ours = mergekit.plan.MergePlanner
    monkeypatch.delattr(ours.__base__, "plan_tensor")
    assert hasattr(ours, "plan_tensor")
    with pytest.raises(LinesError, match=r"\(mergekit.plan.MergePlanner.plan_tensor is gone\)"):
        seams.check()


def test_all_moved_seams_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two moved seams stand in one sentence; those of other modules can be left for later."""
    plan, merge = Seam("mergekit.plan", "Gone"), Seam("mergekit.merge", "gone")
    text = refusal(monkeypatch, plan, merge)
    assert "(mergekit.plan.Gone is gone; mergekit.merge.gone is gone)" in text
    text = refusal(monkeypatch, plan, merge, modules=("mergekit.merge",))
    assert "(mergekit.merge.gone is gone)" in text
    seams.check("mergekit.config")


@pytest.mark.parametrize("version", ["0.0.6", "0.1.4", "0.1.5.dev0", "0.2.0rc1", "0.2.0", "1.0"])
def test_other_versions_are_refused_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """A mergekit outside >=0.1.5,<0.2 is refused by its number, with the command that helps."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(LinesError) as error:
        seams.check_version()
    assert error.value.message == (
        f"[lines] mergekit {version} is installed, this mergekit-lines works with mergekit "
        f"<0.2,>=0.1.5: run `pip install 'mergekit<0.2,>=0.1.5'` or a newer mergekit-lines."
    )


@pytest.mark.parametrize("version", ["0.1.5", "0.1.5.post1", "0.1.6rc1", "0.1.99"])
def test_versions_of_the_range_are_accepted(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """A mergekit of the range passes, pre-releases and local builds of it too."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert seams.check_version() == version


def test_the_range_is_the_one_that_pip_is_told() -> None:
    """The range checked at run time is the requirement in the package's metadata."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in importlib.metadata.requires("mergekit-lines") or []]
    (mergekit,) = (requirement for requirement in found if requirement.name == "mergekit")
    assert mergekit.specifier == seams.MERGEKIT
