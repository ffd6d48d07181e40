"""Activation: the stock mergekit knows ``lines`` with nothing else typed, however it is imported.

What matters here is the order of imports, so nearly every test runs a function of this file
in an interpreter of its own, see :func:`fresh`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
import os
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import mergekit_lines
from tests.e2e import runner

ROOT = Path(__file__).parents[1]
GROUP = "torch.backends"
WATCHED = ("mergekit.merge_methods.registry", "mergekit.plan", "mergekit.merge")
REMEDY = "call `mergekit_lines.register()` before `from mergekit.merge import run_merge`"
# First imports that people and mergekit's commands really make: each in a real interpreter.
FIRST = (
    "torch",
    "transformers",
    "mergekit.merge",
    "mergekit.plan",
    "mergekit.merge_methods",
    "mergekit.merge_methods.registry",
    "mergekit.common",
    "mergekit.scripts.run_yaml",
    "mergekit.scripts.multimerge",
)


OFF = ("0", " Off ")  # values of MERGEKIT_LINES_AUTOLOAD


def mergekit_modules() -> list[str]:
    """Return the name of every module of the installed mergekit, importing none."""
    spec = importlib.util.find_spec("mergekit")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    names = set()
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        names.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(names)


def program(functions: tuple[Callable[..., Any], ...], *arguments: object) -> str:
    """Return a program that calls the last function and prints what it returns as JSON."""
    sources = "\n".join(inspect.getsource(function) for function in functions)
    call = f"{functions[-1].__name__}(*{arguments!r})"
    return f"from __future__ import annotations\n{sources}\nimport json\nprint(json.dumps({call}))"


def fresh(
    *functions: Callable[..., Any],
    cwd: Path,
    arguments: tuple[object, ...] = (),
    env: runner.Environment | None = None,
) -> tuple[Any, str]:
    """Call the last function in a fresh interpreter; return its result and stderr.

    The functions before it are those it uses. They must import what they need themselves.
    """
    command = [sys.executable, "-c", program(functions, *arguments)]
    done = runner.run(command, cwd, env).succeeded()
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


# --- what runs in the other interpreters ---------------------------------------------------


def state() -> dict[str, Any]:
    """Say how far mergekit is extended, over all of its modules that are imported."""
    import sys

    from mergekit.merge_methods import registered_methods

    here = {name: module for name, module in sys.modules.items() if name.startswith("mergekit.")}
    return {
        "methods": sorted(m.spec.name for m in registered_methods() if "lines" in m.spec.name),
        "planners": {
            name: module.MergePlanner.__name__
            for name, module in here.items()
            if hasattr(module, "MergePlanner")
        },
        "run_merge": {
            name: getattr(module.run_merge, "extended_by", None)
            for name, module in here.items()
            if hasattr(module, "run_merge")
        },
        "watchers": [type(f).__name__ for f in sys.meta_path if "Watcher" in type(f).__name__],
    }


def visit(first: str) -> dict[str, Any]:
    """Import a module before anything else, then mergekit's main ones; say what came of it."""
    import importlib
    import sys
    import warnings

    from mergekit_lines import _autoload

    unfinished: list[str] = []
    activate = _autoload.activate

    def recording() -> None:
        unfinished.extend(
            name
            for name, module in sys.modules.items()
            if name.startswith("mergekit.") and getattr(module.__spec__, "_initializing", False)
        )
        activate()

    _autoload.activate = recording
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            importlib.import_module(first)
        except ImportError as error:
            return {"error": repr(error), "missing": error.name}
        except AttributeError as error:
            # mergekit.evo asks lm-eval for a module that it has beside vLLM alone.
            if getattr(error.obj, "__name__", "") != "lm_eval.models":
                raise
            return {"error": repr(error), "missing": "vllm"}
        import mergekit.merge
        import mergekit.merge_methods
        import mergekit.plan  # noqa: F401
    said = [str(warning.message) for warning in caught]
    warned = [text for text in said if "mergekit-lines" in text]
    return {"unfinished": unfinished, "warnings": warned, "state": state()}


def hide_torch(names: list[str]) -> None:
    """Import these modules of mergekit, then undo it, but for what third parties imported.

    What the order of imports hangs on is the moment when mergekit first imports torch, itself
    or by asking transformers for more than its name. Both are hidden: who wants either gets
    it back, and then ``activate`` is called as by the end of the real ``import torch``.
    """
    import contextlib
    import importlib
    import sys
    from importlib.abc import Loader, MetaPathFinder
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    for name in names:
        # Which of them fail for lack of an extra is told by :func:`visit`.
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(name)
    hidden = {}
    for name in list(sys.modules):
        root = name.partition(".")[0]
        if root in {"torch", "transformers"}:
            hidden[name] = sys.modules.pop(name)
        elif root in {"mergekit", "mergekit_lines"}:
            del sys.modules[name]

    # A few names of transformers need no torch; for those, ours comes a little early.
    def import_torch() -> None:
        if "torch" not in sys.modules:
            sys.modules.update(hidden)
            importlib.import_module("mergekit_lines._autoload").activate()

    class Torch(MetaPathFinder, Loader):
        def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
            return ModuleSpec(name, self) if name == "torch" else None

        def create_module(self, spec: ModuleSpec) -> None:
            return None

        def exec_module(self, module: object) -> None:
            del sys.modules["torch"]
            import_torch()

    class Transformers(ModuleType):
        def __getattr__(self, name: str) -> object:
            if name.startswith("__") and name != "__path__":
                raise AttributeError(name)
            import_torch()
            return getattr(hidden["transformers"], name)

    sys.modules["transformers"] = Transformers("transformers")
    sys.meta_path.insert(0, Torch())


def sweep(names: list[str], jobs: dict[str, list[Any]], results: str) -> None:
    """Do each job in a fork of its own, which takes a tenth of a fresh interpreter's time.

    Args:
        names: the modules of mergekit.
        jobs: the name of a function, its arguments and what the environment says, by name; the
            result is written to ``NAME.json``, what goes to stderr to ``NAME.txt``.
        results: the folder for both.
    """
    import gc
    import json
    import os
    import traceback
    from pathlib import Path

    hide_torch(names)
    gc.disable()  # a collection would copy most of the parent's memory into each fork
    running = 0
    for name, (function, arguments, environment) in jobs.items():
        if running == 2:
            os.wait()
            running -= 1
        running += 1
        if os.fork() == 0:
            result = Path(results, f"{name}.json")
            try:
                log = os.open(Path(results, f"{name}.txt"), os.O_WRONLY | os.O_CREAT, 0o600)
                os.dup2(log, 2)
                os.environ.update(environment)
                result.write_text(json.dumps(globals()[function](*arguments)))
            except BaseException:
                result.write_text(json.dumps(traceback.format_exc()))
            finally:
                os._exit(0)
    while running:
        os.wait()
        running -= 1


def merge(recipe: dict[str, Any], out: str) -> str | None:
    """Merge as ``mergekit-yaml`` does; return the text of a refusal."""
    import click
    import mergekit.merge
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(recipe)
    options = MergeOptions(quiet=True, write_model_card=False)
    try:
        mergekit.merge.run_merge(config, out, options)
    except click.ClickException as error:
        return str(error.message)
    return None


def stock_recipe(base: Path, other: Path) -> dict[str, Any]:
    """Return a recipe that needs nothing of ours."""
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(other), "parameters": {"weight": 0.5}}],
        "dtype": "float32",
    }


def lines_recipe(base: Path, other: Path) -> dict[str, Any]:
    """Return a whole recipe for ``merge_method: lines``."""
    parameters = {"alpha": 0.5, "beta": 0.3}
    return {**stock_recipe(base, other), "merge_method": "lines", "parameters": parameters}


EXTENDED = {
    "methods": ["lines", "lines_postprocess"],
    "watchers": [],
}


def assert_extended(found: dict[str, Any]) -> None:
    """Check that mergekit is extended wherever it keeps what we extend, and no watcher stays."""
    assert {key: found[key] for key in EXTENDED} == EXTENDED
    assert {"mergekit.plan", "mergekit.merge"} <= set(found["planners"])
    assert set(found["planners"].values()) == {"LinesPlanner"}
    assert "mergekit.merge" in found["run_merge"]
    assert set(found["run_merge"].values()) == {"mergekit_lines.plugin"}


# --- every module as the first import ------------------------------------------------------


@pytest.fixture(scope="module")
def forks(
    tmp_path_factory: pytest.TempPathFactory, llama_base: Path, llama_a: Path
) -> tuple[Path, dict[str, tuple[Any, str]]]:
    """The folder, and for each job result and stderr of forks that have imported no torch yet.

    They are :func:`visit` of every module of mergekit, and what the tests below ask for.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    folder = tmp_path_factory.mktemp("forks")
    stock, ours = stock_recipe(llama_base, llama_a), lines_recipe(llama_base, llama_a)
    modules = mergekit_modules()
    jobs: dict[str, list[Any]] = {name: ["visit", [name], {}] for name in modules}
    jobs["probe"] = ["probe", [], {}]
    for value in OFF:
        jobs[f"off{value}"] = ["switched_off", [], {"MERGEKIT_LINES_AUTOLOAD": value}]
    off = {"MERGEKIT_LINES_AUTOLOAD": "0"}
    jobs["by_hand"] = ["by_hand", [ours, str(folder / "by_hand")], off]
    for how in BROKEN:
        jobs[how] = ["broken", [how, [stock, ours], str(folder / how)], {}]
    used = (state, visit, merge, probe, switched_off, by_hand, broken, hide_torch, sweep)
    arguments = (modules, jobs, str(folder))
    fresh(*used, cwd=folder, arguments=arguments, env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})
    return folder, {
        name: (
            json.loads((folder / f"{name}.json").read_text()),
            (folder / f"{name}.txt").read_text(),
        )
        for name in jobs
    }


@pytest.fixture(scope="module")
def forked(forks: tuple[Path, dict[str, tuple[Any, str]]]) -> dict[str, Any]:
    """What the forks return, by job."""
    return {name: result for name, (result, _) in forks[1].items()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What :func:`visit` says of the modules of :data:`FIRST`, each in a fresh interpreter."""
    folder = tmp_path_factory.mktemp("first")
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda name: fresh(state, visit, cwd=folder, arguments=(name,)), FIRST)
        return {name: result for name, (result, _) in zip(FIRST, found, strict=True)}


@pytest.mark.parametrize("name", FIRST)
def test_first_import_of_a_fresh_interpreter(first: dict[str, Any], name: str) -> None:
    """Whichever of these is imported first, mergekit ends up extended, without a warning."""
    assert first[name]["warnings"] == []
    assert_extended(first[name]["state"])


@pytest.mark.parametrize("name", mergekit_modules())
def test_every_module_of_mergekit_as_the_first_import(forked: dict[str, Any], name: str) -> None:
    """Whichever module of mergekit is imported first, all is extended, without a warning."""
    found = forked[name]
    assert isinstance(found, dict), found
    if "error" in found:
        root = str(found["missing"]).partition(".")[0]
        assert root not in {"mergekit", "mergekit_lines", "torch"}, found["error"]
        assert importlib.util.find_spec(root) is None, found["error"]
        pytest.skip(f"needs {root}, an extra of mergekit that is not installed")
    assert found["warnings"] == []
    assert_extended(found["state"])


@pytest.mark.parametrize("name", [name for name in FIRST if name.startswith("mergekit")])
def test_forks_see_activation_when_fresh_interpreters_do(
    first: dict[str, Any], forked: dict[str, Any], name: str
) -> None:
    """The forks call ``activate`` amid the same unfinished imports as a real ``import torch``."""
    assert first[name]["unfinished"] == forked[name]["unfinished"] != []


# --- the watcher ---------------------------------------------------------------------------


def probe() -> dict[str, Any]:
    """Probe for a watched module twice, then import mergekit."""
    import importlib.util
    import sys

    import torch  # noqa: F401

    specs = [importlib.util.find_spec("mergekit.plan") for _ in range(2)]
    imported = "mergekit.plan" in sys.modules
    import mergekit.merge
    import mergekit.plan

    loaders = [spec.loader for spec in specs if spec] + [mergekit.plan.__spec__.loader]
    return {
        "imported": imported,
        "loaders": [type(loader).__name__ for loader in loaders],
        "sources": ["class MergePlanner" in x.get_source("mergekit.plan") for x in loaders],
        "state": state(),
    }


def test_a_probe_does_not_use_the_watcher_up(forked: dict[str, Any]) -> None:
    """``find_spec`` alone extends nothing and disarms nothing; loaders stay what they were."""
    found = forked["probe"]
    assert not found["imported"]
    assert found["loaders"] == ["SourceFileLoader"] * 3
    assert found["sources"] == [True] * 3
    assert_extended(found["state"])


def shared_loader(folder: str) -> dict[str, Any]:
    """Watch two of three modules that one loader object loads; return what was extended."""
    import importlib
    import sys
    import zipfile
    from pathlib import Path

    from mergekit_lines import _autoload

    with zipfile.ZipFile(Path(folder, "packed.zip"), "w") as archive:
        for name in ("one", "two", "three"):
            archive.writestr(f"packed_{name}.py", "")
    sys.path.insert(0, str(Path(folder, "packed.zip")))
    extended: list[str] = []
    _autoload._extend = extended.append
    sys.meta_path.insert(0, _autoload._Watcher({"packed_one", "packed_two"}))
    loaders = {
        id(importlib.import_module(f"packed_{name}").__loader__) for name in ("one", "three", "two")
    }
    return {"loaders": len(loaders), "extended": extended, "state": len(sys.meta_path)}


def test_a_loader_shared_by_modules_extends_only_the_watched_ones(tmp_path: Path) -> None:
    """Where one loader object serves many modules (zip files), each watched one counts once."""
    found, _ = fresh(shared_loader, cwd=tmp_path, arguments=(str(tmp_path),))
    assert found["loaders"] == 1
    assert found["extended"] == ["packed_one", "packed_two"]


# --- off, and by hand ----------------------------------------------------------------------


def switched_off() -> dict[str, Any]:
    """Import torch and mergekit's methods where autoload is off."""
    import sys

    import torch  # noqa: F401
    from mergekit.merge_methods import registered_methods

    return {
        "ours": sorted(name for name in sys.modules if name.startswith("mergekit_lines")),
        "watchers": [type(f).__name__ for f in sys.meta_path if "Watcher" in type(f).__name__],
        "methods": [m.spec.name for m in registered_methods() if "lines" in m.spec.name],
    }


@pytest.mark.parametrize("value", OFF)
def test_autoload_is_off_when_told_so(forked: dict[str, Any], value: str) -> None:
    """With MERGEKIT_LINES_AUTOLOAD=0 (or off) nothing watches and ``lines`` is unknown."""
    found = forked[f"off{value}"]
    assert found["ours"] == ["mergekit_lines", "mergekit_lines._autoload"]
    assert found["watchers"] == []
    assert found["methods"] == []


def by_hand(recipe: dict[str, Any], out: str) -> dict[str, Any]:
    """Bind run_merge by name, register twice, then merge with the old name and the new one."""
    import mergekit.merge
    from mergekit.merge import run_merge

    import mergekit_lines

    ours = []
    for _ in range(2):
        mergekit_lines.register()
        ours.append(mergekit.merge.run_merge)
    result = {
        "state": state(),
        "once": ours[0] is ours[1],
        "stock": ours[0].__wrapped__ is run_merge,
    }
    mergekit.merge.run_merge = run_merge
    result["refused"] = merge(recipe, out + "_refused")
    mergekit.merge.run_merge = ours[0]
    result["accepted"] = merge(recipe, out)
    return result


def test_register_by_hand(forks: tuple[Path, dict[str, tuple[Any, str]]]) -> None:
    """``register()`` twice is once; a run_merge bound before it refuses, with the remedy."""
    folder, (found, _) = forks[0], forks[1]["by_hand"]
    assert_extended(found["state"])
    assert found["once"]
    assert found["stock"]
    assert REMEDY in found["refused"]
    assert "merge_method lines was started by a run_merge that is not ours" in found["refused"]
    assert not list(folder.glob("by_hand_refused/*.safetensors"))
    assert found["accepted"] is None
    assert list(folder.glob("by_hand/*.safetensors"))


# --- cost ----------------------------------------------------------------------------------


def imported(name: str) -> list[str]:
    """Return all modules of this interpreter once ``name`` is imported."""
    import importlib
    import sys

    importlib.import_module(name)
    return sorted(sys.modules)


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    """``import mergekit_lines`` imports no package but itself."""
    found, _ = fresh(imported, cwd=tmp_path, arguments=("mergekit_lines",))
    roots = {name.partition(".")[0] for name in found}
    assert not roots & {"torch", "mergekit", "transformers", "numpy", "click", "packaging"}
    assert [name for name in found if name.startswith("mergekit_lines")] == ["mergekit_lines"]


def test_an_interpreter_without_torch_never_meets_us(tmp_path: Path) -> None:
    """Nothing of ours is loaded when Python starts."""
    found, _ = fresh(imported, cwd=tmp_path, arguments=("json",))
    assert not [name for name in found if name.startswith("mergekit_lines")]


def cost() -> dict[str, Any]:
    """Import torch, and then load and call the entry point; return what both took."""
    import importlib.metadata
    import sys
    import time

    begun = time.thread_time()
    import torch  # noqa: F401

    torch_took = time.thread_time() - begun
    (entry,) = importlib.metadata.entry_points(group="torch.backends", name="mergekit_lines")
    before = set(sys.modules)
    start = time.thread_time()
    entry.load()()
    took = time.thread_time() - start
    return {"imported": sorted(set(sys.modules) - before), "share": took / torch_took}


def test_activation_imports_only_its_own_module_and_costs_nothing(tmp_path: Path) -> None:
    """On top of torch come the package and ``_autoload``, and a hundredth of its computing.

    It is a thousandth on a machine that has nothing else to do. One of three interpreters has to
    show it: other processes may have taken the caches from the others.
    """
    off = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    shares: list[float] = []
    while len(shares) < 3 and min(shares, default=1.0) >= 0.01:
        one, _ = fresh(cost, cwd=tmp_path, env=off)
        assert one["imported"] == ["mergekit_lines", "mergekit_lines._autoload"]
        shares.append(one["share"])
    assert min(shares) < 0.01


# --- when it cannot work -------------------------------------------------------------------


def broken(how: str, recipes: list[dict[str, Any]], out: str) -> dict[str, Any]:
    """Break the plugin or mergekit in one way, import torch, then run the recipes."""
    import importlib.metadata
    import sys

    import click

    from mergekit_lines import plugin

    extend, version = plugin.extend, importlib.metadata.version
    if how == "plugin":

        def fails(name: str) -> None:
            raise OSError("no plugin today")

        plugin.extend = fails
    elif how == "version":
        importlib.metadata.version = lambda name: "0.2.0" if name == "mergekit" else version(name)
    elif how == "seam":

        def moved(name: str) -> None:
            planner = getattr(sys.modules[name], "MergePlanner", None)
            if hasattr(planner, "plan_in_memory"):  # mergekit's own merge does not use it
                del planner.plan_in_memory
            extend(name)

        plugin.extend = moved
    import torch

    results = []
    for number, recipe in enumerate(recipes):
        try:
            results.append(merge(recipe, f"{out}{number}"))
        except RuntimeError as error:  # mergekit's own
            results.append(f"{type(error).__name__}: {error}")
    try:
        registered = plugin.register()
    except (click.ClickException, OSError) as error:
        registered = str(error)
    return {
        "torch": torch.ones(2).sum().item(),
        "results": results,
        "register": registered,
        "state": state(),
    }


MOVED = (
    "mergekit 0.1.5 is not as this mergekit-lines knows it (mergekit.plan.MergePlanner."
    "plan_in_memory is gone): install another release of one of the two."
)
OTHER_VERSION = (
    "mergekit 0.2.0 is installed, this mergekit-lines works with mergekit <0.2,>=0.1.5: run "
    "`pip install 'mergekit<0.2,>=0.1.5'` or a newer mergekit-lines."
)


BROKEN = {
    "plugin": ("no plugin today", WATCHED),
    "version": (OTHER_VERSION, WATCHED),
    "seam": (MOVED, ("mergekit.plan",)),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_failed_registration_warns_and_leaves_mergekit_working(
    forks: tuple[Path, dict[str, tuple[Any, str]]], how: str
) -> None:
    """A stock merge works as ever, a warning says why ``lines`` does not, and it does not."""
    folder, (found, stderr) = forks[0], forks[1][how]
    reason, modules = BROKEN[how]
    assert found["torch"] == 2.0
    assert found["results"][0] is None
    assert list(folder.glob(f"{how}0/*.safetensors"))
    for name in WATCHED:
        assert (f"RuntimeWarning: mergekit-lines could not extend {name}," in stderr) == (
            name in modules
        )
    assert stderr.count(reason) == len(modules)
    assert not list(folder.glob(f"{how}1/*"))
    if how == "seam":
        assert found["results"][1] == f"[lines] {reason}"
    else:
        assert "lines" in found["results"][1]  # mergekit's own: it knows no such method
        assert found["state"]["methods"] == []
        assert set(found["state"]["planners"].values()) == {"MergePlanner"}
        assert set(found["state"]["run_merge"].values()) == {None}
    if how != "plugin":
        assert reason in found["register"]


@pytest.mark.parametrize("module", ["mergekit.plan", "mergekit.merge"])
def test_lines_refuses_where_the_planner_is_not_ours(
    tmp_path: Path, llama_base: Path, llama_a: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """Where something put mergekit's planner back, a recipe of ours refuses, with the remedy."""
    import mergekit_lines

    mergekit_lines.register()
    stock = sys.modules["mergekit.plan"].MergePlanner.__mro__[1]
    monkeypatch.setattr(sys.modules[module], "MergePlanner", stock)
    refusal = merge(lines_recipe(llama_base, llama_a), str(tmp_path / "out"))
    assert refusal is not None
    assert refusal.startswith(f"[lines] {module}.MergePlanner could not be extended: {REMEDY}")
    assert not (tmp_path / "out").exists()
    assert merge(stock_recipe(llama_base, llama_a), str(tmp_path / "stock")) is None


# --- installs ------------------------------------------------------------------------------


def installed() -> dict[str, Any]:
    """Say which install torch activates, and how far it got."""
    import importlib.metadata

    import mergekit.merge

    import mergekit_lines

    (entry,) = importlib.metadata.entry_points(group="torch.backends", name="mergekit_lines")
    return {
        "merge": mergekit.merge.__name__,
        "file": mergekit_lines.__file__,
        "entry": entry.value,
        "dist": str(entry.dist.locate_file("")) if entry.dist else None,
        "state": state(),
    }


def test_this_install_has_the_entry_point() -> None:
    """The install under test, editable in development, is one that torch activates."""
    (entry,) = importlib.metadata.entry_points(group=GROUP, name="mergekit_lines")
    assert entry.value == "mergekit_lines._autoload:activate"
    assert entry.dist is not None
    assert entry.dist.name == "mergekit-lines"


def build(pip: list[str], folder: Path) -> list[Path]:
    built = runner.run([*pip, "wheel", str(ROOT), "--no-deps", "-w", "dist"], folder)
    if built.returncode and "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("building a wheel fetches hatchling, and there is no package index here")
    built.succeeded()
    return list((folder / "dist").glob("*.whl"))


def test_a_wheel_activates_and_holds_only_the_package(tmp_path: Path) -> None:
    """A wheel holds the package and its metadata, no ``.pth`` file, and activates anywhere."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    # tests/run.sh has built one, and runs where the source is not; elsewhere one is built here.
    (wheel,) = (ROOT / "dist").glob("*.whl") if (ROOT / "dist").is_dir() else build(pip, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    roots = {name.partition("/")[0] for name in names}
    assert roots == {"mergekit_lines", "mergekit_lines-0.1.0.dist-info"}
    package = Path(mergekit_lines.__file__).parent
    assert {name for name in names if name.startswith("mergekit_lines/")} == {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    runner.run(install, tmp_path).succeeded()
    found, stderr = fresh(state, installed, cwd=elsewhere, env={"PYTHONPATH": str(target)})
    assert Path(found["file"]).parent == target / "mergekit_lines"
    assert Path(found["dist"]) == target
    assert found["entry"] == "mergekit_lines._autoload:activate"
    assert_extended(found["state"])
    assert "mergekit-lines" not in stderr
