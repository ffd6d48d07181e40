"""The tasks of lm-evaluation-harness by their names."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_lines.errors import LinesError, nearest, reason, some
from mergekit_lines.evaluate.harness.files import code_digests, data_digests


class Tasks:
    """The tasks of a spec as the harness loads them, and the local files they hang on."""

    def __init__(self, spec: str, asked: Sequence[str], include: Path | None) -> None:
        self._index = _index_of(spec, asked, include)
        self.loaded = self._index.load(list(asked))
        self.tasks: dict[str, Any] = self.loaded["tasks"]
        groups: dict[str, Any] = self.loaded.get("groups", {})
        self.leaves: dict[str, list[str]] = {name: self._leaves(name, groups) for name in asked}
        self.data: dict[str, str] = {}
        self.code: dict[str, str] = {}
        for name in dict.fromkeys((*asked, *groups, *self.tasks)):
            self._add(include, name)
        for task in self.tasks.values():
            data, others = data_digests(task.config)
            self.data |= data
            self.code |= others

    def _leaves(self, name: str, groups: Mapping[str, Any]) -> list[str]:
        """Return the tasks of a group or a tag, or the task itself."""
        if name in groups:
            return [task.task_name for task in groups[name].get_all_tasks()]
        return [name] if name in self.tasks else sorted(self._index.task_index[name].tags)

    def set_shots(self, spec: str, shots: int | None) -> None:
        """Set the number of few-shot examples of every task.

        Raises:
            LinesError: a task is defined without any.
        """
        for name, task in self.tasks.items():
            own = task.get_config("num_fewshot")
            if shots and own == 0:
                raise LinesError(
                    f"{spec}: num_fewshot is {shots}, and the task {name} is defined with 0. "
                    f"Leave the option out, or take another task."
                )
            if shots is not None or own is None:
                task.set_config(key="num_fewshot", value=shots or 0)

    def _add(self, include: Path | None, name: str) -> None:
        entry = self._index.task_index.get(name)
        if include is None or entry is None or entry.yaml_path is None:
            return
        path = Path(entry.yaml_path)
        if path.resolve().is_relative_to(include.resolve()):
            self.code |= code_digests(path, include)


def _index_of(spec: str, asked: Sequence[str], include: Path | None) -> Any:
    """Return the harness's index of tasks that has all of those that are asked for."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise LinesError(
            f"{spec}: lm-evaluation-harness is not installed ({reason(error)}). Install it with "
            f"`pip install 'mergekit-lines[eval]'`."
        ) from error
    place = "" if include is None else f" nor below {include}"
    if include is not None:  # the harness's own thousands of YAMLs take many seconds to read
        manager = TaskManager(include_path=str(include), include_defaults=False)
        if all(_complete(manager.task_index, name) for name in asked):
            return manager
    manager = _whole_index(None if include is None else str(include.resolve()))
    if unknown := [name for name in asked if name not in manager.task_index]:
        raise LinesError(
            f"{spec}: there is no task {some(unknown)} in lm-evaluation-harness{place}."
            f"{nearest(unknown[0], manager.all_tasks)} ?include_path=FOLDER adds a folder "
            f"with task YAMLs."
        )
    return manager


@functools.lru_cache(maxsize=1)
def _whole_index(include: str | None) -> Any:
    """Return the index of the harness's own tasks and of a folder; read once, it is slow."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include)


def _complete(index: Mapping[str, Any], name: str) -> bool:
    """Return whether an index has a task, or a group and all that it names."""
    if name not in index:
        return False
    parts = (index[name].cfg or {}).get("task")
    names = [part for part in parts if isinstance(part, str)] if isinstance(parts, list) else []
    return all(_complete(index, part) for part in names)
