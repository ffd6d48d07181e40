"""Validation and test kept apart: what is chosen on one is reported on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from operator import methodcaller
from pathlib import Path

from mergekit_lines.errors import LinesError, some
from mergekit_lines.evaluate.measuring import Evaluator

Digests = Callable[[Evaluator], Set[str] | None]
_REMEDY = "What is chosen on validation data has to be reported on other data."


def check_apart(
    validation: Sequence[Evaluator],
    test: Sequence[Evaluator],
    digests_of: Digests = methodcaller("digests"),
) -> None:
    """Check that no data is both in the validation and in the test evaluators.

    Compared are lm-evaluation-harness tasks, functions that cannot know the split, files (one
    file, or two with the same content), and examples by the digest of their text. To be called
    before a measurement, and again after the first one of both splits: some examples are only
    known then.

    Args:
        validation: what is chosen by.
        test: what is reported.
        digests_of: returns the digests of an evaluator's examples, where more than the evaluator
            itself knows them.

    Raises:
        LinesError: something is in both; all that was found at once.
    """
    problems = []
    for left in validation:
        for right in test:
            if overlap := _shared(left, right, digests_of):
                problems.append(f"{left.spec} (validation) and {right.spec} (test): {overlap}")
    if problems:
        raise LinesError(problems)


def _shared(left: Evaluator, right: Evaluator, digests_of: Digests) -> str | None:
    """Return what two evaluators have both, in a sentence and what to do."""
    one, other = left.identity(), right.identity()
    if tasks := sorted(set(one.get("tasks", ())) & set(other.get("tasks", ()))):
        return (
            f"both measure the task {some(tasks)}. {_REMEDY} Name another task, for example a "
            f"copy of its YAML with another name and another test_split."
        )
    if (
        one.get("takes_split") is False
        and other.get("takes_split") is False
        and one["function"] == other["function"]
    ):
        return (
            f"one function measures both, and cannot know on which data. {_REMEDY} Give it a "
            f"parameter `split`: it is called with split='validation' or split='test'."
        )
    for file, digest in one["data"].items():
        for twin, its in other["data"].items():
            if Path(file).resolve() == Path(twin).resolve():
                return f"both read the file {file}. {_REMEDY}"
            if digest == its:
                return f"the files {file} and {twin} have the same content. {_REMEDY}"
    examples, others = (digests_of(evaluator) or set() for evaluator in (left, right))
    if count := len(examples & others):
        return (
            f"{count} {'example is' if count == 1 else 'examples are'} in both, of "
            f"{len(examples)} and {len(others)}. {_REMEDY} Take "
            f"{'it' if count == 1 else 'them'} out of one."
        )
    return None
