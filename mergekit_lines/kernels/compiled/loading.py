"""Where the compiled kernels come from: a cache, or one compilation by a process of its own."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from mergekit_lines.errors import TextError, reason, tell
from mergekit_lines.kernels.compiled.checking import check
from mergekit_lines.kernels.compiled.library import Library

# Entries of a merge from which on loading costs less than it brings: 0.1 s of one core.
LEAST = 1 << 26
SETTING = "MERGEKIT_LINES_KERNELS"  # "torch" or "compiled", whatever the merge's size
ROOT = Path(__file__).parents[3]  # where the package lies
SOURCES = ("layout", "words", "merges", "counts", "build")
DIGEST = hashlib.sha256().digest_size
# The package need not lie where another interpreter finds it by itself.
_COMMAND = (
    "import sys; sys.path[:0] = [sys.argv[2]]; "
    "from mergekit_lines.kernels.compiled.build import write; write(sys.argv[1])"
)
_LOADING = threading.Lock()
_LOADED: list[Library | None] = []


def library(entries: int) -> Library | None:
    """Return the compiled kernels where they are worth while, or None: torch's do the work then.

    They are loaded once in a process. If they cannot be had, a line says why.

    Args:
        entries: of all tensors that are to be merged.
    """
    setting = os.environ.get(SETTING)
    if setting == "torch" or (entries < LEAST and setting != "compiled"):
        return None
    with _LOADING:
        if not _LOADED:
            _LOADED.append(_load())
        return _LOADED[0]


def _load() -> Library | None:
    try:
        compiled = Library(_cached() or _compiled())
        check(compiled)
    except (ImportError, OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        tell(f"no compiled kernels ({reason(error)}): PyTorch's do the same, and take longer")
        return None
    return compiled


def cache_folder() -> Path:
    """Return where compiled code is kept: NUMBA_CACHE_DIR, or the user's folder for caches."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen) / "mergekit-lines"
    home = {
        "Windows": os.environ.get("LOCALAPPDATA"),
        "Darwin": "~/Library/Caches",
    }.get(platform.system(), os.environ.get("XDG_CACHE_HOME"))
    return Path(home or "~/.cache").expanduser() / "mergekit-lines"


def cache_file() -> Path:
    """Return the file of these kernels for this processor, compiled by these versions.

    Raises:
        ImportError: numba is not installed.
    """
    import llvmlite.binding as llvm

    folder = Path(__file__).parent
    texts = [(folder / f"{name}.py").read_bytes() for name in SOURCES]
    versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite", "numpy")]
    machine = [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    described = [*versions, *machine, llvm.get_default_triple(), platform.python_version()]
    texts += [word.encode() for word in described]
    digest = hashlib.sha256(b"\0".join(hashlib.sha256(text).digest() for text in texts))
    return cache_folder() / f"kernels-{digest.hexdigest()[:32]}"


def _cached() -> bytes | None:
    """Return the code that the cache holds whole; what another process cut short is none."""
    try:
        content = cache_file().read_bytes()
    except OSError:  # none yet, or none that may be read
        return None
    code = content[DIGEST:]
    return code if hashlib.sha256(code).digest() == content[:DIGEST] else None


def _compiled() -> bytes:
    """Compile the kernels, and keep them where that may be.

    Raises:
        OSError: no process can be started.
        TextError: numba cannot be imported or fails; its last line says why.
    """
    tell("compiling the kernels, once (some seconds)")
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / "kernels"
        command = [sys.executable, "-c", _COMMAND, str(made), str(ROOT)]
        ended = subprocess.run(command, capture_output=True, check=False, text=True)  # noqa: S603
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"]
            raise TextError(f"compiling failed: {lines[-1]}")
        code = made.read_bytes()
    try:
        _keep(code)
    except OSError as error:
        tell(f"the compiled kernels are for this run alone: {reason(error)}")
    return code


def _keep(code: bytes) -> None:
    """Put compiled code into the cache, under its name when it is whole."""
    file = cache_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}-")
    try:
        with os.fdopen(handle, "wb") as writing:
            writing.write(hashlib.sha256(code).digest() + code)
        Path(name).replace(file)
    except OSError:
        Path(name).unlink()
        raise
