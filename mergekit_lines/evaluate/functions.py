"""``python:module:function``, and how a function named in a spec is found and called."""

from __future__ import annotations

import copy
import importlib
import inspect
import numbers
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError, nearest, reason
from mergekit_lines.evaluate.code import code_files, same_directory
from mergekit_lines.evaluate.metric import Completions, Metric, metric
from mergekit_lines.evaluate.models import still
from mergekit_lines.evaluate.spec import FromSpec, Settings, Spec, check_name, one_of, read_options


class PythonFunction(FromSpec):
    """A function of model and tokenizer that returns numbers.

    It is called as ``function(model, tokenizer)``, with ``split="validation"`` or ``"test"`` and
    the model's ``processor`` if it has parameters of these names, without gradients and with
    seeded generators. It returns a number, a mapping from names to numbers, or a mapping from
    names to one number per example, whose mean is the value. A number's metric has the
    evaluator's name: NAME, or the function's.
    A mapping's metrics have the mapping's names, behind ``NAME_`` where the spec has one.

    Option: ``direction``: ``higher`` (is better, the default) or ``lower``.
    """

    takes = ("seed",)

    def __init__(self, spec: Spec, split: str, settings: Settings) -> None:
        """Import the function.

        Raises:
            LinesError: it cannot be found, or an option is wrong.
        """
        options = read_options(spec, {"direction": one_of("higher", "lower")})
        self._function, self._code = find_function(spec)
        self._place = spec.args
        self._prefix = "" if spec.name is None else f"{spec.name}_"
        super().__init__(spec, split, spec.name or function_name(spec))
        self._higher = options.get("direction", "higher") == "higher"
        self._seed = settings.seed
        self._takes_split = takes(self._function, "split")

    def identity(self) -> dict[str, Any]:
        """Return what the numbers hang on, as far as it can be known.

        That is the function's file and the modules that it imports, as :mod:`.code` says.
        Files that it reads are not known.
        """
        options = {"direction": "higher" if self._higher else "lower", "seed": self._seed}
        function = {"function": self._place, "takes_split": self._takes_split}
        return {**self.described(options, {}, self._code), **function}

    def digests(self) -> None:
        """Return None: the function's examples are its own."""
        return

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        completions: Completions | None = None,
        processor: Callable[[], Any] | None = None,
    ) -> dict[str, Metric]:
        """Return the function's metrics.

        Raises:
            LinesError: the function raises, or does not return finite numbers.
        """
        words: dict[str, Any] = {"split": self.split} if self._takes_split else {}
        if takes(self._function, "processor"):
            words["processor"] = processor() if processor else None
        with still(model, self._seed):
            # A copy: of a tokenizer, what one point sets would hold for the next.
            own = copy.deepcopy(tokenizer)
            answer = call(self.spec, self._function, model, own, **words)
        if not isinstance(answer, Mapping):
            return {self.name: self._metric(self.name, answer)}
        if not answer:
            raise LinesError(f"{self.spec}: the function returned an empty mapping.")
        result = {}
        for key, value in answer.items():
            name = check_name(self.spec, f"{self._prefix}{key}" if isinstance(key, str) else key)
            result[name] = self._metric(name, value, several=True)
        return result

    def _metric(self, name: str, value: object, *, several: bool = False) -> Metric:
        number = as_number(value)
        scores = as_numbers(value) if several and number is None else None
        if number is None and not scores:
            raise LinesError(
                f"{self.spec}: found {type(value).__name__} {str(value)[:40]!r} for {name}, wanted "
                f"a number, a mapping from names to numbers, or a mapping from names to a "
                f"sequence of at least one number per example."
            )
        return metric(
            self.spec,
            name,
            number,
            origin=self._place,
            higher_is_better=self._higher,
            examples=scores,
        )


def takes(function: Callable[..., Any], name: str) -> bool:
    """Tell whether a function has a parameter of this name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables of C have none
        return False
    return name in parameters


def as_number(value: object) -> float | None:
    """Return a number, or an array of no dimension, as a float; None for anything else."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value)


def as_numbers(values: object) -> list[float] | None:
    """Return a sequence or an array of numbers as floats; None for anything else."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        return None
    scores = [as_number(score) for score in values]
    kept = [score for score in scores if score is not None]
    return kept if len(kept) == len(scores) else None


def function_name(spec: Spec) -> str:
    """Return the name of the function of a spec."""
    return spec.args.rpartition(":")[2].rpartition(".")[2]


def find_function(spec: Spec) -> tuple[Callable[..., Any], dict[str, str]]:
    """Import ``module:function``, from the current directory first.

    Returns:
        The function, and the files of its code with their SHA-256 (none if it has no source).

    Raises:
        LinesError: the module cannot be imported, or has no such function.
    """
    module_name, colon, path = spec.args.partition(":")
    if not colon or not module_name or not path or module_name.endswith(".py"):
        raise LinesError(
            f"{spec.text}: found {spec.args!r}, wanted module:function, for example "
            f"{spec.kind}:rewards:sentiment for the function `sentiment` of rewards.py in the "
            f"current directory."
        )

    def unimported(error: BaseException) -> str:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
        text = reason(error) if missing else reason_at(error)
        remedy = f"Is {module_name}.py in {Path.cwd()}?" if missing else "Mend the module."
        return f"{spec.text}: the module {module_name} cannot be imported ({text}). {remedy}"

    with failures(unimported), _current_directory_first():
        module = importlib.import_module(module_name)
    function: Any = module
    for part in path.split("."):
        names = [name for name in dir(function) if not name.startswith("_")]
        if not hasattr(function, part):
            home = getattr(module, "__file__", None) or module_name
            raise LinesError(f"{spec.text}: {home} has no {path}.{nearest(part, names)}")
        function = getattr(function, part)
    if not callable(function):
        raise LinesError(f"{spec.text}: {path} is {type(function).__name__}, wanted a function.")
    with _current_directory_first():
        return function, _code(function, module)


def _code(function: Callable[..., Any], module: Any) -> dict[str, str]:
    """Return the files of the function and of the module that it was named in."""
    inner = inspect.unwrap(function)
    try:
        own = inspect.getsourcefile(inner)
    except TypeError:  # an object with __call__, or a function of C
        own = None
    places = {getattr(module, "__file__", None): module.__name__, own: inner.__module__}
    return {
        os.path.relpath(path): digest
        for file, name in places.items()
        if file is not None and Path(file).is_file()
        for path, digest in sorted(code_files(Path(file), name or "").items())
    }


@contextmanager
def _current_directory_first() -> Iterator[None]:
    """Import from the current directory first here, and last from then on.

    A file of it that has a library's name must not come in the way of that library's imports.
    """
    here = str(Path.cwd())
    listed = here in sys.path
    sys.path.insert(0, here)
    try:
        with same_directory():
            yield
    finally:
        sys.path.remove(here)
        if not listed:
            sys.path.append(here)


def call(spec: str, function: Callable[..., Any], *arguments: Any, **words: Any) -> Any:
    """Call a user's function.

    Raises:
        LinesError: it raised; with the line of its file.
    """
    with failures(lambda error: f"{spec}: the function raised {reason_at(error)}. Mend it."):
        return function(*arguments, **words)


@contextmanager
def failures(sentence: Callable[[BaseException], str]) -> Iterator[None]:
    """Turn what an evaluator's code raises into a sentence; what ends the program goes on.

    Raises:
        LinesError: with the sentence.
    """
    try:
        yield
    except LinesError:
        raise
    except BaseException as error:
        if ends_the_program(error):
            raise
        raise LinesError(sentence(error)) from error


def reason_at(error: BaseException) -> str:
    """Return what an exception says, and `` at FILE, line N`` of where it was raised."""
    called = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in called if not frame.filename.startswith("<")]
    where = f" at {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return f"{reason(error)}{where}"


def ends_the_program(error: BaseException) -> bool:
    """Whether an exception is none of an evaluator's: Ctrl-C, or the exit that a signal asks for.

    ``sys.exit()`` in an evaluator is a failure of it, like any exception. A signal's exit is told
    apart by a class of its own.
    """
    if isinstance(error, SystemExit):
        return type(error) is not SystemExit
    return isinstance(error, (KeyboardInterrupt, GeneratorExit))
