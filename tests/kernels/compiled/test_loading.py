"""Compiled kernels are loaded where that is worth while, and are never needed."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mergekit_lines.errors import LinesError, teller
from mergekit_lines.kernels.compiled import loading
from mergekit_lines.kernels.compiled.library import Library, may_run
from tests.e2e.runner import run


@pytest.fixture
def fresh(library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has loaded nothing, and a cache that holds nothing; what it would hold."""
    content = loading.cache_file().read_bytes()
    monkeypatch.setattr(loading, "_LOADED", [])
    monkeypatch.setenv(loading.SETTING, "compiled")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    whole = tmp_path / "whole"
    whole.write_bytes(content)
    return whole


def put(content: bytes) -> None:
    loading.cache_file().parent.mkdir(parents=True, exist_ok=True)
    loading.cache_file().write_bytes(content)


def no_compiling(*_: object) -> bytes:
    raise RuntimeError("compiling failed: planted")


def test_small_merges_do_without(fresh, monkeypatch, capfd):
    """Below the number of entries that pays for loading, nothing is loaded, compiled or told."""
    monkeypatch.delenv(loading.SETTING)
    monkeypatch.setattr(loading, "_load", pytest.fail)
    assert loading.library(loading.LEAST - 1) is None
    assert capfd.readouterr().err == ""


def test_the_cache_is_enough(fresh, monkeypatch, capfd):
    """What was compiled before is loaded once, without compiling and without a word."""
    put(fresh.read_bytes())
    monkeypatch.setattr(loading, "_compiled", no_compiling)
    monkeypatch.delenv(loading.SETTING)
    first = loading.library(loading.LEAST)
    assert isinstance(first, Library)
    assert loading.library(loading.LEAST) is first
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("harm", ["cut", "changed", "empty"])
def test_a_harmed_cache_is_made_anew(fresh, monkeypatch, harm):
    """A file that is cut short, changed or empty is none; whole code takes its place."""
    content = fresh.read_bytes()
    put({"cut": content[:-1], "changed": content[:-1] + b"\xff", "empty": b""}[harm])
    code = content[loading.DIGEST :]
    monkeypatch.setattr(loading, "_compiled", lambda _: loading._keep(code) or code)
    assert isinstance(loading.library(1), Library)
    assert loading.cache_file().read_bytes() == content
    assert list(loading.cache_file().parent.iterdir()) == [loading.cache_file()]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owner here")
@pytest.mark.parametrize("place", ["file", "folder", "link", "pipe"])
def test_code_that_others_may_write_is_not_run(fresh, monkeypatch, capfd, place):
    """A file or folder that another user may write is no cache, nor is a link or a pipe."""
    put(fresh.read_bytes())
    file = loading.cache_file()
    if place == "link":
        file.unlink()
        file.symlink_to(fresh)
    elif place == "pipe":
        file.unlink()
        os.mkfifo(file)
    else:
        (file if place == "file" else file.parent).chmod(0o777)
    monkeypatch.setattr(loading, "_compiled", no_compiling)
    assert loading.library(1) is None
    assert "compiling failed: planted" in capfd.readouterr().err
    if place == "folder":
        with pytest.raises(PermissionError, match="others may write"):
            loading._keep(b"code")


def test_compiling_is_not_told_to_who_wants_quiet(fresh, monkeypatch, capfd, tmp_path):
    """`--quiet` holds the line back; otherwise it is there."""
    code = tmp_path / "code"
    code.write_bytes(fresh.read_bytes()[loading.DIGEST :])
    command = f"import shutil, sys; shutil.copyfile({str(code)!r}, sys.argv[1])"
    monkeypatch.setattr(loading, "_COMMAND", command)
    assert isinstance(loading.library(1, teller(quiet=True)), Library)
    assert capfd.readouterr().err == ""
    loading.cache_file().unlink()
    loading._LOADED.clear()
    assert isinstance(loading.library(1), Library)
    assert "compiling the kernels, once" in capfd.readouterr().err


def test_compiling_imports_nothing_from_the_working_directory(fresh, monkeypatch, tmp_path):
    """Python files that lie beside a model are not run; numba's own settings do not count."""
    for name in ("numba", "llvmlite", "random", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert isinstance(loading.library(1), Library)
    assert loading.cache_file().stat().st_mode & 0o077 == 0


def test_a_user_without_a_home(fresh, monkeypatch, capfd, tmp_path):
    """What is compiled serves this run alone where there is no place to keep it."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    code = tmp_path / "code"
    code.write_bytes(fresh.read_bytes()[loading.DIGEST :])
    command = f"import shutil, sys; shutil.copyfile({str(code)!r}, sys.argv[1])"
    monkeypatch.setattr(loading, "cache_folder", homeless)
    monkeypatch.setattr(loading, "_COMMAND", command)
    assert isinstance(loading.library(1), Library)
    assert "for this run alone: RuntimeError: Could not determine" in capfd.readouterr().err


@pytest.mark.parametrize("lacking", ["f16c", "fma"])
def test_a_processor_without_the_instructions(fresh, monkeypatch, capfd, lacking):
    """Code that would call functions which the process has not is neither made nor loaded."""
    import llvmlite.binding as llvm

    put(fresh.read_bytes())
    features = {**llvm.get_host_cpu_features(), lacking: False}
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert loading.library(1) is None
    assert "they want an x86-64 processor with F16C and FMA" in capfd.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_programs_default_dtype_is_not_that_of_samples(library, dtype):
    """A program that sets another default dtype gets the same kernels and fp32 magnitudes."""
    code = f"""
import torch
torch.set_default_dtype(torch.{dtype})
from mergekit_lines.kernels.compiled.loading import library
from mergekit_lines.kernels.compiled.counting import sampled
base = torch.arange(1 << 16, dtype=torch.float32)
model = base * 3 + 1
for _ in range(50):
    sample = sampled(library(1), base, {{0: model}}, 5)[0]
    right = 2 * torch.arange(0, 1 << 16, 5, dtype=torch.float64) + 1
    assert torch.equal(sample.double(), right), sample
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, loading.SETTING: "compiled"},
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="nothing tells of memory here")
def test_memory_that_may_not_be_executed(library):
    """The first call would end the process where a hardened system refuses such memory."""
    held = ctypes.create_string_buffer(64)
    assert not may_run(ctypes.addressof(held))
    assert may_run(ctypes.cast(ctypes.pythonapi.Py_IncRef, ctypes.c_void_p).value)


def test_kernels_that_there_are_none_of(monkeypatch):
    """A word in the environment that is none of two is refused."""
    monkeypatch.setenv(loading.SETTING, "Torch")
    with pytest.raises(LinesError, match=r"found 'Torch', wanted torch or compiled"):
        loading.library(1)


def test_other_sources_are_other_files(fresh, monkeypatch):
    """Code of other sources, versions or processors stands under another name."""
    name = loading.cache_file().name
    monkeypatch.setattr(loading, "SOURCES", loading.SOURCES[1:])
    assert loading.cache_file().name != name


def test_a_cache_that_cannot_be_written(fresh, monkeypatch, tmp_path, capfd):
    """The kernels serve this process alone, and a line says so."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    whole = tmp_path / "code"
    whole.write_bytes(fresh.read_bytes()[loading.DIGEST :])
    writing = "import shutil, sys; shutil.copy(sys.argv[2] + '/code', sys.argv[1])"
    monkeypatch.setattr(loading, "_COMMAND", writing)
    monkeypatch.setattr(loading, "ROOT", tmp_path)
    assert isinstance(loading.library(1), Library)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "[lines] compiling the kernels, once (some seconds)"
    assert lines[1].startswith("[lines] the compiled kernels are for this run alone: ")
    assert "File exists" in lines[1]


def test_numba_that_cannot_be_imported(fresh, monkeypatch, capfd):
    """One sentence names the failure, and PyTorch's kernels are what is left."""
    planted = "import sys; sys.modules['numba'] = None; " + loading._COMMAND
    monkeypatch.setattr(loading, "_COMMAND", planted)
    assert loading.library(1) is None
    assert loading.library(1) is None
    _, *lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "[lines] no compiled kernels (compiling failed: ModuleNotFoundError: import of numba "
        "halted; None in sys.modules): PyTorch's do the same, and take longer"
    ]


def test_a_compilation_that_does_not_end(fresh, monkeypatch, capfd):
    """It is ended, told, and done without."""
    monkeypatch.setattr(loading, "PATIENCE", 0.5)
    monkeypatch.setattr(loading, "_COMMAND", "import time; time.sleep(1200)")
    assert loading.library(1) is None
    assert "no compiled kernels (TimeoutExpired: " in capfd.readouterr().err


def test_no_numba_at_all(fresh, monkeypatch, capfd):
    """Where llvmlite is missing too, the sentence is of that."""
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    assert loading.library(1) is None
    (line,) = capfd.readouterr().err.splitlines()
    assert "no compiled kernels (ModuleNotFoundError: import of llvmlite.binding halted" in line


def test_kernels_that_differ_from_torch_are_not_used(fresh, monkeypatch, capfd):
    """A processor on which one bit comes out otherwise is served by torch's."""
    put(fresh.read_bytes())
    called = Library.call

    def wrong(self, name, integers, floats=()):
        changed = (floats[0] * (1 + 1e-6), *floats[1:]) if floats else floats
        return called(self, name, integers, changed)

    monkeypatch.setattr(Library, "call", wrong)
    assert loading.library(1) is None
    assert "they give other results than PyTorch's on this machine" in capfd.readouterr().err


def test_many_processes_at_once(fresh, tmp_path):
    """Processes that compile into one cache at the same time leave one whole file."""
    code = tmp_path / "code"
    code.write_bytes(fresh.read_bytes()[loading.DIGEST :])
    script = (
        "import sys; from pathlib import Path; from mergekit_lines.kernels.compiled import loading;"
        "code = Path(sys.argv[1]).read_bytes()\n"
        "for _ in range(20): loading._keep(code); assert loading._cached() == code"
    )
    command = [sys.executable, "-c", script, str(code)]
    started = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert [file.name for file in loading.cache_file().parent.iterdir()] == [
        loading.cache_file().name
    ]


def test_nothing_is_loaded_before_a_merge(tmp_path):
    """The package, its command and its kernels are imported without numba and llvmlite."""
    script = (
        "import sys, mergekit_lines, mergekit_lines.engine.engine; "
        "sys.exit(' '.join({'numba', 'llvmlite'} & set(sys.modules)) or None)"
    )
    assert run([sys.executable, "-c", script], tmp_path).succeeded().stderr == ""
