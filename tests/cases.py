"""Bad recipes and bad models: what each command of this package must refuse, and in which words.

:data:`CASES` knows nothing of any command. ``build(folder, models)`` writes what the case
needs into an empty folder and returns the recipe; every recipe is :func:`recipe` with one
fault in it, so that a refusal can only be due to that fault.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests import models as make
from tests.models import INDEX, Tensors

NAN, INF = math.nan, math.inf
DROP = object()
UP = "model.layers.2.mlp.up_proj.weight"
HEAD = "lm_head.weight"
MATRICES = ("q_proj.weight", "up_proj.weight", "down_proj.weight")
ALL_LAYERS = (0, 4)


@dataclass(frozen=True)
class Models:
    """Sound tiny checkpoints that cases refer to or copy, never change."""

    base: Path
    a: Path
    b: Path
    adapter: Path

    @property
    def folders(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.base, self.a, self.b, self.adapter)


Recipe = dict[str, Any]
Build = Callable[[Path, Models], Recipe]


@dataclass(frozen=True)
class Case:
    """One fault, and what its refusal must say.

    ``fault`` is where it lies: in the ``recipe``, the ``models`` (both seen without reading
    a weight), the ``weights``, the ``flags`` or ``out``.
    """

    id: str
    sentence: str
    build: Build
    expected: tuple[str, ...]
    flags: tuple[str, ...] = ()
    fault: str = "recipe"
    out: str = "out"
    during: Callable[[Path], AbstractContextManager[None]] = lambda folder: nullcontext()
    problems: int | None = 1  # None: the message may count them as it likes


# --- recipes -----------------------------------------------------------------------------


def entry(model: Path | str, **parameters: Any) -> dict[str, Any]:
    """Return one item of ``models:``."""
    return {"model": str(model), "parameters": parameters} if parameters else {"model": str(model)}


def recipe(models: Models, /, **changes: Any) -> Recipe:
    """Return a recipe of ``merge_method: lines`` that merges; a key set to DROP is left out."""
    sound = {
        "merge_method": "lines",
        "base_model": str(models.base),
        "models": [entry(models.a), entry(models.b)],
        "parameters": {"alpha": 0.3, "beta": 0.3},
        "dtype": "float32",
    }
    return {key: value for key, value in {**sound, **changes}.items() if value is not DROP}


def postprocess_recipe(models: Models, /, **changes: Any) -> Recipe:
    """Return a recipe of ``merge_method: lines_postprocess`` that merges."""
    sound = {
        "merge_method": "lines_postprocess",
        "models": [entry(models.a)],
        "parameters": {"gamma": 0.3},
    }
    return recipe(models, **{**sound, **changes})


def top(**changes: Any) -> Build:
    """Build the sound recipe with other top-level keys."""
    return lambda folder, models: recipe(models, **changes)


def words(**changes: Any) -> Build:
    """Build the sound recipe with other parameters; one set to DROP is left out."""

    def build(folder: Path, models: Models) -> Recipe:
        values = {"alpha": 0.3, "beta": 0.3, **changes}
        return recipe(models, parameters={k: v for k, v in values.items() if v is not DROP})

    return build


def post(**parameters: Any) -> Build:
    """Build a ``lines_postprocess`` recipe with exactly these parameters."""
    return lambda folder, models: postprocess_recipe(models, parameters=parameters)


def under_a(**parameters: Any) -> Build:
    """Build the sound recipe with parameters under its first model."""
    return lambda folder, models: recipe(
        models, models=[entry(models.a, **parameters), entry(models.b)]
    )


def listing(*names: str, **changes: Any) -> Build:
    """Build the sound recipe with these of the models under ``models:``."""
    return lambda folder, models: recipe(
        models, models=[entry(getattr(models, name)) for name in names], **changes
    )


def slices(**ranges: tuple[int, int]) -> Build:
    """Build a recipe of one slice whose sources have these layer ranges."""

    def build(folder: Path, models: Models) -> Recipe:
        sources = [
            {"model": str(getattr(models, name)), "layer_range": list(layers)}
            for name, layers in ranges.items()
        ]
        return recipe(models, models=DROP, slices=[{"sources": sources}])

    return build


def beside_source(**keys: Any) -> Build:
    """Build a recipe of slices with keys beside ``model`` and ``layer_range``."""

    def build(folder: Path, models: Models) -> Recipe:
        bad = slices(base=ALL_LAYERS, a=ALL_LAYERS)(folder, models)
        bad["slices"][0]["sources"][1] |= keys
        return bad

    return build


def beside_model(**keys: Any) -> Build:
    """Build the sound recipe with keys beside ``model`` in the first item of ``models:``."""
    return lambda folder, models: recipe(
        models, models=[{"model": str(models.a), **keys}, entry(models.b)]
    )


# --- models ------------------------------------------------------------------------------


def copy(source: Path, target: Path) -> Path:
    """Copy a checkpoint folder."""
    return Path(shutil.copytree(source, target))


def model(edit: Callable[[Path], object], **changes: Any) -> Build:
    """Build the sound recipe with a copy of its first model, ``broken``, that ``edit`` breaks."""

    def build(folder: Path, models: Models) -> Recipe:
        broken = copy(models.a, folder / "broken")
        edit(broken)
        return recipe(models, **{"models": [entry(broken), entry(models.b)], **changes})

    return build


def base(edit: Callable[[Path], object], **changes: Any) -> Build:
    """Build the sound recipe with a copy of its base, ``broken``, that ``edit`` breaks."""

    def build(folder: Path, models: Models) -> Recipe:
        broken = copy(models.base, folder / "broken")
        edit(broken)
        return recipe(models, **{"base_model": str(broken), **changes})

    return build


def other(write: Callable[[Path], object], **changes: Any) -> Build:
    """Build the sound recipe with another model, ``broken``, in place of the first."""

    def build(folder: Path, models: Models) -> Recipe:
        write(folder / "broken")
        return recipe(models, **{"models": [entry(folder / "broken"), entry(models.b)], **changes})

    return build


def sharded(edit: Callable[[Path], object]) -> Build:
    """Build the sound recipe with a model of several shards, ``broken``, that ``edit`` breaks."""

    def write(path: Path) -> None:
        make.llama(path, seed=5, max_shard_size="40KB")
        assert len(shards(path)) > 2
        edit(path)

    return other(write)


def vit_without(name: str) -> Build:
    """Build the sound recipe with two ViTs, the second of which lacks a tensor."""

    def build(folder: Path, models: Models) -> Recipe:
        origin = make.vit(folder / "origin", seed=1)
        tuned = make.finetuned(origin, folder / "tuned", seed=2)

        def dropped(tensors: make.Tensors) -> None:
            del tensors[name]

        make.rewrite(tuned, dropped)
        return recipe(models, base_model=str(origin), models=[entry(tuned)])

    return build


def shards(path: Path) -> list[Path]:
    """Return the weight files of a checkpoint."""
    return sorted(path.glob("*.safetensors"))


def edit_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return an edit of a checkpoint's index."""

    def edit(path: Path) -> None:
        index = json.loads((path / INDEX).read_text())
        change(index)
        (path / INDEX).write_text(json.dumps(index))

    return edit


def set_tensors(
    new: Callable[[torch.Tensor], torch.Tensor], *endings: str
) -> Callable[[Path], object]:
    """Return an edit of all tensors whose names end in one of ``endings``."""

    def change(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if name.endswith(endings):
                tensors[name] = new(tensor)

    return lambda path: make.rewrite(path, change)


def to_integers(path: Path) -> None:
    """Store one matrix in int32."""
    set_tensors(lambda tensor: (90 * tensor).int(), UP)(path)


def set_entry(name: str, value: float) -> Callable[[Path], object]:
    """Return an edit of the last entry of one tensor."""

    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[-1] = value

    return lambda path: make.rewrite(path, change)


def without(name: str) -> Callable[[Path], object]:
    """Return an edit that removes one tensor."""
    return lambda path: make.rewrite(
        path, lambda tensors: {k: v for k, v in tensors.items() if k != name}
    )


def with_tensor(name: str) -> Callable[[Path], object]:
    """Return an edit that adds one tensor."""
    return lambda path: make.rewrite(path, lambda tensors: {**tensors, name: torch.ones(4, 4)})


def config(**changes: Any) -> Callable[[Path], object]:
    """Return an edit of config.json."""
    return lambda path: make.edit_config(path, **changes)


def text(file: str, content: str) -> Callable[[Path], object]:
    """Return an edit that gives one file another content."""
    return lambda path: (path / file).write_text(content)


def remove(file: str) -> Callable[[Path], object]:
    """Return an edit that removes one file."""
    return lambda path: (path / file).unlink()


def truncate(path: Path) -> None:
    """Cut off the last tenth of the last weight file."""
    file = shards(path)[-1]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 9 // 10])


def break_header(path: Path) -> None:
    """Overwrite the first bytes of the weight file's JSON header."""
    (file,) = shards(path)
    content = bytearray(file.read_bytes())
    content[8:40] = b"\xff" * 32
    file.write_bytes(bytes(content))


def pickled_garbage(path: Path) -> None:
    """Put a broken pickled checkpoint in the place of the weights."""
    shards(path)[0].unlink()
    (path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 not an archive")


def lone_shard_beside_index(path: Path) -> None:
    """Add a ``model.safetensors`` to a sharded checkpoint."""
    shutil.copy(shards(path)[0], path / "model.safetensors")


def zero_rows(size: int) -> Callable[[Path], object]:
    """Return an edit that gives both embeddings ``size`` rows, and the config too."""

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(size, tensor.shape[1])
        rows[: min(size, len(tensor))] = tensor[:size]
        return rows

    def edit(path: Path) -> None:
        set_tensors(resized, "embed_tokens.weight", HEAD)(path)
        make.edit_config(path, vocab_size=size)

    return edit


def with_adapter(edit: Callable[[Path], object], **changes: Any) -> Build:
    """Build a recipe with BASE+ADAPTER, the adapter a copy ``broken`` that ``edit`` breaks."""

    def build(folder: Path, models: Models) -> Recipe:
        broken = copy(models.adapter, folder / "broken")
        edit(broken)
        return recipe(
            models, **{"models": [entry(f"{models.base}+{broken}"), entry(models.b)], **changes}
        )

    return build


def integers_everywhere(folder: Path, models: Models) -> Recipe:
    """Build a recipe whose models all hold one matrix in int32."""
    bad = base(to_integers)(folder, models)
    tuned = copy(models.a, folder / "tuned")
    to_integers(tuned)
    return {**bad, "models": [entry(tuned)]}


def foreign_adapter(folder: Path, models: Models) -> Recipe:
    """Build a recipe with an adapter of a model of another width."""
    origin = make.llama(folder / "origin", hidden=64)
    broken = make.lora(origin, folder / "broken", seed=1)
    return recipe(models, models=[entry(f"{models.base}+{broken}"), entry(models.b)])


def alike(folder: Path, models: Models) -> Recipe:
    """Build a recipe whose models are the base under other names, with ``alpha: auto``."""
    twins = [entry(copy(models.base, folder / name)) for name in ("broken", "twin")]
    return recipe(models, models=twins, parameters={"wrap": "ties", "beta": 0.3})


def linked_twin(folder: Path, models: Models) -> Recipe:
    """Build a recipe that lists one model by its path and by a link."""
    (folder / "link").symlink_to(models.a)
    return recipe(models, models=[entry(models.a), entry(folder / "link")])


def adapter_cache_is_a_file(folder: Path, models: Models) -> Recipe:
    """Build a sound recipe with an adapter beside a file ``cache``."""
    (folder / "cache").write_text("x")
    return with_adapter(lambda path: None)(folder, models)


def typo(folder: Path, models: Models) -> Recipe:
    """Build a recipe that names a folder with one letter wrong."""
    copy(models.a, folder / "my-tuned-model")
    return recipe(models, models=[entry(folder / "my-tunde-model"), entry(models.b)])


# --- the output folder -------------------------------------------------------------------


def out_holds(source: str | None = None, file: str = "", content: str = "x") -> Build:
    """Build the sound recipe; OUT is a copy of a model, or holds one file."""

    def build(folder: Path, models: Models) -> Recipe:
        if source:
            copy(getattr(models, source), folder / "out")
        else:
            (folder / "out").mkdir(exist_ok=True)
            (folder / "out" / file).write_text(content)
        return recipe(models)

    return build


def holding(file: str, content: str = "x") -> Build:
    """Build the sound recipe beside a file of this name (relative to the case's folder)."""

    def build(folder: Path, models: Models) -> Recipe:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)
        return recipe(models)

    return build


def dead_link(folder: Path, models: Models) -> Recipe:
    """Build the sound recipe; OUT is a link to a folder that is not there."""
    (folder / "out").symlink_to(folder / "nowhere")
    return recipe(models)


def link_to_itself(folder: Path, models: Models) -> Recipe:
    """Build the sound recipe; OUT is a link to itself."""
    (folder / "out").symlink_to(folder / "out")
    return recipe(models)


def out_is_an_input(folder: Path, models: Models) -> Recipe:
    """Build a recipe one of whose models is OUT itself."""
    return recipe(models, models=[entry(copy(models.a, folder / "out")), entry(models.b)])


@contextmanager
def another_merge(folder: Path) -> Iterator[None]:
    """Hold the lock of OUT, as a merge that is under way does."""
    from filelock import FileLock

    lock = folder / ".out.partial.lock"
    with FileLock(lock):
        yield
    lock.unlink(missing_ok=True)


# --- the table ---------------------------------------------------------------------------

KEYS = [
    Case(
        "unknown-key",
        "A misspelt top-level key is named with the right one.",
        top(dtype=DROP, dtpye="float32"),
        ("dtpye", "Did you mean 'dtype'"),
    ),
    Case(
        "parameter-at-the-top",
        "A parameter written at the top level is sent to `parameters`.",
        top(parameters={"alpha": 0.3}, beta=0.3),
        ("beta:", "parameters"),
    ),
    Case(
        "unknown-key-of-a-model",
        "A misspelt key of an item of `models:` is named with its place and the right one.",
        beside_model(paramters={"weight": 0.5}),
        ("models[0].paramters", "Did you mean 'parameters'"),
    ),
    Case(
        "parameter-beside-a-model",
        "A weight written beside `model:` instead of under its parameters is sent there.",
        beside_model(weight=0.5),
        ("models[0].weight", "parameters"),
    ),
    Case(
        "unknown-key-of-a-source",
        "A misspelt key of a slice's source is named with its place and the right one.",
        beside_source(parameter={"weight": 0.5}),
        ("slices[0].sources[1].parameter:", "Did you mean 'parameters'"),
    ),
    Case(
        "unknown-key-of-the-tokenizer",
        "A misspelt key of `tokenizer:` is named: without it another tokenizer would be made.",
        top(tokenizer={"sorce": "base"}),
        ("tokenizer.sorce", "Did you mean 'source'"),
    ),
    Case(
        "misspelt-parameter",
        "A misspelt parameter is named with the right one.",
        words(beta=DROP, beat=0.3),
        ("parameters.beat", "Did you mean 'beta'"),
    ),
    Case(
        "unknown-parameter",
        "A parameter that resembles none is refused with the list of known ones.",
        words(zzz=1),
        ("parameters.zzz", "known", "alpha", "schedule"),
    ),
    Case(
        "misspelt-parameter-under-a-model",
        "A misspelt parameter under one model is named with that model's place.",
        under_a(wieght=0.5),
        ("models[0].parameters.wieght", "Did you mean 'weight'"),
    ),
    Case(
        "lines-word-under-a-model",
        "A coefficient under one model has no meaning: it belongs to the whole recipe.",
        under_a(beta=0.3),
        ("models[0].parameters.beta", "under one model", "Move"),
    ),
    Case(
        "wrap-under-a-model",
        "A wrap under one model has no meaning: it belongs to the whole recipe.",
        under_a(wrap="ties"),
        ("models[0].parameters.wrap", "under one model", "Move"),
    ),
    Case(
        "parameter-of-another-wrap",
        "A parameter that only another wrap has is refused, not ignored.",
        words(wrap="ties", epsilon=0.1),
        ("parameters.epsilon", "density"),
    ),
]

NUMBERS = [
    Case(
        f"{name}-{label}",
        f"{name}: {value!r} is refused with what was found and what is wanted.",
        words(**{name: value}),
        (f"parameters.{name}", "found", "wanted", *expected),
    )
    for name, label, value, expected in (
        ("beta", "nan", NAN, ("nan", "finite number")),
        ("beta", "infinite", INF, ("inf", "finite number")),
        ("beta", "text", "abc", ("'abc'", "number")),
        ("beta", "true", True, ("True", "boolean", "number")),
        ("beta", "empty-list", [], ("empty",)),
        ("beta", "nan-in-gradient", [0.1, NAN], ("nan", "finite number")),
        ("beta", "nan-in-filter", [{"filter": "mlp", "value": NAN}, {"value": 0.3}], ("nan",)),
        ("beta", "auto", "auto", ("'auto'", "finite number")),
        ("beta", "beyond-every-float", 10**400, ("number",)),
        ("beta", "beyond-fp32", 1e39, ("1e+39", "number")),
        ("alpha", "misspelt-auto", "auot", ("'auot'", "auto", "Did you mean 'auto'")),
        ("alpha", "true", True, ("True", "boolean", "number", "auto")),
        ("alpha", "nan", NAN, ("nan", "finite number", "auto")),
        ("alpha", "auto-in-gradient", ["auto", 1.0], ("auto",)),
        ("schedule", "misspelt", "linaer", ("'linaer'", "linear", "sqrt", "quadratic")),
        ("schedule", "zero", 0, ("0", "exponent above 0")),
        ("schedule", "negative", -1, ("-1", "exponent above 0")),
        ("schedule", "infinite", INF, ("inf", "exponent")),
        ("schedule", "true", True, ("True", "boolean", "exponent")),
        ("outside", "word", "beta", ("'beta'", "`alpha`", "number")),
        ("outside", "nan", NAN, ("nan", "finite number")),
        ("norm", "unknown", "l3", ("'l3'", "l1", "l2")),
        ("norm", "number", 2, ("2", "l1", "l2")),
        ("seed", "negative", -1, ("-1", "whole number")),
        ("seed", "broken", 1.5, ("1.5", "whole number")),
        ("seed", "true", True, ("True", "boolean", "whole number")),
        ("num_blocks", "zero", 0, ("0", "whole number")),
        ("num_blocks", "broken", 2.5, ("2.5", "whole number")),
        ("num_blocks", "text", "four", ("'four'", "whole number")),
        ("allow_nonfinite", "one", 1, ("1", "true or false")),
        ("allow_nonfinite", "text", "yes", ("'yes'", "true or false")),
        ("lambda", "nan", NAN, ("nan", "finite number")),
        ("weight", "true", True, ("True", "boolean", "number")),
    )
]

WORDS = [
    Case(
        "beta-missing",
        "Without beta the paper's value for this wrap is named.",
        words(wrap="ties", beta=DROP),
        ("parameters.beta", "found nothing", "wanted", "ties", "1.4"),
    ),
    Case(
        "beta-missing-for-the-default-wrap",
        "Without beta the paper's value for task arithmetic is named.",
        words(beta=DROP),
        ("parameters.beta", "found nothing", "task_arithmetic", "0.3"),
    ),
    Case(
        "beta-only-for-a-filter-that-matches-nothing",
        "Where beta's only filter matches no tensor, the message names the filter.",
        words(beta=[{"filter": "no_such_part", "value": 0.3}]),
        ("parameters.beta", "no_such_part", "matches no tensor", "wanted"),
    ),
    Case(
        "beta-filter-that-matches-nothing",
        "A filter that matches no tensor is named, though another entry gives a beta.",
        words(beta=[{"filter": "slef_attn", "value": 0.1}, {"value": 0.3}]),
        ("parameters.beta", "'slef_attn'", "matches no tensor", "wanted"),
    ),
    Case(
        "beta-only-for-some-tensors",
        "Where filters give a beta to some tensors only, others are named.",
        words(beta=[{"filter": "self_attn", "value": 0.3}]),
        ("parameters.beta", "found nothing", "lm_head.weight"),
    ),
    Case(
        "weight-filter-of-a-model-that-matches-nothing",
        "A filter under one model that matches no tensor is named with its place.",
        under_a(weight=[{"filter": "atention", "value": 0.1}, {"value": 0.3}]),
        ("models[0].parameters.weight", "'atention'", "matches no tensor"),
    ),
    Case(
        "gamma-under-lines",
        "gamma belongs to lines_postprocess.",
        words(gamma=0.3),
        ("parameters.gamma", "lines_postprocess", "alpha", "beta"),
    ),
    Case(
        "weight-nan-under-a-model",
        "NaN as the weight of one model is refused with that model's place.",
        under_a(weight=NAN),
        ("models[0].parameters.weight", "nan", "finite number"),
    ),
    Case(
        "density-nan",
        "NaN as a density is refused.",
        words(wrap="ties", density=NAN),
        ("parameters.density", "nan", "finite number"),
    ),
    Case(
        "density-text",
        "Text as a density is refused.",
        words(wrap="ties", density="abc"),
        ("parameters.density", "'abc'", "number"),
    ),
    Case(
        "density-negative",
        "A negative density under a wrap that draws with it is refused by name.",
        words(wrap="dare_ties", density=-0.5),
        ("density", "-0.5"),
    ),
    Case(
        "normalize-text",
        "A text for a switch of the wrapped method is refused.",
        words(normalize="maybe"),
        ("parameters.normalize", "'maybe'", "boolean"),
    ),
    Case(
        "blocks-list",
        "blocks as a YAML list is refused: mergekit would read it as a gradient.",
        words(blocks=["model.layers", "visual.blocks"]),
        ("parameters.blocks", "list", "commas"),
    ),
    Case(
        "blocks-filter",
        "blocks by a filter is refused: which containers count is one decision.",
        words(blocks=[{"filter": "mlp", "value": "model.layers"}]),
        ("parameters.blocks", "filter", "commas"),
    ),
    Case(
        "blocks-empty",
        "An empty text of blocks is refused.",
        words(blocks=""),
        ("parameters.blocks", "''", "wanted"),
    ),
    Case(
        "blocks-number",
        "blocks as a number is refused: num_blocks is that word.",
        words(blocks=4),
        ("parameters.blocks", "4", "wanted", "names"),
    ),
    Case(
        "blocks-unknown-container",
        "blocks that name no container are refused with the nearest container.",
        words(blocks="model.layer"),
        ("blocks", "model.layer", "model.layers"),
    ),
    Case(
        "num-blocks-too-small",
        "num_blocks below the number of blocks in the names is refused.",
        words(num_blocks=2),
        ("num_blocks", "2", "model.layers", "number of blocks"),
    ),
    Case(
        "num-blocks-gradient",
        "num_blocks that differs between tensors is refused.",
        words(num_blocks=[{"filter": "mlp", "value": 4}, {"value": 8}]),
        ("parameters.num_blocks", "4", "8", "one value"),
    ),
    Case(
        "norm-filter",
        "A norm that differs between tensors is refused.",
        words(alpha="auto", norm=[{"filter": "mlp", "value": "l1"}, {"value": "l2"}]),
        ("parameters.norm", "l1", "l2", "one value"),
    ),
    Case(
        "seed-and-flag",
        "parameters.seed together with --random-seed is refused.",
        words(seed=3),
        ("parameters.seed", "3", "--random-seed", "7", "one"),
        flags=("--random-seed", "7"),
    ),
    Case(
        "seed-filter",
        "A seed that differs between tensors is refused.",
        words(seed=[{"filter": "mlp", "value": 1}, {"value": 2}]),
        ("parameters.seed", "1", "2", "one value"),
    ),
]

WRAPS = [
    Case(
        f"wrap-{label}",
        f"wrap: {value!r} is refused with what to write instead.",
        words(wrap=value),
        ("parameters.wrap", *expected),
    )
    for label, value, expected in (
        ("dare", "dare", ("'dare'", "dare_linear", "dare_ties")),
        ("misspelt", "tise", ("'tise'", "Did you mean 'ties'")),
        ("capitals", "TIES", ("'TIES'", "ties")),
        ("lines", "lines", ("'lines'", "itself")),
        ("postprocess", "lines_postprocess", ("'lines_postprocess'", "itself")),
        ("passthrough", "passthrough", ("'passthrough'", "lines_postprocess")),
        ("empty", "", ("''", "ties")),
        ("number", 3, ("3", "ties")),
        ("true", True, ("True", "boolean", "ties")),
        ("gradient", ["ties", "linear"], ("ties", "linear", "wanted")),
        ("one-of-ours-by-its-inner-name", "lines[ties]", ("'lines[ties]'", "ties")),
    )
] + [
    Case(
        "two-wraps-under-auto",
        "Two wraps in one recipe are refused under alpha: auto.",
        words(alpha="auto", wrap=[{"filter": "mlp", "value": "ties"}, {"value": "linear"}]),
        ("parameters.wrap", "ties", "linear", "alpha: auto", "one wrap"),
    ),
    Case(
        "wrap-filter-that-matches-nothing",
        "A wrap for a filter that matches nothing is refused, not taken for the default.",
        words(wrap=[{"filter": "mpl", "value": "ties"}, {"value": "dare_ties"}]),
        ("parameters.wrap", "'mpl'", "matches no tensor"),
    ),
    Case(
        "slerp-of-two",
        "slerp around two fine-tuned models is refused: it takes one.",
        words(wrap="slerp", t=0.5),
        ("models", "found 2", "wanted 1", "slerp"),
    ),
    Case(
        "slerp-without-t",
        "slerp without t is refused by the parameter's name.",
        listing("a", parameters={"wrap": "slerp", "alpha": 0.3, "beta": 0.3}),
        ("parameters.t", "found nothing", "slerp", "wanted"),
    ),
    Case(
        "slerp-with-t-of-text",
        "slerp with a t that is no number is refused.",
        listing("a", parameters={"wrap": "slerp", "t": "half", "alpha": 0.3, "beta": 0.3}),
        ("parameters.t", "'half'", "number"),
    ),
    Case(
        "model-stock-of-one",
        "model_stock around one fine-tuned model is refused: it takes two or more.",
        listing("a", parameters={"wrap": "model_stock", "alpha": 0.3, "beta": 0.3}),
        ("models", "found 1", "at least 2", "model_stock"),
    ),
]

POSTPROCESS = [
    Case(
        "postprocess-auto",
        "lines_postprocess has no alpha: auto.",
        post(alpha="auto", beta=0.5),
        ("parameters.alpha", "'auto'", "number", "gamma"),
    ),
    Case(
        "postprocess-gamma-and-alpha",
        "gamma together with alpha and beta is refused.",
        post(gamma=0.5, alpha=0.5, beta=0.5),
        ("parameters.gamma", "together", "alpha", "beta"),
    ),
    Case(
        "postprocess-gamma-and-beta",
        "gamma together with beta alone is refused.",
        post(gamma=0.5, beta=0.5),
        ("parameters.gamma", "together", "beta"),
    ),
    Case(
        "postprocess-neither",
        "lines_postprocess without gamma, alpha and beta is refused.",
        post(schedule="sqrt"),
        ("parameters.gamma", "found nothing", "alpha", "beta"),
    ),
    Case(
        "postprocess-alpha-alone",
        "lines_postprocess with alpha but no beta is refused.",
        post(alpha=0.5),
        ("found nothing", "beta", "gamma"),
    ),
    Case(
        "postprocess-gamma-nan",
        "NaN as gamma is refused.",
        post(gamma=NAN),
        ("parameters.gamma", "nan", "finite number"),
    ),
    Case(
        "postprocess-wrap",
        "lines_postprocess has no wrap.",
        post(gamma=0.5, wrap="ties"),
        ("parameters.wrap", "merge_method: lines", "one model"),
    ),
    Case(
        "postprocess-two-models",
        "lines_postprocess edits one model, not two.",
        lambda folder, models: postprocess_recipe(
            models, models=[entry(models.a), entry(models.b)]
        ),
        ("models", "found 2", "wanted one", "merge_method: lines"),
    ),
    Case(
        "postprocess-nan",
        "NaN in the edited model is refused with the tensor's name.",
        lambda folder, models: postprocess_recipe(
            models, models=model(set_entry(UP, NAN))(folder, models)["models"][:1]
        ),
        (UP, "broken", "NaN", "allow_nonfinite"),
        fault="weights",
    ),
]

STRUCTURE = [
    Case(
        "no-base",
        "Without base_model there is nothing to measure a change from.",
        top(base_model=DROP),
        ("base_model", "found nothing", "wanted", "pre-trained"),
    ),
    Case(
        "only-the-base",
        "The base alone is nothing to merge.",
        listing("base"),
        ("models", "besides base_model", "wanted", "fine-tuned"),
    ),
    Case(
        "base-twice",
        "The base listed twice is refused.",
        listing("base", "a", "base"),
        ("models", "llama_base", "twice", "once"),
    ),
    Case(
        "model-twice",
        "A model listed twice is refused.",
        listing("a", "b", "a"),
        ("models", "llama_a", "twice", "once"),
    ),
    Case(
        "model-twice-spelt-otherwise",
        "A model listed twice is refused where one of the two paths ends in a slash.",
        lambda folder, models: recipe(models, models=[entry(models.a), entry(f"{models.a}/")]),
        ("models", "llama_a", "twice", "once"),
    ),
    Case(
        "model-twice-by-a-link",
        "A model listed twice is refused where one of the two paths is a link.",
        linked_twin,
        ("models", "llama_a", "twice", "once"),
    ),
    Case(
        "base-spelt-otherwise",
        "The base listed under another spelling of its path is not taken for a fine-tuned model.",
        lambda folder, models: recipe(
            models, models=[entry(f"{models.base}/"), entry(models.a), entry(models.b)]
        ),
        ("models", "llama_base", "once"),
    ),
    Case(
        "base-folder-missing",
        "A base folder that is not there is named by key and path.",
        lambda folder, models: recipe(models, base_model=str(folder / "absent")),
        ("absent", "no such folder", "Check"),
        fault="models",
    ),
    Case(
        "model-typo",
        "A path that misses a folder by a letter is answered with that folder.",
        typo,
        ("my-tunde-model", "no such folder", "did you mean", "my-tuned-model"),
        fault="models",
    ),
    Case(
        "model-is-a-file",
        "The path of a weight file in the place of its folder is refused.",
        lambda folder, models: recipe(
            models, models=[entry(models.a / "model.safetensors"), entry(models.b)]
        ),
        ("model.safetensors", "folder", "Check"),
        fault="models",
    ),
    Case(
        "hub-model-offline",
        "A Hub name that cannot be reached is refused with the network and the login.",
        lambda folder, models: recipe(
            models, models=[entry("nobody-here/no-such-model"), entry(models.b)]
        ),
        ("nobody-here/no-such-model", "no such folder", "network"),
        fault="models",
    ),
    Case(
        "slice-without-base",
        "A slice whose sources lack the base is refused.",
        slices(a=ALL_LAYERS, b=ALL_LAYERS),
        ("slices[0].sources", "base_model", "llama_base", "layer_range"),
    ),
    Case(
        "slice-of-unequal-ranges",
        "A slice whose sources have unequal layer counts is refused.",
        slices(base=(0, 4), a=(0, 3), b=(0, 4)),
        ("slices[0]", "layer_range", "wanted"),
    ),
    Case(
        "slice-beyond-the-model",
        "A layer range beyond the model's layers is refused with the number it has.",
        slices(base=(0, 6), a=(0, 6), b=(0, 6)),
        ("slices[0]", "layer_range", "6", "4"),
        problems=None,
    ),
    Case(
        "slice-backwards",
        "A layer range that runs backwards is refused: it would make a model without layers.",
        slices(base=(3, 1), a=(3, 1), b=(3, 1)),
        ("slices[0]", "layer_range", "3", "1"),
        problems=None,
    ),
    Case(
        "slice-empty",
        "A layer range without layers is refused: it would make a model without blocks.",
        slices(base=(2, 2), a=(2, 2), b=(2, 2)),
        ("slices[0]", "layer_range", "2"),
        problems=None,
    ),
    Case(
        "slice-negative",
        "A layer range that starts below 0 is refused by key.",
        slices(base=(-1, 2), a=(-1, 2), b=(-1, 2)),
        ("slices[0]", "layer_range", "-1"),
        problems=None,
    ),
    Case(
        "unknown-module",
        "A module that the architecture lacks is refused with the ones it has.",
        lambda folder, models: recipe(
            models, models=DROP, modules={"decoder": {"models": [entry(models.a)]}}
        ),
        ("decoder", "modules", "default"),
    ),
    Case(
        "dtype-unknown",
        "An unknown dtype is refused with the known ones.",
        top(dtype="float17"),
        ("dtype", "'float17'", "float16", "bfloat16"),
    ),
    Case(
        "out-dtype-integer",
        "An integer out_dtype is refused.",
        top(out_dtype="int64"),
        ("out_dtype", "'int64'", "float32", "bfloat16"),
    ),
    Case(
        "out-dtype-fp8",
        "out_dtype of fp8 is refused.",
        top(out_dtype="float8_e4m3fn"),
        ("out_dtype", "'float8_e4m3fn'", "bfloat16"),
    ),
    Case(
        "tokenizer-source-missing",
        "A tokenizer source that is not there is refused by key and name.",
        lambda folder, models: recipe(models, tokenizer={"source": str(folder / "nowhere")}),
        ("tokenizer", "nowhere", "Check"),
    ),
    Case(
        "tokenizer-of-a-model-without-one",
        "tokenizer: {source: base} with a base that holds no tokenizer is refused.",
        lambda folder, models: recipe(
            models,
            base_model=str(make.llama(folder / "broken", seed=1, tokenizer=False)),
            tokenizer={"source": "base"},
        ),
        ("tokenizer", "broken", "wanted"),
        fault="models",
    ),
    Case(
        "tokenizer-corrupt",
        "tokenizer: {source: base} with a tokenizer.json that is no JSON is refused by file.",
        base(text("tokenizer.json", "{"), tokenizer={"source": "base"}),
        ("tokenizer", "broken", "again"),
        fault="models",
    ),
    Case(
        "tokenizer-padding-negative",
        "A negative padding of the vocabulary is refused by key.",
        top(tokenizer={"source": "base", "pad_to_multiple_of": -3}),
        ("tokenizer.pad_to_multiple_of", "-3", "wanted"),
    ),
    Case(
        "chat-template-unknown",
        "A chat template that is neither a known name nor a template is refused.",
        top(chat_template="chatmll"),
        ("chat_template", "'chatmll'", "chatml"),
    ),
    Case(
        "chat-template-too-short",
        "A template that mergekit would refuse behind the merge is refused before it.",
        top(chat_template="{{ broken"),
        ("chat_template", "'{{ broken'", "20 letters"),
    ),
    Case(
        "two-faults",
        "Two faults are told at once, numbered.",
        words(beta=NAN, wrap="dare"),
        ("2 problems", "1. ", "2. ", "parameters.beta", "parameters.wrap"),
        problems=2,
    ),
]

FOLDERS = [
    Case(
        "config-missing",
        "A folder without config.json is refused.",
        model(remove("config.json")),
        ("broken", "no config.json", "wanted"),
        fault="models",
    ),
    Case(
        "config-corrupt",
        "A config.json that is no JSON is refused.",
        model(text("config.json", '{"architectures": [')),
        ("broken/config.json", "cannot be read", "wanted", "JSON", "again"),
        fault="models",
    ),
    Case(
        "config-list",
        "A config.json that is a JSON list is refused.",
        model(text("config.json", "[]")),
        ("broken/config.json", "architectures", "save_pretrained"),
        fault="models",
    ),
    Case(
        "config-without-architectures",
        "A config.json that names no architectures is refused.",
        model(config(architectures=None)),
        ("broken/config.json", "architectures", "save_pretrained"),
        fault="models",
    ),
    Case(
        "config-architectures-not-a-list",
        "A config.json whose architectures is a text is refused by file and key.",
        model(config(architectures="LlamaForCausalLM")),
        ("broken/config.json", "architectures"),
        fault="models",
    ),
    Case(
        "config-with-a-wrong-value",
        "A config.json that transformers refuses is refused by file and key.",
        base(config(num_hidden_layers="four")),
        ("broken", "num_hidden_layers", "four"),
        fault="models",
    ),
    Case(
        "config-of-unknown-type",
        "A model type that transformers does not know is refused.",
        model(config(architectures=["FooForCausalLM"], model_type="foo")),
        ("broken", "foo", "transformers"),
        fault="models",
    ),
    Case(
        "quantised",
        "A quantised checkpoint is refused by its method.",
        model(config(quantization_config={"quant_method": "gptq", "bits": 4})),
        ("broken", "quantised", "gptq", "wanted", "fp16"),
        fault="models",
    ),
    Case(
        "quantised-in-an-unknown-form",
        "A quantization_config that is no object is refused all the same.",
        model(config(quantization_config=True)),
        ("broken", "quantised", "wanted"),
        fault="models",
    ),
    Case(
        "fp8",
        "fp8 weights without any word in the config are refused by tensor and dtype.",
        model(set_tensors(lambda tensor: tensor.to(torch.float8_e4m3fn), *MATRICES)),
        ("broken", "F8_E4M3", "q_proj.weight", "wanted", "bf16"),
        fault="models",
    ),
    Case(
        "empty-folder",
        "An empty folder is refused.",
        other(lambda path: path.mkdir()),
        ("broken", "no config.json", "wanted"),
        fault="models",
        problems=None,
    ),
    Case(
        "no-weights",
        "A folder without weights is refused.",
        model(remove("model.safetensors")),
        ("broken", "no model.safetensors", "wanted"),
        fault="models",
    ),
    Case(
        "weights-truncated",
        "A truncated weight file is refused.",
        model(truncate),
        ("broken/model.safetensors", "not a whole", "again"),
        fault="models",
    ),
    Case(
        "weights-header-corrupt",
        "A weight file with a corrupt header is refused.",
        model(break_header),
        ("broken/model.safetensors", "not a whole", "again"),
        fault="models",
    ),
    Case(
        "weights-empty",
        "An empty weight file is refused.",
        model(text("model.safetensors", "")),
        ("broken/model.safetensors", "not a whole", "again"),
        fault="models",
    ),
    Case(
        "weights-are-an-lfs-pointer",
        "A Git LFS pointer in the place of the weights is refused.",
        model(
            text(
                "model.safetensors",
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n",
            )
        ),
        ("broken/model.safetensors", "not a whole", "again"),
        fault="models",
    ),
    Case(
        "pickle-corrupt",
        "A pickled checkpoint that is no archive is refused.",
        model(pickled_garbage),
        ("broken", "pytorch_model.bin", "again"),
        fault="models",
    ),
    Case(
        "shard-missing",
        "A missing shard is refused by name.",
        sharded(lambda path: shards(path)[1].unlink()),
        ("broken", "model-00002-of-", "not there", "Download"),
        fault="models",
    ),
    Case(
        "shard-truncated",
        "A truncated shard is refused by name.",
        sharded(truncate),
        ("broken/model-00005-of-00005.safetensors", "not a whole", "again"),
        fault="models",
    ),
    Case(
        "index-corrupt",
        "An index that is no JSON is refused.",
        sharded(text(INDEX, '{"weight_map": ')),
        (INDEX, "cannot be read", "wanted", "weight_map", "again"),
        fault="models",
    ),
    Case(
        "index-without-map",
        "An index without a weight_map is refused.",
        sharded(text(INDEX, "{}")),
        (INDEX, "wanted", "weight_map", "again"),
        fault="models",
    ),
    Case(
        "index-empty-map",
        "An index whose weight_map is empty is refused.",
        sharded(text(INDEX, '{"weight_map": {}}')),
        ("broken",),
        fault="models",
    ),
    Case(
        "index-names-absent-files",
        "An index that names files of another sharding is refused.",
        sharded(
            edit_index(
                lambda index: index["weight_map"].update(
                    dict.fromkeys(index["weight_map"], "model-00001-of-00099.safetensors")
                )
            )
        ),
        ("broken", "model-00001-of-00099.safetensors", "not there", "Download"),
        fault="models",
    ),
    Case(
        "index-points-outside",
        "An index that points outside its folder is refused.",
        sharded(edit_index(lambda index: index["weight_map"].update({UP: "../x.safetensors"}))),
        (INDEX, "../x.safetensors", "wanted", "outside"),
        fault="models",
    ),
    Case(
        "index-names-an-absent-tensor",
        "An index that names a tensor no shard holds is refused.",
        sharded(
            edit_index(
                lambda index: index["weight_map"].update(
                    {"model.extra.weight": "model-00001-of-00005.safetensors"}
                )
            )
        ),
        (INDEX, "model.extra.weight", "no shard holds", "again"),
        fault="models",
    ),
    Case(
        "two-forms-of-weights",
        "A folder with both model.safetensors and an index is refused.",
        sharded(lone_shard_beside_index),
        ("broken", "both", "model.safetensors", INDEX, "Remove"),
        fault="models",
    ),
    Case(
        "adapter-without-config",
        "An adapter without adapter_config.json is refused.",
        with_adapter(remove("adapter_config.json")),
        ("broken", "no adapter_config.json", "wanted", "PEFT"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-config-corrupt",
        "An adapter whose config is no JSON is refused.",
        with_adapter(text("adapter_config.json", "{")),
        ("broken", "adapter_config.json", "again"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-without-weights",
        "An adapter without weights is refused.",
        with_adapter(remove("adapter_model.safetensors")),
        ("broken", "no adapter_model.safetensors", "whole"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-truncated",
        "An adapter with truncated weights is refused.",
        with_adapter(truncate),
        ("broken", "adapter_model.safetensors", "again"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-of-another-model",
        "An adapter trained on a model of another width is refused.",
        foreign_adapter,
        ("broken", "llama_base", "adapter", "shape"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-folder-absent",
        "An adapter folder that is not there is refused.",
        lambda folder, models: recipe(
            models, models=[entry(f"{models.base}+{folder / 'absent'}"), entry(models.b)]
        ),
        ("absent", "no such folder", "Check"),
        flags=("--lora-merge-cache", "cache"),
        fault="models",
    ),
    Case(
        "adapter-as-model",
        "An adapter's folder given as a model is answered with BASE+ADAPTER.",
        lambda folder, models: recipe(models, models=[entry(models.adapter), entry(models.b)]),
        ("adapter", "no config.json", "BASE+"),
        fault="models",
    ),
]

FITTING = [
    Case(
        "tensor-missing-in-a-model",
        "A tensor that one model lacks is refused by model and name.",
        model(without(UP)),
        ("broken", "lacks", UP),
        fault="models",
    ),
    Case(
        "tensor-missing-in-the-base",
        "A tensor that the base lacks is refused by name.",
        base(without(UP)),
        ("broken", "lacks", UP),
        fault="models",
    ),
    Case(
        "tensor-of-the-base-without-a-place",
        "A tensor of the base that the output has no place for is refused, not lost.",
        base(with_tensor("model.layers.1.extra.weight")),
        ("broken", "model.layers.1.extra.weight", "lost"),
        fault="models",
    ),
    Case(
        "shapes-differ",
        "A model of another width is refused with both shapes.",
        other(lambda path: make.llama(path, hidden=64, seed=2)),
        ("broken", "shapes", "(128, 32)", "(128, 64)"),
        fault="models",
    ),
    Case(
        "one-shape-differs",
        "One tensor of another shape is refused by name with both shapes.",
        model(set_tensors(lambda tensor: tensor[:-1].clone(), UP)),
        ("broken", "shapes", UP, "(64, 32)", "(63, 32)"),
        fault="models",
    ),
    Case(
        "fewer-layers",
        "A model with fewer layers than the base is refused.",
        other(lambda path: make.llama(path, layers=3, seed=2)),
        ("broken", "layers", "4", "3"),
        fault="models",
    ),
    Case(
        "more-layers",
        "A model with more layers than the base is refused: its last ones would be dropped.",
        other(lambda path: make.llama(path, layers=5, seed=2)),
        ("broken", "layers", "4", "5"),
        fault="models",
    ),
    Case(
        "vocabulary-sizes",
        "A larger vocabulary is refused with both sizes and the tokenizer key.",
        model(zero_rows(130)),
        ("broken", "vocabulary", "128", "130", "tokenizer"),
        fault="models",
    ),
    Case(
        "vocabulary-smaller",
        "A smaller vocabulary is refused with both sizes and the tokenizer key.",
        model(zero_rows(120)),
        ("broken", "vocabulary", "128", "120", "tokenizer"),
        fault="models",
    ),
    Case(
        "architectures-differ",
        "Models of two architectures are refused.",
        other(lambda path: make.gpt2(path, seed=2)),
        ("broken", "GPT2LMHeadModel", "LlamaForCausalLM", "wanted"),
        fault="models",
    ),
    Case(
        "vit-in-part",
        "A ViT that lacks a tensor is refused by its name, and its architecture is not blamed.",
        vit_without("vit.encoder.layer.0.output.dense.weight"),
        ("tuned", "lacks", "vit.encoder.layer.0.output.dense.weight", "whole"),
        fault="models",
    ),
    Case(
        "kinds-differ",
        "Integers where the other models hold floats are refused by tensor.",
        model(to_integers),
        ("broken", "I32", UP, "wanted"),
        fault="models",
    ),
    Case(
        "integers-everywhere",
        "Integer weights in all models are refused: a task vector of integers is rounded away.",
        integers_everywhere,
        ("int32", UP, "wanted"),
        fault="models",
    ),
]

WEIGHTS = [
    Case(
        "nan-in-the-base",
        "NaN in the base is refused by tensor and model.",
        base(set_entry(UP, NAN)),
        (UP, "broken", "NaN", "wanted", "allow_nonfinite"),
        fault="weights",
    ),
    Case(
        "nan-in-a-model",
        "NaN in a fine-tuned model is refused by tensor and model.",
        model(set_entry(HEAD, NAN)),
        (HEAD, "broken", "NaN", "wanted", "allow_nonfinite"),
        fault="weights",
    ),
    Case(
        "infinity-in-a-model",
        "Infinity in a fine-tuned model is refused by tensor and model.",
        model(set_entry(UP, -INF)),
        (UP, "broken", "infinity", "wanted", "allow_nonfinite"),
        fault="weights",
    ),
    Case(
        "nan-under-auto",
        "NaN is found while alpha: auto is calibrated, too.",
        model(set_entry(UP, NAN), parameters={"wrap": "ties", "beta": 0.3}),
        (UP, "broken", "NaN", "allow_nonfinite"),
        fault="weights",
    ),
    Case(
        "models-equal-to-the-base",
        "alpha: auto with models that equal the base is refused: Eq. 2 divides zero by zero.",
        alike,
        ("alpha", "auto", "zero", "base_model", "give alpha"),
        fault="weights",
    ),
    Case(
        "token-without-a-source",
        "A token of the recipe for which no embedding can be told is refused.",
        top(tokenizer={"source": "base", "tokens": {"w3": {"force": True}}}),
        ("tokenizer.tokens", "w3", "source"),
        fault="weights",
    ),
    Case(
        "token-that-the-base-lacks",
        "A token that mergekit cannot add to the base's vocabulary is refused with the remedy.",
        top(tokenizer={"source": "base", "tokens": {"<new>": {"source": {"kind": "zero"}}}}),
        ("tokenizer.tokens", "<new>", "source: union"),
        fault="weights",
    ),
    Case(
        "weights-summing-to-zero",
        "Weights that sum to zero under wrap: linear are refused, not written as NaN.",
        lambda folder, models: recipe(
            models,
            models=[entry(models.a, weight=1), entry(models.b, weight=-1)],
            parameters={"wrap": "linear", "alpha": 0.3, "beta": 0.3},
        ),
        ("linear", "weight", "sum to zero"),
        fault="weights",
    ),
    Case(
        "overflow-of-fp16",
        "A result beyond fp16 is refused with another out_dtype.",
        lambda folder, models: recipe(
            models, dtype="float16", parameters={"alpha": 1e8, "beta": 0.3}
        ),
        ("tensor", "float16", "out_dtype", "bfloat16"),
        fault="weights",
    ),
]

FLAGS = [
    Case(
        "flag-pickle",
        "--no-safe-serialization is refused.",
        top(),
        ("--no-safe-serialization", "safetensors", "Drop the flag"),
        flags=("--no-safe-serialization",),
        fault="flags",
    ),
    Case(
        "flag-truncate",
        "--unsafe-truncate-embeddings is refused with the tokenizer key.",
        top(),
        ("--unsafe-truncate-embeddings", "Drop the flag", "tokenizer"),
        flags=("--unsafe-truncate-embeddings",),
        fault="flags",
    ),
    Case(
        "flag-shard-size-zero",
        "A shard size of 0 is refused.",
        top(),
        ("--out-shard-size", "0", "wanted", "5B"),
        flags=("--out-shard-size", "0"),
        fault="flags",
    ),
    Case(
        "flag-device-unknown",
        "A device that torch does not know is refused.",
        top(),
        ("--device", "gpu", "wanted", "cuda"),
        flags=("--device", "gpu"),
        fault="flags",
    ),
    Case(
        "flag-lora-dtype-unknown",
        "An unknown --lora-merge-dtype is refused.",
        with_adapter(lambda path: None),
        ("--lora-merge-dtype", "float17", "wanted", "float16"),
        flags=("--lora-merge-cache", "cache", "--lora-merge-dtype", "float17"),
        fault="flags",
    ),
    Case(
        "flag-lora-cache-is-a-file",
        "--lora-merge-cache that is a file is refused by the flag's name.",
        adapter_cache_is_a_file,
        ("--lora-merge-cache", "cache"),
        flags=("--lora-merge-cache", "cache"),
        fault="flags",
    ),
    Case(
        "flag-device-absent",
        "A device that this torch was not built for is refused.",
        top(),
        ("--device", "xla", "Drop the flag"),
        flags=("--device", "xla"),
        fault="flags",
    ),
    Case(
        "flag-device-meta",
        "The device `meta`, on which nothing is computed, is refused.",
        top(),
        ("--device", "meta", "wanted"),
        flags=("--device", "meta"),
        fault="flags",
    ),
    *(
        []
        if torch.cuda.is_available()
        else [
            Case(
                "flag-cuda-without-cuda",
                "--cuda where torch sees no CUDA device is refused.",
                top(),
                ("--cuda", "CUDA", "Drop the flag", "CPU"),
                flags=("--cuda",),
                fault="flags",
            )
        ]
    ),
]

OUT = [
    Case(
        "out-is-a-file",
        "OUT that is a file is refused and stays.",
        holding("out"),
        ("OUT", "out", "found a file", "wanted a folder"),
        fault="out",
    ),
    Case(
        "out-below-a-file",
        "OUT whose parent is a file is refused.",
        holding("file"),
        ("OUT", "file", "not a folder", "another OUT"),
        fault="out",
        out="file/out",
    ),
    Case(
        "out-holds-a-model",
        "OUT that holds a model is refused and stays.",
        out_holds("b"),
        ("OUT", "out", "model.safetensors", "another OUT"),
        fault="out",
    ),
    Case(
        "out-holds-an-index",
        "OUT that holds the index of an old model is refused and stays.",
        out_holds(file=INDEX),
        ("OUT", "out", INDEX, "another OUT"),
        fault="out",
    ),
    Case(
        "out-holds-a-tokenizer",
        "OUT that holds an old tokenizer is refused: the merge would overwrite it.",
        out_holds(file="tokenizer.json"),
        ("OUT", "out", "tokenizer.json", "another OUT"),
        fault="out",
    ),
    Case(
        "out-is-an-input",
        "OUT that is one of the models is refused and stays.",
        out_is_an_input,
        ("OUT", "out", "model", "another OUT"),
        fault="out",
    ),
    Case(
        "out-is-a-dead-link",
        "OUT that is a link to nowhere is refused and stays.",
        dead_link,
        ("OUT", "out", "link", "another OUT"),
        fault="out",
    ),
    Case(
        "out-is-a-link-to-itself",
        "OUT that is a link to itself is refused and stays.",
        link_to_itself,
        ("OUT", "out", "link", "another OUT"),
        fault="out",
    ),
    Case(
        "out-name-too-long",
        "OUT whose name no file system takes is refused.",
        top(),
        ("OUT", "File name too long", "another OUT"),
        fault="out",
        out=300 * "x",
    ),
    Case(
        "out-below-new-folders",
        "The folders made for OUT go again when the merge is refused.",
        base(set_entry(UP, NAN)),
        (UP, "NaN"),
        fault="weights",
        out="new/folder/out",
    ),
    Case(
        "out-in-use",
        "OUT that another merge is writing is refused, and that merge's lock stays.",
        top(),
        ("OUT", "out", "another merge", "Wait"),
        fault="out",
        during=another_merge,
    ),
    Case(
        "out-partial-of-somebody-else",
        "A folder of somebody else's in the place of the partial folder is refused and stays.",
        holding(".out.partial/notes.txt"),
        (".out.partial", "in the way", "Remove or rename"),
        fault="out",
    ),
]

CASES: tuple[Case, ...] = (
    *KEYS,
    *NUMBERS,
    *WORDS,
    *WRAPS,
    *POSTPROCESS,
    *STRUCTURE,
    *FOLDERS,
    *FITTING,
    *WEIGHTS,
    *FLAGS,
    *OUT,
)
BY_ID: Mapping[str, Case] = {case.id: case for case in CASES}
