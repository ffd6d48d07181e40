"""Running mergekit in tests: its real commands in a subprocess, or ``run_merge`` in place.

As a script it does a list of merges in one process (``python runner.py JOBS REPORT``, for
:func:`merge_many`), or forks a process per command (``python runner.py serve``, for
:class:`ForkServer`). It imports nothing from ``tests``, so that only the installed package
counts there.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_BAR = re.compile(r"\d+%\||\d+it \[")
BIN = Path(sys.executable).parent
STUCK = 1200.0  # seconds: on the busiest machine, what has not ended by then never will
Recipe = str | Mapping[str, Any]
Environment = Mapping[str, str | None]
# torch's own threads spend more time on waiting for each other than on a tiny model.
ONE_THREAD: Environment = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    command: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line of :attr:`messages`, or an empty text."""
        return self.messages[-1] if self.messages else ""

    @property
    def messages(self) -> tuple[str, ...]:
        """The lines on stderr, but for empty ones and progress bars."""
        lines = (line.rstrip() for line in self.stderr.splitlines())
        return tuple(line for line in lines if line and not _BAR.search(line))

    def succeeded(self) -> Result:
        """Return self where the exit status is 0; else raise with all that was printed."""
        assert self.returncode == 0, (
            f"{' '.join(self.command)}: exit status {self.returncode}\n{self.stdout}{self.stderr}"
        )
        return self


def environment(changes: Environment | None = None) -> dict[str, str]:
    """Return this process's environment made offline and plain, then changed.

    A value of None removes a name. Whatever was set outside, a subprocess starts with the
    package on and Python's own warning filters.
    """
    dropped = {"MERGEKIT_LINES_AUTOLOAD", "PYTHONWARNINGS", "FORCE_COLOR", "CLICOLOR_FORCE"}
    result = {name: value for name, value in os.environ.items() if name not in dropped}
    result |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": "200",
        "PYTHONIOENCODING": "utf-8",
    }
    for name, value in (changes or {}).items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = value
    return result


def run(
    command: Sequence[str | Path],
    cwd: Path | str,
    env: Environment | None = None,
    timeout: float = STUCK,
) -> Result:
    """Run a command and return how it ended. A bare name of the venv's scripts is found there."""
    words = [str(word) for word in command]
    if os.sep not in words[0] and (BIN / words[0]).exists():
        words[0] = str(BIN / words[0])
    done = subprocess.run(
        words,
        cwd=cwd,
        env=environment(env),
        timeout=timeout,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
    )
    return Result(tuple(words), done.returncode, done.stdout, done.stderr)


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as YAML text; a text is returned as it is, a Path becomes its string."""
    if isinstance(recipe, str):
        return recipe
    return yaml.safe_dump(_plain(recipe), sort_keys=False)


def mergekit_yaml(
    recipe: Recipe,
    out: Path | str,
    *flags: str,
    cwd: Path | str,
    env: Environment | None = None,
    server: ForkServer | None = None,
) -> Result:
    """Write the recipe to ``cwd/recipe.yml`` and run ``mergekit-yaml recipe.yml OUT FLAGS``.

    It is a fork of the server's; without one a process that starts from nothing, as from a shell.
    """
    (Path(cwd) / "recipe.yml").write_text(recipe_text(recipe), encoding="utf-8")
    command = ["mergekit-yaml", "recipe.yml", out, *flags]
    return server.run(command, cwd, cwd) if server else run(command, cwd, env)


def mergekit_multi(
    recipe: str | Sequence[Mapping[str, Any]],
    out: Path | str | None,
    *flags: str,
    cwd: Path | str,
    intermediate: Path | str = "./merges/steps",
    env: Environment | None = None,
    server: ForkServer | None = None,
) -> Result:
    """Write the documents to ``cwd/recipe.yml`` and run ``mergekit-multi`` on them.

    ``out`` is where a document without a name goes; the others go below ``intermediate``.
    ``server`` as in :func:`mergekit_yaml`.
    """
    if not isinstance(recipe, str):
        recipe = "---\n".join(recipe_text(document) for document in recipe)
    (Path(cwd) / "recipe.yml").write_text(recipe, encoding="utf-8")
    places: list[str | Path] = ["--intermediate-dir", intermediate]
    places += [] if out is None else ["--out-path", out]
    command = ["mergekit-multi", "recipe.yml", *places, *flags]
    return server.run(command, cwd, cwd) if server else run(command, cwd, env)


def in_process(recipe: Recipe, out: Path | str, **options: Any) -> Path:
    """Merge in this process as ``mergekit-yaml`` would, and return the output folder.

    ``options`` are fields of mergekit's ``MergeOptions``. What the merge raises is raised.
    """
    import mergekit.merge
    from mergekit.architecture.auto import infer_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.options import MergeOptions

    # Both outlive a merge and are keyed by path: they would hold what an earlier test's files
    # held.
    LoaderCache().loaders.clear()
    infer_architecture_info.cache_clear()
    text = recipe_text(recipe)
    mergekit.merge.run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(text)),
        str(out),
        options=MergeOptions(**{"quiet": True, **options}),
        config_source=text,
    )
    return Path(out)


@dataclass(frozen=True)
class Report:
    """What :func:`merge_many` saw."""

    methods: frozenset[str]
    """Names of the registered merge methods."""
    modules: frozenset[str]
    """Names of all modules imported at the end."""
    errors: dict[str, str | None]
    """For every output folder ``Type: text`` of what its merge raised, or None."""


def merge_many(
    recipes: Mapping[str, tuple[Recipe, Mapping[str, Any]]],
    *,
    cwd: Path | str,
    env: Environment | None = None,
    timeout: float = STUCK,
) -> Report:
    """Do many merges in one subprocess, so that imports are paid once.

    ``recipes`` maps each output folder (relative to ``cwd``) to a recipe and its merge options.
    """
    cwd = Path(cwd)
    jobs = [
        {"out": out, "recipe": recipe_text(recipe), "options": dict(options)}
        for out, (recipe, options) in recipes.items()
    ]
    (cwd / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    script = [sys.executable, str(Path(__file__).resolve()), "jobs.json", "report.json"]
    run(script, cwd, env, timeout).succeeded()
    report = json.loads((cwd / "report.json").read_text(encoding="utf-8"))
    return Report(frozenset(report["methods"]), frozenset(report["modules"]), report["errors"])


class ForkServer:
    """Many of mergekit's commands, each a process of its own, for one start of mergekit.

    One parent process imports mergekit, which takes seconds; every command is a fork of it
    that calls the command's own ``main``. The parent itself merges nothing, so no thread
    of torch is alive when it forks.

    Args:
        log: where the parent's own stderr goes.
        env: changes to the environment of all commands.
        preload: modules that the parent imports too, beside those of the commands.
        ours: whether it knows our own commands; else it imports nothing of ours.
        script: the parent's, if not this file.
    """

    def __init__(
        self,
        log: Path,
        env: Environment | None = None,
        preload: Sequence[str] = (),
        *,
        ours: bool = True,
        script: str = __file__,
    ) -> None:
        changes = {**ONE_THREAD, "MERGEKIT_LINES_KERNELS": "compiled", **(env or {})}
        self._log = log
        with log.open("wb") as stderr:
            self._parent = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(script).resolve()),
                    "serve" if ours else "stock",
                    *preload,
                ],
                cwd=log.parent,
                env=environment(changes),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                encoding="utf-8",
            )

    def __enter__(self) -> ForkServer:
        assert self._answer(STUCK) == {"ready": True}
        return self

    def __exit__(self, *exception: object) -> None:
        with self._parent:  # closes the pipes, which ends the parent, and waits
            assert self._parent.stdin is not None
            self._parent.stdin.close()
            try:
                self._parent.wait(20)
            except subprocess.TimeoutExpired:
                self._parent.kill()

    def run(
        self,
        command: Sequence[str | Path],
        cwd: Path | str,
        scratch: Path | str,
        timeout: float = STUCK,
    ) -> Result:
        """Do as :func:`run` for a command in ``_MAINS``; ``scratch`` is for temporary files."""
        return self.ask(command, cwd, scratch, timeout)[0]

    def ask(
        self,
        command: Sequence[str | Path],
        cwd: Path | str,
        scratch: Path | str,
        timeout: float,
        more: Mapping[str, Any] | None = None,
    ) -> tuple[Result, dict[str, Any]]:
        """Do as :meth:`run`, with more in the job, and return the parent's whole answer too."""
        words = [str(word) for word in command]
        with tempfile.TemporaryDirectory() as logs:
            files = {name: str(Path(logs) / name) for name in ("stdout", "stderr")}
            for file in files.values():
                Path(file).touch()  # it may be killed before it opens them
            job = {"words": words, "cwd": str(cwd), "scratch": str(scratch), **files}
            job |= more or {}
            assert self._parent.stdin is not None
            self._parent.stdin.write(json.dumps({**job, "timeout": timeout}) + "\n")
            self._parent.stdin.flush()
            answer = self._answer(timeout + 20)
            texts = {
                name: Path(file).read_text(encoding="utf-8", errors="replace")
                for name, file in files.items()
            }
        if answer["returncode"] is None:
            raise TimeoutError(
                f"{' '.join(words)}: killed, after {timeout} s at most\n{texts['stderr']}"
            )
        return Result(tuple(words), answer["returncode"], **texts), answer

    def _answer(self, timeout: float) -> dict[str, Any]:
        # The parent answers with one short line per job, so a readable pipe holds a whole line.
        assert self._parent.stdout is not None
        readable, _, _ = select.select([self._parent.stdout], [], [], timeout)
        line = self._parent.stdout.readline() if readable else ""
        if not line:
            self._parent.kill()
            raise RuntimeError(f"the fork server is gone or stuck\n{self._log.read_text()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


_MAINS = {
    "mergekit-yaml": "mergekit.scripts.run_yaml",
    "mergekit-multi": "mergekit.scripts.multimerge",
    "mergekit-pytorch": "mergekit.scripts.merge_raw_pytorch",
    "mergekit-lines": "mergekit_lines.cli",
}
# What nearly every command imports when it is called, and each fork would import again.
_LATER = (
    "mergekit_lines.merges.folder",
    "mergekit_lines.inspection.documents",
    "mergekit_lines.inspection.tables",
    "mergekit_lines.search.telling",
    "matplotlib.backends.backend_agg",
    "transformers.models.llama.modeling_llama",
)


def import_mains(*preload: str, ours: bool = True) -> dict[str, Any]:
    """Return the commands' own functions, with all imported that their forks are to share."""
    names = [name for name in _MAINS if ours or name != "mergekit-lines"]
    mains = {name: importlib.import_module(_MAINS[name]).main for name in names}
    for module in (*_LATER, *preload):
        if ours or not module.startswith("mergekit_lines"):
            importlib.import_module(module)
    if ours and os.environ.get("MERGEKIT_LINES_KERNELS") == "compiled":
        importlib.import_module("mergekit_lines.kernels.compiled.loading").library(1)
    gc.collect()
    gc.freeze()  # else the forks' collectors copy every page
    return mains


def _serve(*preload: str, ours: bool) -> None:
    """Answer every job on stdin with the exit status of its command."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints must not get between the answers
    mains = import_mains(*preload, ours=ours)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(job, mains[job["words"][0]])
        ended = _wait(child, job["timeout"], job.get("until"))
        print(json.dumps({"returncode": ended}), file=answers, flush=True)


def _become(job: Mapping[str, Any], main: Any) -> None:
    """Turn this forked process into the job's command, and end as Python would end it."""
    os.setsid()  # so that a kill reaches what the command itself started
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in enumerate(("stdout", "stderr"), 1):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT, 0o600), number)
        os.chdir(job["cwd"])
        if "cpu" in job:  # seconds of this process alone, however busy the machine is
            resource.setrlimit(resource.RLIMIT_CPU, (job["cpu"], job["cpu"]))
        if "patience" in job:  # seconds; the parent has read huggingface_hub's own variables
            constants = importlib.import_module("huggingface_hub.constants")
            constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = job["patience"]
        os.environ["TMPDIR"] = job["scratch"]
        tempfile.tempdir = None  # else the parent's answer is kept
        sys.argv = list(job["words"])
        main(prog_name=sys.argv[0])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, timeout: float, until: str | None = None) -> int | None:
    """Return the exit status of a child as ``subprocess`` would, or None where it was killed.

    It is killed after ``timeout`` seconds, and as soon as there is a file ``until``.
    """
    end = time.monotonic() + timeout
    while time.monotonic() < end and not (until and Path(until).exists()):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)  # it may not have come to lead a group yet
    os.waitpid(child, 0)
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _main(jobs_file: str, report_file: str) -> None:
    errors: dict[str, str | None] = {}
    for job in json.loads(Path(jobs_file).read_text(encoding="utf-8")):
        try:
            in_process(job["recipe"], job["out"], **job["options"])
            errors[job["out"]] = None
        except Exception as error:
            errors[job["out"]] = f"{type(error).__name__}: {error}"
    import mergekit.merge_methods

    methods = [method.spec.name for method in mergekit.merge_methods.registered_methods()]
    report = {"methods": methods, "modules": sorted(sys.modules), "errors": errors}
    Path(report_file).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] in ("serve", "stock"):
        _serve(*sys.argv[2:], ours=sys.argv[1] == "serve")
    else:
        _main(*sys.argv[1:])
