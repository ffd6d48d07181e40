"""The model card of a merge, written without a network call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from mergekit_lines.planner import Summary, models_in_order
from mergekit_lines.report import report

_TEXT = """---
{metadata}
---
# {name}

A merge made with [mergekit](https://github.com/arcee-ai/mergekit) and LiNeS
([arXiv 2410.17146](https://arxiv.org/abs/2410.17146)): the change from the pre-trained model
is scaled block by block, from a small coefficient at the first block to a large one at the
last, so that shallow blocks stay close to the pre-trained model and deep ones keep what was
learnt.

- Method: `{method}`{wrap}
- Base: {base}
- Models: {models}
- Coefficient of the first block (alpha): {alpha}

## Coefficients

{tables}

## Recipe

Run it with `mergekit-yaml` where mergekit-lines {version} is installed.

{fence}yaml
{recipe}
{fence}

## Citation

```bibtex
@inproceedings{{wang2025lines,
  title     = {{LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging}},
  booktitle = {{International Conference on Learning Representations}},
  year      = {{2025}}
}}
```
"""


def card(config: MergeConfiguration, summary: Summary, recipe: str, name: str) -> str:
    """Return the text of README.md for the merged model ``name``."""
    models = models_in_order(config)
    hub_ids = [path for model in models for path in _hub_ids(model)]
    data = ModelCardData(
        base_model=hub_ids or None,
        library_name="transformers",
        tags=["mergekit", "merge", "lines"],
    )
    content = report(summary, config.merge_method, recipe)
    base = config.base_model
    return _TEXT.format(
        metadata=data.to_yaml(),
        name=name,
        method=config.merge_method,
        wrap=f" around {', '.join(summary.wraps)}" if summary.wraps else "",
        base=_shown(base) if base else "given per slice",
        models=", ".join(_shown(model) for model in models if model != base),
        alpha=content["alpha"]["value"],
        tables=_tables(content),
        version=content["mergekit_lines"],
        recipe=recipe.rstrip(),
        fence="````" if "```" in recipe else "```",
    )


def _hub_ids(model: ModelReference) -> list[str]:
    paths = [model.model.path, *([model.lora.path] if model.lora else [])]
    # What lies on this machine is no Hub id, even where it looks like one.
    return [p for p in paths if not Path(p).exists() and p.count("/") <= 1 and p[0] not in "/.~"]


def _shown(model: ModelReference) -> str:
    parts = [model.model.path, *([model.lora.path] if model.lora else [])]
    names = [part if not Path(part).exists() else Path(part).name for part in parts]
    return " + ".join(f"`{name}`" for name in names)


def _tables(content: dict[str, Any]) -> str:
    parts = []
    for container in content["containers"]:
        rows = [f"| `{container['name']}` | coefficient |", "| --- | --- |"]
        for number, value in enumerate(container["coefficients"], 1):
            shown = value if isinstance(value, list) else [value]
            rows.append(f"| block {number} | {', '.join(f'{v:.6g}' for v in shown)} |")
        parts.append("\n".join(rows))
    outside = content["outside"]
    if outside:
        values = sorted(set(outside.values()))
        parts.append(
            f"Outside the blocks: {len(outside)} tensors, coefficient "
            f"{', '.join(f'{value:.6g}' for value in values)}."
        )
    return "\n\n".join(parts)
