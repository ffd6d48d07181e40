"""``mergekit-lines merge``: recipes of mergekit's own methods, and of ours, by our kernels.

The oracle of a method is mergekit's own at ``dtype: float32``; of methods that draw, its law.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from mergekit.merge_methods import registered_methods
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.scripts.run_yaml import main as mergekit_yaml

from mergekit_lines.cli import main
from mergekit_lines.host.names import MERGED, OF_MERGEKIT
from tests import models
from tests.e2e.runner import in_process, recipe_text, run
from tests.e2e.torture import Torturer, output_digest, partial_of

BOUND = 1e-6  # of max|tensor|
# What a recipe may say of each method that draws nothing; a weight has no default in mergekit.
EXACT: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"weight": 0.7, "lambda": 0.9, "normalize": True},
    "ties": {"weight": 0.7, "density": 0.4, "int8_mask": True, "lambda": 1.2},
    "breadcrumbs": {"weight": 0.5, "density": 0.8, "gamma": 0.05, "rescale": True},
    "breadcrumbs_ties": {"weight": 0.5, "density": 0.8, "normalize": True},
}
DRAWN = {"dare_linear", "dare_ties", "della", "della_linear"}


def recipe(method: str, base: Path, *tuned: Path, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": model} for model in tuned],
        "parameters": parameters,
        "dtype": "float32",
    }


def attempt(document: dict[str, Any], out: Path, *flags: str) -> Result:
    """Call the command in this process, on a recipe beside OUT."""
    path = out.with_name("recipe.yml")
    path.write_text(recipe_text(document), encoding="utf-8")
    return CliRunner().invoke(main, ["merge", str(path), str(out), *flags])


def merged(document: dict[str, Any], out: Path, *flags: str) -> models.Tensors:
    done = attempt(document, out, *flags)
    assert done.exit_code == 0, done.output
    return models.read(out)


def refusal(document: dict[str, Any], out: Path, *flags: str) -> str:
    """Return what is wrong; nothing but the recipe is left."""
    done = attempt(document, out, *flags)
    assert done.exit_code == 1, done.output
    assert not out.exists() and not partial_of(out).exists()
    return done.stderr.partition("Error: [lines] ")[2].strip()


def assert_mergekits(document: dict[str, Any], folder: Path, **options: Any) -> None:
    """Hold the merge against mergekit's own of the same recipe."""
    got = merged(document, folder / "ours")
    want = models.read(in_process(document, folder / "stock", **options))
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert models.max_error_ratio(got[name], tensor) <= BOUND, name


def check(out: Path) -> None:
    """Verify every tensor by its formula, not by the method's own code."""
    done = CliRunner().invoke(main, ["verify", str(out), "--all", "--json"])
    assert done.exit_code == 0, done.output
    assert not [note for note in json.loads(done.stdout)["notes"] if "own method" in note]


def test_every_method_of_the_family_is_merged() -> None:
    """What is merged of mergekit's is its whole family of task arithmetic, and each is tested."""
    family = {
        method.spec.name
        for method in registered_methods()
        if type(method) is GeneralizedTaskArithmeticMerge
    }
    assert set(OF_MERGEKIT) == family == set(EXACT) | DRAWN


# --- the same merge ------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT)
def test_equals_mergekit(
    method: str, llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """At float32 the command gives what mergekit's method gives, and verify confirms it."""
    assert_mergekits(recipe(method, llama_base, llama_a, llama_b, **EXACT[method]), tmp_path)
    check(tmp_path / "ours")


def source(model: Path, first: int = 0, last: int = 4, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, last], "parameters": parameters}


def entry(model: Path, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "parameters": parameters}


BY_MLP = [{"filter": "mlp", "value": [0.2, 0.9]}, {"value": 0.3}]
PLACES: dict[str, Callable[[Path, Path, Path], tuple[str, dict[str, Any]]]] = {
    "gradients and filters of models, the base among them": lambda base, a, b: (
        "ties",
        {
            "models": [
                {"model": base},
                entry(a, density=[1, 0.5, 0.2], weight=[0.1, 1]),
                entry(b, density=0.5, weight=BY_MLP),
            ],
            "parameters": {"lambda": [0.5, 1.5]},
        },
    ),
    "slices of a frankenmerge": lambda base, a, b: (
        "task_arithmetic",
        {
            "slices": [
                {
                    "sources": [
                        source(base, 0, 3),
                        source(a, 0, 3, weight=0.3),
                        source(b, 0, 3),
                    ],
                    "parameters": {"weight": 0.8, "lambda": [0.1, 0.9]},
                },
                {
                    "sources": [source(base, 1), source(a, 1, weight=[1, 0]), source(b, 1)],
                    "parameters": {"weight": 0.4},
                },
            ]
        },
    ),
    "modules": lambda base, a, b: (
        "breadcrumbs",
        {
            "modules": {
                "default": {
                    "models": [entry(a, weight=[0.1, 0.7], density=0.9), entry(b)],
                    "parameters": {"weight": 0.5, "gamma": 0.02},
                }
            },
            "parameters": {"density": 0.7},
        },
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_parameters_are_found_where_mergekit_finds_them(
    place: str, llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """Gradients, filters, slices and modules mean what they mean to mergekit."""
    method, changes = PLACES[place](llama_base, llama_a, llama_b)
    document = recipe(method, llama_base) | changes
    if "models" not in changes:
        del document["models"]
    assert_mergekits(document, tmp_path)
    check(tmp_path / "ours")


def test_adapters_over_their_base(
    llama_base: Path, llama_a: Path, adapter: Path, tmp_path: Path
) -> None:
    """BASE+ADAPTER is what peft makes of it, without a copy on the disk."""
    document = recipe("ties", llama_base, llama_a, weight=0.7, density=0.5)
    document["models"].append({"model": f"{llama_base}+{adapter}"})
    assert_mergekits(document, tmp_path, lora_merge_cache=str(tmp_path / "cache"))


def test_vocabularies_are_aligned(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """``tokenizer: {source: union}`` gives mergekit's embeddings, whatever their order."""
    from transformers import AutoTokenizer

    longer = models.llama(tmp_path / "longer", seed=5, vocab=129, tokens=("alpha",))
    document = recipe("task_arithmetic", llama_base, llama_a, longer, weight=0.4)
    document["tokenizer"] = {"source": "union"}
    got = merged(document, tmp_path / "ours")
    want = models.read(in_process(document, tmp_path / "stock"))
    places = [
        AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("ours", "stock")
    ]
    tokens = sorted(places[0])
    assert tokens == sorted(places[1]) and "alpha" in tokens
    for name, tensor in want.items():
        one, two = got[name], tensor
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            one, two = (
                whole[[place[token] for token in tokens]]
                for whole, place in zip((one, two), places, strict=True)
            )
        assert models.max_error_ratio(one, two) <= BOUND, name


@pytest.mark.parametrize("method", sorted(DRAWN))
def test_draws_are_mergekits_in_law(
    method: str, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """Of one model the kept share is mergekit's, and the mean over seeds its task vector.

    The large tensors have 4,096 entries; five seeds of two leave a standard error of about 0.0025.
    """
    document = recipe(method, llama_base, llama_a, weight=1.0, density=0.5)
    names = ["lm_head.weight", "model.embed_tokens.weight"]
    zero, one = models.read(llama_base), models.read(llama_a)
    share: dict[str, list[float]] = {"ours": [], "stock": []}
    mean: dict[str, list[float]] = {"ours": [], "stock": []}
    for seed in range(5):
        outs = {
            "ours": merged(document, tmp_path / f"ours{seed}", "--random-seed", str(seed)),
            "stock": models.read(in_process(document, tmp_path / f"stock{seed}", random_seed=seed)),
        }
        for kind, out in outs.items():
            for name in names:
                vector, whole = out[name] - zero[name], one[name] - zero[name]
                share[kind].append(float((vector != 0).double().mean()))
                mean[kind].append(float((vector * whole).sum() / (whole * whole).sum()))
    for values in (share, mean):
        ours, stock = (torch.tensor(values[kind]) for kind in ("ours", "stock"))
        assert float((ours.mean() - stock.mean()).abs()) < 0.02
    assert float(torch.tensor(share["ours"]).mean()) == pytest.approx(0.5, abs=0.02)


def test_draws_hang_on_the_seed_alone(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """One seed gives the same bytes with one thread and two; another seed others."""
    document = recipe("dare_ties", llama_base, llama_a, llama_b, weight=0.5, density=0.5)
    words = {"one": ("7", "-j", "1"), "two": ("7", "--num-threads", "2"), "other": ("8",)}
    digests = {}
    for name, flags in words.items():
        merged(document, tmp_path / name, "--random-seed", *flags)
        digests[name] = models.weights_digest(tmp_path / name)
    assert digests["one"] == digests["two"] != digests["other"]
    check(tmp_path / "one")


def test_is_lines_with_a_coefficient_of_one(
    llama_bf16_base: Path, llama_bf16_a: Path, llama_bf16_b: Path, tmp_path: Path
) -> None:
    """α = 1 and β = 0 around the method give the same bytes, in bf16 too."""
    words = {"weight": 0.7, "density": 0.4}
    alone = recipe("ties", llama_bf16_base, llama_bf16_a, llama_bf16_b, **words)
    around = {**alone, "merge_method": "lines"}
    around["parameters"] = {**words, "wrap": "ties", "alpha": 1, "beta": 0}
    for name, document in {"alone": alone, "around": around}.items():
        merged(document | {"dtype": "bfloat16"}, tmp_path / name)
    assert models.weights_digest(tmp_path / "alone") == models.weights_digest(tmp_path / "around")


@pytest.mark.parametrize("method", ["lines", "lines_postprocess", "consensus_ta"])
def test_our_own_recipes_as_the_stock_command(
    method: str, llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """Recipes of ours give every file that ``mergekit-yaml`` gives, to the byte."""
    words: dict[str, Any] = {"lines": {"beta": 0.5}, "lines_postprocess": {"gamma": 0.3}}
    tuned = (llama_a,) if method == "lines_postprocess" else (llama_a, llama_b)
    document = recipe(method, llama_base, *tuned, **words.get(method, {}))
    for place in ("ours", "stock"):
        (tmp_path / place).mkdir()
    merged(document, tmp_path / "ours" / "out", "--out-shard-size", "50K")
    in_process(document, tmp_path / "stock" / "out", out_shard_size=50_000)
    assert output_digest(tmp_path / "ours" / "out") == output_digest(tmp_path / "stock" / "out")


# --- what is told ----------------------------------------------------------------------------


def test_all_texts_tell_the_users_recipe(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """Real command: report, card, recipe, inspect and verify speak of ties, and not of depth."""
    document = recipe("ties", llama_base, llama_a, llama_b, weight=0.7, density=0.4)
    text = "# mine\n" + recipe_text(document)
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    done = run(["mergekit-lines", "merge", "recipe.yml", "out"], tmp_path).succeeded()
    assert "[lines] ties: 39 tensors, not scaled by depth" in done.messages
    report = json.loads((out / "lines_report.json").read_text(encoding="utf-8"))
    assert (report["merge_method"], report["wrap"], report["recipe"]) == ("ties", ["ties"], text)
    assert report["containers"] == [] and set(report["outside"].values()) == {1.0}
    assert (out / "mergekit_config.yml").read_text(encoding="utf-8") == text
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "A merge by `ties`; made with" in card and "merge_method: ties" in card
    assert "\nmergekit-lines merge recipe.yml OUT\n" in card
    assert not [word for word in ("LiNeS", "λ", "- lines\n", "block") if word in card]
    for shown in (tmp_path / "recipe.yml", out):
        shows = CliRunner().invoke(main, ["inspect", str(shown)])
        assert shows.exit_code == 0, shows.output
        assert "merge_method ties, not scaled by depth" in shows.stdout
        assert "all tensors" in shows.stdout and "outside" not in shows.stdout
    assert run(["mergekit-lines", "verify", "out", "--all"], tmp_path).succeeded()
    again = run(["mergekit-lines", "merge", "recipe.yml", "out"], tmp_path)
    assert again.returncode == 1
    assert "OUT" in again.last_line and "already holds a model" in again.last_line


def test_inspect_says_what_the_merge_takes(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """The plan of ``inspect``: every tensor once, bytes read and written, and the memory."""
    path = tmp_path / "recipe.yml"
    document = recipe("dare_ties", llama_base, llama_a, llama_b, weight=0.7, density=0.4)
    path.write_text(recipe_text(document), encoding="utf-8")
    done = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert done.exit_code == 0, done.output
    (shown,) = json.loads(done.stdout)["documents"]
    tensors = models.read(llama_base)
    size = sum(tensor.numel() * 4 for tensor in tensors.values())
    assert {one["name"] for one in shown["outside"]} == set(tensors)
    assert {one["coefficient"]["value"] for one in shown["outside"]} == {1.0}
    assert (shown["totals"]["output"], shown["totals"]["read"]) == (size, 3 * size)
    assert shown["totals"]["memory"]["tensor"] > 0 and shown["containers"] == []


def test_quiet_says_nothing(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """``--quiet`` leaves nothing to read, of a merge that is to be unscaled."""
    done = attempt(recipe("ties", llama_base, llama_a, weight=1.0), tmp_path / "out", "--quiet")
    assert done.exit_code == 0 and "[lines]" not in done.output


def test_flags_are_mergekits() -> None:
    """The command has every flag of ``mergekit-yaml``, as it spells them, and two of its own."""

    def flags(command: Any) -> dict[str, Any]:
        options = [one for one in command.params if one.param_type_name == "option"]
        return {one.name: {*one.opts, *one.secondary_opts} for one in options}

    ours = main.get_command(None, "merge")  # type: ignore[arg-type]
    own = {"workers": {"--workers"}, "ray_address": {"--ray-address"}}
    assert flags(ours) == {**flags(mergekit_yaml), **own}
    on = {one.name for one in mergekit_yaml.params if one.default is True}
    assert {one.name for one in ours.params if one.default is True} == on  # type: ignore[union-attr]


# --- refused ---------------------------------------------------------------------------------


ELSEWHERE = (
    "nobody declares this name. It belongs to merge_method: lines; write that, with this merge as "
    "its wrap."
)
WORDS: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": (
        {"wieght": 1},
        "parameters.wieght: nobody declares this name. Did you mean 'weight'?",
    ),
    "boolean": ({"weight": True}, "parameters.weight: found True"),
    "share": ({"density": 3}, "parameters.density: found 3, wanted a share from 0 to 1."),
    "depth": (
        {"beta": 0.5},
        f"parameters.beta: {ELSEWHERE}",
    ),
    "trim": (
        {"trim": "model"},
        f"parameters.trim: {ELSEWHERE}",
    ),
    "by depth": (
        {"weight": "0.1, 0.9"},
        "parameters.weight: found '0.1, 0.9', wanted a finite number.",
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_bad_words(name: str, llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """A word is refused with its place, what was found, what is wanted and what to do."""
    words, sentence = WORDS[name]
    document = recipe("ties", llama_base, llama_a, **{"weight": 1.0, **words})
    said = refusal(document, tmp_path / "out")
    assert said.startswith(sentence) and len(said.splitlines()) == 1


def test_a_weight_has_no_default(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """Where mergekit asks for a weight so does the merge, by the model that lacks it."""
    document = recipe("ties", llama_base, llama_a, llama_b)
    assert refusal(document, tmp_path / "out") == (
        "parameters.weight: found nothing, wanted a value: ties has no default for it. Add weight "
        "under parameters."
    )
    document["models"][0]["parameters"] = {"weight": 0.5}
    assert refusal(document, tmp_path / "out") == (
        "models[1].parameters.weight: found nothing, wanted a value: ties has no default for it. "
        "Add weight here, or under the recipe's own parameters."
    )


def test_a_weight_that_some_tensors_lack(
    llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """What a filter leaves without a weight is told by model, and by tensor."""
    document = recipe("ties", llama_base)
    only = [{"filter": "layers", "value": 0.3}]
    sources = [source(llama_base), source(llama_a, weight=1), source(llama_b, weight=only)]
    del document["models"]
    said = refusal(document | {"slices": [{"sources": sources}]}, tmp_path / "out")
    assert said.startswith(f"ties: Missing required parameter weight for {llama_b} (")
    assert "lm_head.weight" in said and said.endswith("). Give one under parameters.")


def test_keys_of_the_recipe_are_checked(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """A key that mergekit would not read is refused, and so is a recipe without a base."""
    document = recipe("ties", llama_base, llama_a, weight=1.0)
    said = refusal(document | {"out_dtpye": "float16"}, tmp_path / "out")
    assert said == "out_dtpye: nobody declares this key. Did you mean 'out_dtype'?"
    del document["base_model"]
    assert "base_model: found nothing, wanted the pre-trained model: ties merges the change" in (
        refusal(document, tmp_path / "out")
    )


@pytest.mark.parametrize("method", ["linear", "slerp", "passthrough", "model_stock"])
def test_other_methods_are_mergekits(
    method: str, llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """A method without a kernel of ours ends in one sentence, with the command that merges it."""
    said = refusal(recipe(method, llama_base, llama_a), tmp_path / "out")
    assert said == (
        f"{tmp_path / 'recipe.yml'}: merge_method: found '{method}', for which this package has no "
        f"kernel, wanted one of {', '.join(MERGED)}; mergekit's own command merges it: "
        f"mergekit-yaml {tmp_path / 'recipe.yml'} OUT."
    )


def test_files_that_are_no_merge_of_one_recipe(
    llama_base: Path, llama_a: Path, tmp_path: Path
) -> None:
    """Unknown methods, mixtures of experts and several documents are told from a merge."""
    document = recipe("tise", llama_base, llama_a)
    assert "merge_method: found 'tise', which nobody has registered. Did you mean 'ties'?" in (
        refusal(document, tmp_path / "out")
    )
    path = tmp_path / "recipe.yml"
    several = "---\n".join(
        recipe_text({"name": name, **recipe("ties", llama_base, llama_a)}) for name in "xy"
    )
    for text, word in {
        "base_model: x\nexperts: []\n": f"mergekit-moe {path} OUT",
        several: "found 2 recipes, wanted one. mergekit-multi merges files of several",
        "- 1": "wanted a recipe",
    }.items():
        path.write_text(text, encoding="utf-8")
        done = CliRunner().invoke(main, ["merge", str(path), str(tmp_path / "out")])
        assert done.exit_code == 1 and word in done.stderr
    usage = CliRunner().invoke(main, ["merge", str(tmp_path / "none.yml"), "out"])
    assert usage.exit_code == 2


# --- interrupted -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_a_killed_merge_goes_on(
    method: str, torturer: Torturer, llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path
) -> None:
    """The same command goes on behind whole shards and gives the bytes of one that was not."""
    document = recipe(method, llama_base, llama_a, llama_b, weight=0.7, density=0.4)
    (tmp_path / "recipe.yml").write_text(recipe_text(document), encoding="utf-8")
    flags = ("--out-shard-size", "20K", "--random-seed", "3")
    command = ("mergekit-lines", "merge")
    dies = [("die", 6, "after", "rename")]
    ended = torturer.merge(tmp_path, *flags, hooks=dies, command=command)
    assert ended.returncode == -signal.SIGKILL
    kept = len(list(partial_of(tmp_path / "out").glob("*.safetensors")))
    assert kept == 3 and not (tmp_path / "out").exists()
    other = torturer.merge(tmp_path, *flags[:2], "--random-seed", "4", command=command)
    assert "the seed differ" in other.refusal
    again = torturer.merge(tmp_path, *flags, command=command).succeeded()
    assert f"found {kept} of" in again.stderr
    torturer.merge(tmp_path, *flags, out="whole", command=command).succeeded()
    assert models.weights_digest(tmp_path / "out") == models.weights_digest(tmp_path / "whole")
    finished = torturer.merge(tmp_path, *flags, command=command)
    assert "already holds a model" in finished.refusal
    check(tmp_path / "out")


def test_the_stock_command_stays_mergekits(llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """A merge of ties by ours, and then ``mergekit-yaml`` merges it by mergekit's own code."""
    document = recipe("ties", llama_base, llama_a, weight=1.0)
    merged(document, tmp_path / "ours")
    in_process(document, tmp_path / "stock")
    assert (tmp_path / "ours" / "lines_report.json").exists()
    assert not (tmp_path / "stock" / "lines_report.json").exists()
