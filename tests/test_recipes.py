"""Every ready recipe is what its two comment lines say: read, planned and run on tiny models.

The numbers of :data:`TABLE` are written by hand from the paper (arXiv 2410.17146) and from the
recipes' own words; merged task vectors are formed again in float64. For TIES the merge itself is
mergekit's own at float32, for those by singular vectors numpy's; for DARE, whose draws are ours
alone, it is the same recipe with all coefficients 1, and Eq. 2 is computed from either.
"""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mergekit.merge
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
import yaml
from mergekit.architecture import get_architecture_info
from mergekit.architecture.auto import infer_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods import registered_methods
from mergekit.options import MergeOptions

from mergekit_lines.checkpoint.writer import ShardWriter
from mergekit_lines.engine.engine import Engine
from mergekit_lines.lines.summary import Summary
from mergekit_lines.plan.opening import open_models
from mergekit_lines.plan.planned import MergeRun, planning
from mergekit_lines.plan.planner import LinesPlanner
from tests import models, singular
from tests.e2e import runner
from tests.flattened import consensus

RECIPES = Path(__file__).parent.parent / "recipes"
FILES = sorted(path.name for path in RECIPES.glob("*.yml"))
TOWER = "vlm-language-tower.yml"  # of two architectures: tests/plan/test_renames.py runs it
BLOCKS = 4  # of the tiny LLaMA, and of the tiny T5's decoder (its encoder has 3)
SINGULAR: dict[Any, Callable[..., Any]] = {
    "cart": partial(singular.cart, rank=0.08),
    "tsv_m": partial(singular.tsv_m, rank=None),
    "iso_cts": partial(singular.iso_cts, rank=0.8),
}
TIES_DENSITY = 0.2  # k = 20% of arXiv 2306.01708
BLOCK = re.compile(r"(?:model\.layers|decoder\.block)\.(\d+)\.")

Places = Mapping[str, str]
Change = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Expected:
    """What a recipe must come to.

    With ``eq2`` the three coefficients are what comes on top of α of Eq. 2.
    """

    first: float
    last: float
    outside: float
    merged: Callable[[list[torch.Tensor]], torch.Tensor] | str
    """The merged task vector from the models' task vectors, or how it is made otherwise."""
    models: tuple[str, ...] = ("math", "code", "chat")
    wrap: str | None = None
    eq2: bool = False
    container: str = "model.layers"
    by_block: tuple[float, ...] = ()
    """Where they are no straight line: the coefficients of all blocks."""
    weights: tuple[tuple[float, ...], ...] = ()
    """Where they hang on depth: of each model those of all blocks, then the one outside."""

    def weighted(self, name: str, taus: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return a tensor's task vectors times the weights that their models have there."""
        block = BLOCK.match(name)
        place = BLOCKS if block is None else int(block[1])
        weights = [own[place] for own in self.weights] or [1.0] * len(taus)
        return [weight * tau for weight, tau in zip(weights, taus, strict=True)]

    def coefficient(self, name: str, alpha: float = 0.0) -> float:
        """Return λ of a tensor by Eq. 1; the name alone tells the block."""
        block = BLOCK.match(name)
        if block is None:
            return alpha + self.outside
        if self.by_block:
            return self.by_block[int(block[1])]
        return alpha + self.first + (self.last - self.first) * int(block[1]) / (BLOCKS - 1)


def mean(taus: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(taus).mean(0)


def total(taus: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(taus).sum(0)


def agreed(taus: list[torch.Tensor]) -> torch.Tensor:
    """TALL masks at 0.4, of which two have to be set (arXiv 2405.07813)."""
    flat = np.stack([tau.reshape(-1).numpy() for tau in taus])
    return torch.from_numpy(consensus(flat, [0.4] * len(taus), 2)).view(taus[0].shape)


TABLE = {
    # gamma 0.5: from γ to 1.
    "one-model.yml": Expected(0.5, 1.0, 0.5, total, ("math",)),
    "lora.yml": Expected(0.5, 1.0, 0.5, total, ("adapter",)),
    # alpha = beta = 0.5 on 0.5 τ.
    "wise-ft.yml": Expected(0.5, 1.0, 0.5, lambda t: 0.5 * t[0], ("math",), "task_arithmetic"),
    # Three models: alpha is 1/3; beta 0.3.
    "task-arithmetic.yml": Expected(1 / 3, 1 / 3 + 0.3, 1 / 3, total, wrap="task_arithmetic"),
    "ties.yml": Expected(0.0, 1.4, 0.0, "ties", wrap="ties", eq2=True),
    "dare-linear.yml": Expected(0.0, 0.3, 0.0, "dare", wrap="dare_linear", eq2=True),
    "dare-ties.yml": Expected(0.0, 0.3, 0.0, "dare", wrap="dare_ties", eq2=True),
    "uniform-soup.yml": Expected(1.0, 1.5, 1.0, mean, wrap="linear"),
    "rewarded-soup.yml": Expected(
        1.0, 2.0, 1.0, lambda t: 0.6 * t[0] + 0.4 * t[1], ("math", "code"), "task_arithmetic"
    ),
    # Outside is 1: the encoder stays fine-tuned.
    "t5-one-model.yml": Expected(0.5, 1.0, 1.0, total, ("t5_qasc",), container="decoder.block"),
    # Outside is 1/3: the encoder gets the mean.
    "t5-task-arithmetic.yml": Expected(
        1 / 3,
        1 / 3 + 0.3,
        1 / 3,
        total,
        ("t5_qasc", "t5_quartz", "t5_paws"),
        "task_arithmetic",
        container="decoder.block",
    ),
    "merge-then-lines.yml": Expected(0.5, 1.0, 0.5, "ties", ("math", "code")),
    "per-block.yml": Expected(
        *(0.1, 0.6, 0.2, total, ("math", "code"), "task_arithmetic"),
        by_block=(0.1, 0.15, 0.35, 0.6),
    ),
    "per-model.yml": Expected(
        *(1.0, 1.0, 1.0, total, ("math", "code"), "task_arithmetic"),
        weights=((0.3, 0.25, 0.45, 0.7, 0.2), (0.1, 0.4, 0.4, 0.35, 0.2)),
    ),
    "consensus.yml": Expected(0.21, 1.11, 0.21, agreed, wrap="consensus_ta"),
    **{
        file: Expected(1.0, 1.0, 1.0, rule, wrap=rule)
        for file, rule in {"cart.yml": "cart", "tsv-m.yml": "tsv_m", "iso.yml": "iso_cts"}.items()
    },
    "quickstart.yml": Expected(0.5, 1.0, 0.5, total, ("math", "code"), "task_arithmetic"),
}

# What the recipes call their models -> which tiny checkpoint stands for it.
NAMES = {
    "meta-llama/Llama-2-7b-hf": "llama",
    "meta-llama/Llama-2-7b-hf+./adapter": "llama+adapter",
    "./llama-2-7b-sft": "llama",
    "./llama-2-7b-reward-1": "math",
    "./llama-2-7b-reward-2": "code",
    "./fine-tuned": "math",
    "./math": "math",
    "./code": "code",
    "./chat": "chat",
    "./run-1": "math",
    "./run-2": "code",
    "./run-3": "chat",
    "./base": "llama",
    "./cheerful": "math",
    "./formal": "code",
    "google/t5-large-lm-adapt": "t5",
    "./qasc": "t5_qasc",
    "./quartz": "t5_quartz",
    "./paws": "t5_paws",
}


def tuned(base: Path, path: Path, seed: int) -> Path:
    """Copy a checkpoint with 1% Gaussian noise on every tensor, another one for every seed."""
    shutil.copytree(base, path)

    def move(tensors: models.Tensors) -> None:
        for name, tensor in tensors.items():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            noise = torch.randn(tensor.shape, generator=generator)
            tensors[name] = tensor + 0.01 * tensor.std() * noise

    return models.rewrite(path, move)


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, llama_base: Path, adapter: Path
) -> dict[str, Path]:
    """The tiny checkpoints by their names in this file; another file imports this fixture too."""
    here = tmp_path_factory.mktemp("for_recipes")
    t5 = models.t5(here / "t5", seed=1, decoder_layers=BLOCKS)
    llamas, t5s = ("math", "code", "chat"), ("t5_qasc", "t5_quartz", "t5_paws")
    return {
        "llama": llama_base,
        "adapter": adapter,
        "t5": t5,
        **{name: tuned(llama_base, here / name, seed) for seed, name in enumerate(llamas)},
        **{name: tuned(t5, here / name, seed) for seed, name in enumerate(t5s)},
    }


@pytest.fixture
def places(folders: dict[str, Path], file: str) -> Places:
    """What stands in the place of a recipe's model names."""
    result = {
        name: "+".join(str(folders[part]) for part in tiny.split("+"))
        for name, tiny in NAMES.items()
    }
    if file.startswith("t5-"):
        result["./fine-tuned"] = str(folders["t5_qasc"])
    return result


def documents(file: str) -> list[dict[str, Any]]:
    """Return a recipe file's documents as they are."""
    return list(yaml.safe_load_all((RECIPES / file).read_text(encoding="utf-8")))


def edited(document: Mapping[str, Any], places: Places) -> dict[str, Any]:
    """Return a document with only its model names edited."""
    result = copy.deepcopy(dict(document))
    result["base_model"] = places[result["base_model"]]
    for entry in result["models"]:
        entry["model"] = places[entry["model"]]
    return result


def as_written(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with the dtypes it has."""
    return dict(document)


def in_float32(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document that reads and writes fp32."""
    return {**{k: v for k, v in document.items() if k != "out_dtype"}, "dtype": "float32"}


def summary(document: Mapping[str, Any], scratch: Path) -> Summary:
    """Plan a document with our planner and return what it found; no model is written."""
    LoaderCache().loaders.clear()
    infer_architecture_info.cache_clear()
    config = MergeConfiguration.model_validate({k: v for k, v in document.items() if k != "name"})
    options = MergeOptions(quiet=True, lora_merge_cache=str(scratch))
    LoaderCache().setup(options=options)
    arch_info = get_architecture_info(config, options)
    out_config = mergekit.merge._model_out_config(config, arch_info, False)
    try:
        with ExitStack() as stack:
            opened = open_models(config, options, scratch, stack)
            engine = Engine(opened, ShardWriter(scratch, []), options)
            stack.enter_context(planning(replace(MergeRun.of(config, options), engine=engine)))
            planner = LinesPlanner(config, arch_info, options, out_config)
            assert planner.planned()
            planner.finish()
    finally:
        LoaderCache().flush_all()
        LoaderCache().loaders.clear()
    assert planner.summary is not None
    return planner.summary


def float64(folder: Path) -> models.Tensors:
    return {name: tensor.double() for name, tensor in models.read(folder).items()}


def adapted(base: models.Tensors, adapter: Path) -> models.Tensors:
    """Return W_0 + (alpha / r) B A (the paper's C.8.4) from the adapter's own file."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    weights = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    result = dict(base)
    for name, down in weights.items():
        if ".lora_A." in name:
            up = weights[name.replace(".lora_A.", ".lora_B.")].double()
            target = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
            result[target] = base[target] + config["lora_alpha"] / config["r"] * up @ down.double()
    return result


@dataclass(frozen=True)
class Oracle:
    """A recipe's base, summed and merged task vectors, and α of Eq. 2, in float64."""

    base: models.Tensors
    tau_sum: models.Tensors
    tau_mtl: models.Tensors
    alpha: float

    def result(self, expected: Expected, name: str) -> torch.Tensor:
        """Return θ_0 + λ(ℓ)·τ_MTL for one tensor."""
        return self.base[name] + expected.coefficient(name, self.alpha) * self.tau_mtl[name]


def oracle(
    expected: Expected,
    document: Mapping[str, Any],
    folders: Mapping[str, Path],
    work: Path,
) -> Oracle:
    """Form the task vectors of a document (edited) again, in float64."""
    base = float64(folders["t5" if expected.container == "decoder.block" else "llama"])
    tuned = [
        adapted(base, folders[name]) if name == "adapter" else float64(folders[name])
        for name in expected.models
    ]
    taus = {name: [model[name] - base[name] for model in tuned] for name in base}
    tau_sum = {name: total(tau) for name, tau in taus.items()}
    if expected.merged in SINGULAR:
        paths = [folders[name] for name in expected.models]
        rule = SINGULAR[expected.merged]
        tau_mtl = singular.merged(folders["llama"], paths, rule, scale=1.0, averaged=1.0)
    elif callable(expected.merged):
        rows = {name: expected.weighted(name, tau) for name, tau in taus.items()}
        tau_mtl = {name: expected.merged(row) for name, row in rows.items()}
    else:
        merge = in_float32(document)
        merge.pop("name", None)
        if expected.merged == "ties":
            merge["merge_method"] = "ties"
            merge["parameters"] = {"weight": 1.0, "density": TIES_DENSITY}
        else:
            merge["parameters"] = {**merge["parameters"], "alpha": 1, "beta": 0}
        runner.in_process(merge, work / "merged", write_model_card=False)
        merged = float64(work / "merged")
        tau_mtl = {name: merged[name] - base[name] for name in base}
    alpha = 0.0
    if expected.eq2:
        l1 = [math.fsum(t.abs().sum().item() for t in tau.values()) for tau in (tau_sum, tau_mtl)]
        alpha = l1[0] / l1[1] / len(expected.models)
    return Oracle(base, tau_sum, tau_mtl, alpha)


def check_output(out: Path, expected: Expected, truth: Oracle, document: Mapping[str, Any]) -> None:
    """Check every tensor of a merged model by the formula, and that transformers loads it.

    The output's dtype is the document's. bf16 keeps 8 bits; ``dtype`` rounds every input too.
    """
    dtype = getattr(torch, document.get("out_dtype", document.get("dtype")))
    tolerance = 1e-6 if dtype == torch.float32 else 2**-6 if "dtype" in document else 2**-8
    got = models.read(out)
    assert set(got) == set(truth.base)
    for name, tensor in got.items():
        assert tensor.dtype == dtype, name
        assert models.max_error_ratio(tensor, truth.result(expected, name)) <= tolerance, name
    (model_class,) = json.loads((out / "config.json").read_text(encoding="utf-8"))["architectures"]
    model, info = getattr(transformers, model_class).from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded = model.state_dict()
    ends = ("q_proj.weight", "SelfAttention.q.weight")
    (name,) = (n for n in got if n.startswith(f"{expected.container}.2.") and n.endswith(ends))
    assert torch.equal(loaded[name], got[name])


def test_every_recipe_has_an_entry() -> None:
    """Every file in recipes/ is in the table of this test, and nothing else is."""
    assert FILES == sorted([*TABLE, TOWER])


@pytest.mark.parametrize("file", FILES)
def test_begins_with_two_comment_lines(file: str) -> None:
    """A recipe starts with one line on when to use it, one on what to tune, then the recipe."""
    text = (RECIPES / file).read_text(encoding="utf-8")
    when, tune, recipe, *_ = text.split("\n")
    assert when.startswith("# When: ")
    assert tune.startswith("# Tune: `") or tune.startswith("# Tune: the ")
    assert not recipe.startswith("#")
    assert text.isascii() and text.endswith("\n")
    assert max(map(len, text.split("\n"))) <= 100


@pytest.mark.parametrize("file", FILES)
def test_parses(file: str) -> None:
    """Every document of a recipe is a configuration to mergekit; no name is a method's."""
    found = documents(file)
    methods = {method.spec.name for method in registered_methods()}
    for document in found:
        assert MergeConfiguration.model_validate(document).merge_method in methods
        assert document.get("name") not in methods
    assert [d["merge_method"] for d in found][-1] in ("lines", "lines_postprocess")
    assert ["name" in document for document in found] == [True] * (len(found) - 1) + [False]


@pytest.mark.parametrize("file", TABLE)
def test_plans_the_written_coefficients(
    file: str, places: Places, folders: dict[str, Path], tmp_path: Path
) -> None:
    """With only its models edited, a recipe gives first, last and outside their coefficients."""
    expected = TABLE[file]
    *before, document = documents(file)
    # In a plan any checkpoint may stand for the merge that would come before.
    stand_ins = {step["name"]: str(folders["math"]) for step in before}
    document = edited(document, {**places, **stand_ins})
    alpha = 0.0
    if expected.eq2:
        alpha = oracle(expected, document, folders, tmp_path).alpha
        assert 0.2 < alpha < 1.0
    found = summary(in_float32(document) if expected.eq2 else document, tmp_path / "adapters")
    assert found.wraps == ((expected.wrap,) if expected.wrap else ())
    assert list(found.containers) == [expected.container]
    blocks = found.containers[expected.container]
    assert len(blocks) == BLOCKS and all(len(values) == 1 for values in blocks)
    assert blocks[0][0] == pytest.approx(alpha + expected.first, rel=1e-6)
    assert blocks[-1][0] == pytest.approx(alpha + expected.last, rel=1e-6)
    (outside,) = set(found.outside.values())
    assert outside == pytest.approx(alpha + expected.outside, rel=1e-6)
    ends = {"lm_head.weight", "shared.weight" if "t5" in file else "model.embed_tokens.weight"}
    assert ends <= set(found.outside)


@pytest.mark.parametrize("change", [as_written, in_float32])
@pytest.mark.parametrize("file", [name for name in TABLE if len(documents(name)) == 1])
def test_runs(
    file: str, change: Change, places: Places, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Run in this process, a recipe of one document writes what the formula gives in float64."""
    expected = TABLE[file]
    document = change(edited(documents(file)[0], places))
    out = runner.in_process(document, tmp_path / "out")
    check_output(out, expected, oracle(expected, document, folders, tmp_path), document)


@pytest.mark.parametrize("file", [name for name in TABLE if len(documents(name)) > 1])
def test_runs_with_mergekit_multi(
    file: str,
    places: Places,
    folders: dict[str, Path],
    server: runner.ForkServer,
    tmp_path: Path,
) -> None:
    """Run by mergekit-multi, a recipe of several documents writes what the formula gives."""
    expected = TABLE[file]
    steps = documents(file)
    names = {step["name"]: step["name"] for step in steps[:-1]}
    steps = [in_float32(edited(step, {**places, **names})) for step in steps]
    out = tmp_path / "out"
    places_of = {"cwd": tmp_path, "intermediate": tmp_path / "steps"}
    runner.mergekit_multi(steps, out, **places_of, server=server).succeeded()
    check_output(out, expected, oracle(expected, steps[0], folders, tmp_path), steps[-1])


@pytest.mark.parametrize("file", ["dare-linear.yml", "dare-ties.yml"])
def test_dare_drops_the_share_the_recipe_says(
    file: str, places: Places, folders: dict[str, Path], tmp_path: Path
) -> None:
    """With density 0.5 and three models, an eighth of the entries stay the base's."""
    document = edited(documents(file)[0], places)
    truth = oracle(TABLE[file], document, folders, tmp_path)
    changed = torch.cat([tau.flatten() != 0 for tau in truth.tau_mtl.values()])
    deviation = math.sqrt(0.125 * 0.875 / len(changed))
    # A change below half an fp32 step of the base is lost too: a few entries in 10^5.
    assert 1 - changed.double().mean().item() == pytest.approx(0.125, abs=5 * deviation + 1e-4)


@pytest.mark.parametrize("file", ["wise-ft.yml"])
def test_wise_ft_in_one_step_equals_edit_then_interpolate(
    file: str, places: Places, tmp_path: Path
) -> None:
    """The recipe equals the paper's two steps: LiNeS with 0.5 and 0.5, then mergekit's linear."""
    one_step = in_float32(edited(documents(file)[0], places))
    c = one_step["models"][0]["parameters"]["weight"]
    edit = {
        "merge_method": "lines_postprocess",
        "base_model": one_step["base_model"],
        "models": [{"model": one_step["models"][0]["model"]}],
        "parameters": {"alpha": 0.5, "beta": 0.5},
        "dtype": "float32",
    }
    interpolate = {
        "merge_method": "linear",
        "models": [
            {"model": one_step["base_model"], "parameters": {"weight": 1 - c}},
            {"model": str(tmp_path / "edited"), "parameters": {"weight": c}},
        ],
        "dtype": "float32",
    }
    runner.in_process(edit, tmp_path / "edited")
    runner.in_process(interpolate, tmp_path / "two", write_model_card=False)
    one = models.read(runner.in_process(one_step, tmp_path / "one"))
    two = models.read(tmp_path / "two")
    assert set(one) == set(two)
    assert all(models.max_error_ratio(one[name], two[name]) <= 1e-6 for name in one)
