"""Where the compiled kernels come from: a cache, or one compilation by a process of its own."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import os
import platform
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from mergekit_lines.errors import LinesError, TextError, reason, tell
from mergekit_lines.kernels.compiled.checking import check
from mergekit_lines.kernels.compiled.library import Library

# Entries of a merge from which on loading costs less than it brings: 0.1 s of one core.
LEAST = 1 << 26
SETTING = "MERGEKIT_LINES_KERNELS"  # "torch" or "compiled", whatever the merge's size
ROOT = Path(__file__).parents[3]  # where the package lies
SOURCES = ("layout", "words", "merges", "counts", "powers", "build")
DIGEST = hashlib.sha256().digest_size
MOST = 1 << 22  # bytes of compiled code, many times what the kernels take
PATIENCE = 300.0  # seconds: on the busiest machine, a compilation that has not ended never will
# The package need not lie where another interpreter finds it by itself; the working directory,
# in which a downloaded model may hold any Python file, is no place to import from.
_COMMAND = (
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv[2]]; "
    "from mergekit_lines.kernels.compiled.build import write; write(sys.argv[1])"
)
_LOADING = threading.Lock()
_LOADED: list[Library | None] = []


def library(entries: int, say: Callable[[str], None] = tell) -> Library | None:
    """Return the compiled kernels where they are worth while, or None: torch's do the work then.

    They are loaded once in a process. If they cannot be had, a line says why.

    Args:
        entries: of all tensors that are to be merged.
        say: tells that they are compiled, which takes some seconds.

    Raises:
        LinesError: the environment asks for kernels by a name that is none.
    """
    setting = os.environ.get(SETTING)
    if setting not in (None, "torch", "compiled"):
        raise LinesError(f"{SETTING}: found {setting!r}, wanted torch or compiled. Unset it.")
    if not worth_while(entries):
        return None
    with _LOADING:
        if not _LOADED:
            _LOADED.append(_load(say))
        return _LOADED[0]


def worth_while(entries: int) -> bool:
    """Tell whether a merge of so many entries uses compiled kernels, where they can be had."""
    setting = os.environ.get(SETTING)
    return setting == "compiled" or (setting != "torch" and entries >= LEAST)


def _load(say: Callable[[str], None]) -> Library | None:
    try:
        _check_processor()
        compiled = Library(_cached() or _compiled(say))
        check(compiled)
    # Whatever another llvmlite, numba or machine brings about: a line tells it, and the merge goes
    # on with kernels that mean the same.
    except Exception as error:  # noqa: BLE001
        tell(f"no compiled kernels ({reason(error)}): PyTorch's do the same, and take longer")
        return None
    return compiled


def _check_processor() -> None:
    """Check that code for this processor calls nothing but what a process has.

    Without F16C, code for x86 calls functions for fp16 that are numba's own; and without FMA,
    products are rounded before they are added.

    Raises:
        ImportError: llvmlite is not installed.
        TextError: the kernels are not for this processor.
    """
    import llvmlite.binding as llvm

    machine = platform.machine().lower()
    features = llvm.get_host_cpu_features()
    whole = machine in ("x86_64", "amd64") and features.get("f16c") and features.get("fma")
    if not whole and machine not in ("aarch64", "arm64"):
        raise TextError(f"they want an x86-64 processor with F16C and FMA, or an arm64; {machine}")


def cache_folder() -> Path:
    """Return where compiled code is kept: NUMBA_CACHE_DIR, or the user's folder for caches.

    Raises:
        RuntimeError: the user has no home.
    """
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
    """Return the code that the cache holds whole; what another process cut short is none.

    So is what another user could have put there: it would be run.
    """
    try:
        file = cache_file()
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(file, flags | getattr(os, "O_BINARY", 0))
    except (OSError, RuntimeError):  # none yet, none that may be read, or no home for it
        return None
    with os.fdopen(descriptor, "rb") as reading:
        if not (_is_own(file.parent.stat()) and _is_own(os.fstat(descriptor))):
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = reading.read(MOST)
    code = content[DIGEST:]
    return code if hashlib.sha256(code).digest() == content[:DIGEST] else None


def _is_own(status: os.stat_result) -> bool:
    """Tell whether a file or folder is this user's, and no other may write it."""
    if not hasattr(os, "geteuid"):  # Windows: the user's own folder has its own rights
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compiled(say: Callable[[str], None]) -> bytes:
    """Compile the kernels, and keep them where that may be.

    Raises:
        OSError: no process can be started.
        TextError: numba cannot be imported or fails; its last line says why.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise TextError("there is no Python to compile them with")
    say("compiling the kernels, once (some seconds)")
    # What numba is told for other programs is not what these kernels were tested with.
    plain = {name: text for name, text in os.environ.items() if not name.startswith("NUMBA_")}
    plain["NUMBA_OPT"] = "0"  # what it leaves is optimised as a whole
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / "kernels"
        command = [sys.executable, "-c", _COMMAND, str(made), str(ROOT)]
        ended = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            check=False,
            text=True,
            cwd=work,
            env=plain,
            timeout=PATIENCE,
        )
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"]
            raise TextError(f"compiling failed: {lines[-1]}")
        code = made.read_bytes()
    try:
        _keep(code)
    except (OSError, RuntimeError) as error:
        tell(f"the compiled kernels are for this run alone: {reason(error)}")
    return code


def _keep(code: bytes) -> None:
    """Put compiled code into the cache, under its name when it is whole.

    Raises:
        OSError: nothing can be written there, or others could write it too.
        RuntimeError: the user has no home.
    """
    file = cache_file()
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    if not _is_own(file.parent.stat()):
        raise PermissionError(errno.EPERM, "others may write to the cache", str(file.parent))
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}-")
    try:
        with os.fdopen(handle, "wb") as writing:
            writing.write(hashlib.sha256(code).digest() + code)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
