"""Tasks of lm-evaluation-harness over a few rows of a local file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_choice: ["tok1", "tok2"]
doc_to_target: a
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def write_task(folder: Path, name: str, questions: Sequence[str]) -> None:
    """Write a task's YAML, and its questions, each with the first answer right."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps({"q": text, "a": 0}) + "\n" for text in questions))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
