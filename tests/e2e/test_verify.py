"""``mergekit-lines verify`` and ``inspect OUT``: what is right passes, what is not is found."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from mergekit_lines.cli import main
from tests import models
from tests.e2e.runner import in_process

KERNELS = (
    *("task_arithmetic", "ties", "dare_linear", "dare_ties"),
    *("breadcrumbs", "breadcrumbs_ties", "della", "della_linear"),
)
HEAD = "lm_head.weight"
UP = "model.layers.2.mlp.up_proj.weight"


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def verify(out: Path, *flags: object) -> dict[str, Any]:
    """Verify, all tensors unless flags say otherwise, and return the JSON; it has to be right."""
    done = command("verify", out, "--json", *(flags or ("--all",)))
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def recipe(base: Path, *tuned: Path | str, **parameters: Any) -> dict[str, Any]:
    parameters = {"wrap": "task_arithmetic", "alpha": 0.4, "beta": 0.5, **parameters}
    top = {key: parameters.pop(key) for key in ("dtype", "out_dtype") if key in parameters}
    return {
        "merge_method": "lines",
        "base_model": base,
        "models": [{"model": model} for model in tuned],
        "parameters": parameters,
        **top,
    }


@pytest.fixture(scope="module")
def three(llama_bf16_base: Path, checkpoints: Path) -> list[Path]:
    """The base and three models of it, of their own: tests move and change them as copies."""
    made = [
        models.finetuned(llama_bf16_base, checkpoints / f"verify_{seed}", seed=seed, scale=0.05)
        for seed in (11, 12, 13)
    ]
    return [llama_bf16_base, *made]


@pytest.fixture(scope="module")
def merged(three: Sequence[Path], checkpoints: Path) -> Path:
    """A merge that tests copy before they damage it."""
    given = recipe(*three, wrap="ties", density=0.4)
    return in_process(given, checkpoints / "verify_merged", out_shard_size=60_000)


@pytest.fixture
def damaged(merged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged, tmp_path / "out"))


@pytest.mark.parametrize("out_dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("wrap", KERNELS)
def test_kernels_are_right(
    wrap: str, out_dtype: str, three: Sequence[Path], tmp_path: Path
) -> None:
    """Every tensor of every method agrees with the formulas in float64."""
    density = {} if wrap == "task_arithmetic" else {"density": 0.4}
    given = recipe(*three, wrap=wrap, out_dtype=out_dtype, rescale=True, weight=0.7, **density)
    out = in_process(given, tmp_path / "out")
    found = verify(out)
    assert len(found["tensors"]) == found["of"] == 39
    assert {one["dtype"] for one in found["tensors"]} == {out_dtype}
    entries = sum(one["entries"] for one in found["tensors"])
    assert entries == sum(tensor.numel() for tensor in models.read(out).values())
    if out_dtype == "bfloat16":
        assert sum(one["off"] for one in found["tensors"]) <= entries / 10_000
    drawn = any("same generator" in note for note in found["notes"])
    assert drawn == wrap.startswith(("dare", "della"))


def test_an_edit_of_one_model_is_right(three: Sequence[Path], tmp_path: Path) -> None:
    given = {
        "merge_method": "lines_postprocess",
        "base_model": three[0],
        "models": [{"model": three[1]}],
        "parameters": {"gamma": 0.3},
    }
    verify(in_process(given, tmp_path / "out"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrap", ["task_arithmetic", "ties", "della"])
def test_adapters_are_right(
    wrap: str, dtype: str, llama_base: Path, llama_a: Path, adapter: Path, tmp_path: Path
) -> None:
    """LoRA and DoRA, also where the recipe rounds them to bf16 first."""
    dora = models.lora(llama_base, tmp_path / "dora", seed=6, dora=True, targets=("up_proj",))
    density = {} if wrap == "task_arithmetic" else {"density": 0.5}
    given = recipe(
        *(llama_base, f"{llama_base}+{adapter}", llama_a, f"{llama_base}+{dora}"),
        **{"wrap": wrap, "dtype": dtype, **density},
    )
    found = verify(in_process(given, tmp_path / "out"))
    assert any("adapters are added in float64" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("wrap", "number", "words"),
    [("slerp", 1, {"t": 0.4}), ("sce", 3, {"select_topk": 0.5}), ("model_stock", 3, {})],
)
def test_methods_without_a_kernel_are_right(
    wrap: str, number: int, words: dict[str, Any], three: Sequence[Path], tmp_path: Path
) -> None:
    """They are recomputed by the method's own code, and the verdict says so."""
    given = recipe(*three[: number + 1], wrap=wrap, **words)
    out = in_process(given, tmp_path / "out")
    found = verify(out)
    assert any(
        note.startswith(f"{wrap}: recomputed by the method's own code") for note in found["notes"]
    )
    turn(out, UP, 700)
    assert wrong(out) == {UP: 1}


def test_aligned_vocabularies_and_auto_alpha_are_right(llama_base: Path, tmp_path: Path) -> None:
    wide = models.llama(tmp_path / "wide", vocab=132, tokens=("x", "y"))
    given = {**recipe(llama_base, wide, wrap="ties", density=0.5), "tokenizer": {"source": "union"}}
    given["parameters"]["alpha"] = "auto"
    found = verify(in_process(given, tmp_path / "out"))
    assert any("aligned by mergekit itself" in note for note in found["notes"])


# --- what is wrong is found ---------------------------------------------------------------


def shard_of(out: Path, name: str) -> tuple[Path, int, int]:
    """Return the shard that holds a tensor, and the tensor's first and last byte in it."""
    for path in sorted(out.glob("*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        if name in header:
            first, last = header[name]["data_offsets"]
            return path, 8 + length + first, 8 + length + last
    raise AssertionError(name)


def turn(out: Path, name: str, entry: int, bit: int = 1) -> None:
    """Turn bits of one bf16 entry in its place, as a bad disk would."""
    path, first, _ = shard_of(out, name)
    data = bytearray(path.read_bytes())
    data[first + 2 * entry] ^= bit
    path.write_bytes(data)


def wrong(out: Path, *flags: object) -> dict[str, int]:
    """Return the number of wrong entries by tensor, of a model that has some."""
    done = command("verify", out, "--json", *(flags or ("--all",)))
    assert done.exit_code == 1, done.output
    assert "not what recipe and inputs give" in done.stderr
    tensors = json.loads(done.stdout)["tensors"]
    return {one["tensor"]: one["wrong"] for one in tensors if not one["right"]}


def refused(*words: object) -> str:
    done = command("verify", *words)
    assert done.exit_code == 1, done.output
    assert not done.stdout
    return done.stderr


def edit(out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = out / "lines_report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    change(report)
    path.write_text(json.dumps(report), encoding="utf-8")
    return out


def test_one_turned_bit_is_found(damaged: Path) -> None:
    """The lowest bit of one entry of one tensor."""
    turn(damaged, UP, 700)
    assert wrong(damaged) == {UP: 1}
    done = command("verify", damaged, "--strict")
    assert f"{UP}: 1 of 2,048 entries are wrong; entry 700 is " in done.stdout
    assert "38 of 39 tensors right (39 in all)" in done.stdout


def test_swapped_tensors_are_found(damaged: Path) -> None:
    """Two tensors of the same shape, each in the other's place."""
    pair = (UP, UP.replace("up_proj", "gate_proj"))
    held = [shard_of(damaged, name) for name in pair]
    data = [path.read_bytes()[first:last] for path, first, last in held]
    for (path, first, last), other in zip(held, reversed(data), strict=True):
        whole = path.read_bytes()
        path.write_bytes(whole[:first] + other + whole[last:])
    assert set(wrong(damaged)) == set(pair)


def test_shards_are_those_of_the_merge(damaged: Path) -> None:
    shards = sorted(damaged.glob("*.safetensors"))
    data = shards[1].read_bytes()
    shards[1].write_bytes(data[:-100])
    assert f"{shards[1].name} has {len(data) - 100:,} bytes, by the report {len(data):,}" in (
        refused(damaged)
    )
    shards[1].write_bytes(data[:8] + data[8:].replace(b'"BF16"', b'"F16" ', 1))
    assert f"{shards[1].name} has another header" in refused(damaged)
    shards[1].unlink()
    assert f"{shards[1].name} is not there" in refused(damaged)
    shards[1].write_bytes(data)
    shutil.copy(shards[1], damaged / "another.safetensors")
    assert "another.safetensors beside the shards of the merge" in refused(damaged)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.update(recipe=r["recipe"].replace("beta: 0.5", "beta: 0.6")), "coefficient"),
        (lambda r: r["alpha"].update(value=0.25), None),
        (lambda r: r["alpha"].update(value="much"), "found no alpha as the merge writes"),
        (lambda r: r["outside"].update({HEAD: 0.5}), "the coefficient of lm_head.weight"),
        (lambda r: r["containers"][0]["coefficients"].pop(), "not those of its recipe"),
        (lambda r: r.update(wrap=["dare_ties"]), "wrap"),
        (lambda r: r.update(recipe="- no\n- recipe"), "its recipe cannot be read"),
        (lambda r: r.update(recipe=r["recipe"].replace("density", "destiny")), "destiny"),
        (lambda r: r["inputs"].clear(), "its inputs lack"),
        (lambda r: r.pop("inputs"), "says nothing of files and inputs"),
        (lambda r: r["output"].pop("shards"), "found no output as the merge writes"),
        (lambda r: r["output"]["shards"].update({"../x": {"bytes": 1}}), "found no output"),
        (lambda r: r.update(format=9), "found format 9, wanted 1"),
        (lambda r: r.pop("seed"), "found no seed"),
    ],
)
def test_edited_reports_are_found(
    change: Callable[[dict[str, Any]], object], says: str | None, damaged: Path
) -> None:
    edit(damaged, change)
    if says is None:  # α stands in the recipe: nothing hangs on the report's
        assert command("verify", damaged, "--sample", 1).exit_code == 0
    else:
        assert says in refused(damaged)


def test_the_alpha_of_auto_is_held_against_the_tensors(
    three: Sequence[Path], tmp_path: Path
) -> None:
    """A report whose α and coefficients were all edited alike still lies about the tensors."""
    out = in_process(recipe(*three, wrap="ties", alpha="auto", density=0.5), tmp_path / "out")
    verify(out, "--sample", 5)

    def more(report: dict[str, Any]) -> None:
        report["alpha"]["value"] += 0.01
        blocks = report["containers"][0]
        blocks["coefficients"] = [
            report["alpha"]["value"] + 0.5 * number / 3 for number in range(4)
        ]
        report["outside"] = dict.fromkeys(report["outside"], report["alpha"]["value"])

    edit(out, more)
    assert len(wrong(out)) > 20


def test_changed_inputs_are_found(three: Sequence[Path], tmp_path: Path) -> None:
    """Another header or size by itself, other values by what they give, a lost model by name."""
    tuned = Path(shutil.copytree(three[1], tmp_path / "tuned"))
    out = in_process(recipe(three[0], tuned, three[2]), tmp_path / "out")
    verify(out)
    kept = (tuned / "model.safetensors").read_bytes()

    def noise(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][3, 5] += 1

    models.rewrite(tuned, noise)
    assert wrong(out) == {UP: 1}
    models.rewrite(tuned, lambda tensors: tensors.update(more=torch.zeros(3)))
    text = refused(out)
    assert f"model {tuned}: not what was merged: model.safetensors has " in text
    (tuned / "model.safetensors").unlink()
    assert str(tuned) in refused(out)
    (tuned / "model.safetensors").write_bytes(kept)
    moved = tuned.rename(tmp_path / "elsewhere")
    assert str(tuned) in refused(out)
    verify(out, "--all", "--model", f"{tuned}={moved}")
    assert "the recipe has no such model" in refused(out, "--model", f"nobody={moved}")
    assert command("verify", out, "--model", "nobody").exit_code == 2


def test_a_changed_adapter_is_found(llama_base: Path, adapter: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(adapter, tmp_path / "own"))
    out = in_process(recipe(llama_base, f"{llama_base}+{own}"), tmp_path / "out")
    found = json.loads((out / "lines_report.json").read_text())["inputs"]
    (files,) = [entry["adapter"]["files"] for entry in found.values() if "adapter" in entry]
    weights = own / "adapter_model.safetensors"
    assert files[weights.name] == {
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert "adapter_model.safetensors has another content than by the report" in refused(out)


@pytest.mark.parametrize(
    ("place", "name", "make"),
    [
        # One more entry stays, the sign of a sum of zero, a scale that is a little off.
        ("mergekit_lines.kernels.sparsity", "Sparsity.ranks", "more"),
        ("mergekit_lines.kernels.consensus", "_vote", "minus"),
        ("mergekit_lines.engine.pieces", "add_scaled", "scale"),
    ],
)
def test_a_wrong_kernel_is_found(
    place: str,
    name: str,
    make: str,
    three: Sequence[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The formulas are not the kernels' own: what is spoilt there shows."""
    import importlib

    holder: Any = importlib.import_module(place)
    for part in name.split(".")[:-1]:
        holder = getattr(holder, part)
    last = name.rpartition(".")[2]
    right = getattr(holder, last)

    def more(self: Any, size: int) -> Any:
        drop, keep = right(self, size)
        return drop, keep + 1

    spoilt = {
        "more": more,
        "minus": lambda *given, **words: -right(*given, **words),
        "scale": lambda base, task, coefficient: right(base, task, coefficient * 1.01),
    }
    monkeypatch.setattr(holder, last, spoilt[make])
    out = in_process(recipe(*three, wrap="ties", density=0.4), tmp_path / "out")
    monkeypatch.undo()
    assert wrong(out)


# --- flips --------------------------------------------------------------------------------


def compared(stored: list[float], base: list[float], *tuned: list[float], density: float) -> Any:
    """Compare what ties of these fp32 models stored at λ = 1."""
    from mergekit_lines.engine.workers import Workers
    from mergekit_lines.verify.comparison import Restated, compare
    from mergekit_lines.verify.exact import Exact
    from mergekit_lines.verify.parameters import Parameters

    count = len(tuned)
    parameters = Parameters(
        method="ties",
        weights=[1.0] * count,
        densities=[density] * count,
        gammas=[0.0] * count,
        epsilons=[0.0] * count,
        rescale=False,
        normalize=True,
        scale=1.0,
        coefficient=1.0,
    )
    entries = [Exact(torch.tensor(values)) for values in (base, *tuned)]
    task = Restated("t", 0, parameters, entries[0], entries[1:], torch.float32)
    return compare(task, torch.tensor(stored), Workers(1))


def test_threshold_flips_are_counted_apart() -> None:
    """1 − 2e-9 and 1 − 1e-9 are both 1 in fp32, where the first of equals stays."""
    base, tuned = [2e-9, 1e-9], [1.0, 1.0]
    right = compared([2e-9, 1.0], base, tuned, density=0.5)
    assert (right.wrong, right.threshold_flips) == (0, 0)
    found = compared([1.0, 1e-9], base, tuned, density=0.5)
    assert (found.wrong, found.threshold_flips, found.sign_flips) == (0, 2, 0)
    assert compared([1.0, 1e-9], [0.0, 0.0], [0.9, 1.0], density=0.5).wrong == 2


def test_sign_flips_are_counted_apart() -> None:
    """1 − 1e-9 and −1 − 1e-9 cancel in fp32, and a sum of zero elects plus."""
    given = ([1e-9], [1.0], [-1.0])
    assert compared([-1.0], *given, density=1.0).sign_flips == 0
    found = compared([1.0], *given, density=1.0)
    assert (found.wrong, found.threshold_flips, found.sign_flips) == (0, 0, 1)
    assert compared([1.0], [0.0], [1.0], [-1.5], density=1.0).wrong == 1


def test_equal_magnitudes_are_no_flips() -> None:
    """Which of equals stay is a rule, and another choice is wrong."""
    base, tuned = [0.0] * 4, [1.0, -1.0, 1.0, 0.5]
    assert compared([1.0, -1.0, 0.0, 0.0], base, tuned, density=0.5).wrong == 0
    assert compared([0.0, -1.0, 1.0, 0.0], base, tuned, density=0.5).wrong == 2


# --- the command --------------------------------------------------------------------------


def test_the_sample_holds_both_ends_and_hangs_on_its_seed(merged: Path) -> None:
    def names(*flags: object) -> list[str]:
        return [one["tensor"] for one in verify(merged, *flags)["tensors"]]

    first = names("--sample", 8)
    assert len(first) == 8 and first == names("--sample", 8)
    for start in ("model.layers.0.", "model.layers.3."):
        assert any(name.startswith(start) for name in first)
    outside = {HEAD, "model.embed_tokens.weight", "model.norm.weight"}
    assert outside <= set(first)
    assert names("--sample", 8, "--seed", 1) != first
    assert len(names("--sample", 99)) == 39


def test_inputs_that_are_not_finite_are_left_out(three: Sequence[Path], tmp_path: Path) -> None:
    tuned = Path(shutil.copytree(three[1], tmp_path / "tuned"))

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][0, 0] = float("nan")

    models.rewrite(tuned, spoil)
    given = recipe(three[0], tuned, allow_nonfinite=True)
    found = verify(in_process(given, tmp_path / "out"))
    assert found["skipped"] == [UP]
    assert len(found["tensors"]) == 38


def test_the_table_and_the_verdict(merged: Path) -> None:
    done = command("verify", merged)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[1].split()[:3] == ["tensor", "dtype", "entries"]
    assert lines[-1].startswith("20 of 20 tensors right (39 in all): ")
    assert lines[-1].endswith(" 0 wrong, 0 threshold flips and 0 sign flips apart")


def test_usage(merged: Path, tmp_path: Path) -> None:
    assert command("verify").exit_code == 2
    assert command("verify", tmp_path / "nothing").exit_code == 2
    assert command("verify", merged, "--sample", 0).exit_code == 2
    assert "found no lines_report.json, wanted the OUT of a merge" in refused(tmp_path)
    (tmp_path / "lines_report.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in refused(tmp_path)


# --- the report ---------------------------------------------------------------------------


def test_the_report_holds_digests_and_figures(
    three: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests as hashlib has them, and no path of this machine where the recipe has none."""
    for number, model in enumerate(three):
        (tmp_path / f"m{number}").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    given = recipe(Path("m0"), Path("m1"), Path("m2"))
    begun = time.monotonic()
    out = in_process(given, "out", out_shard_size=60_000, num_threads=1)
    took = time.monotonic() - begun
    text = (out / "lines_report.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert str(three[0].parent) not in text
    report = json.loads(text)
    assert list(report["inputs"]) == ["m0", "m1", "m2"]
    data = Path("m1/model.safetensors").read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    assert report["inputs"]["m1"] == {
        "files": {
            "model.safetensors": {
                "bytes": len(data),
                "header_sha256": hashlib.sha256(header).hexdigest(),
            }
        }
    }
    shards = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    assert report["output"]["tensors"] == 39
    assert report["output"]["bytes"] == sum(map(len, shards.values()))
    for name, content in shards.items():
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        assert report["output"]["shards"][name] == {
            "bytes": len(content),
            "header_sha256": hashlib.sha256(header).hexdigest(),
        }
    run = report["run"]
    weights = sum(t.numel() * t.element_size() for t in models.read(out).values())
    assert run["bytes_read"] == 3 * weights
    assert run["bytes_written"] == report["output"]["bytes"]
    assert 0 < run["seconds"] <= took + 0.1  # rounded
    assert run["peak_rss"] > 10**8
    assert (run["threads"], run["device"], run["resumed"]) == (1, "cpu", False)


def test_models_of_the_hub_have_commit_and_content(tmp_path: Path) -> None:
    """The cache's folder has the commit's name, and its links lead to digests."""
    from mergekit.common import ModelReference
    from mergekit.io import LazyTensorLoader, ShardedTensorIndex
    from mergekit.io.tasks import LoaderCache

    from mergekit_lines.report.fingerprints import changed_files, describe_inputs

    commit, data = "0123456789" * 4, b"\x02\0\0\0\0\0\0\0{}"
    digest = hashlib.sha256(data).hexdigest()
    folder = tmp_path / "models--a--b" / "snapshots" / commit
    (tmp_path / "models--a--b" / "blobs").mkdir(parents=True)
    folder.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs" / digest).write_bytes(data)
    (folder / "model.safetensors").symlink_to(f"../../blobs/{digest}")
    model = ModelReference.model_validate("a/b")
    index = ShardedTensorIndex(
        base_path=str(folder),
        is_safetensors=True,
        tensor_paths={"t": "model.safetensors"},
        shards=[],
    )
    LoaderCache().loaders[model] = LazyTensorLoader(index)
    try:
        found = describe_inputs([model])
    finally:
        LoaderCache().loaders.clear()
    facts = {
        "bytes": 10,
        "header_sha256": hashlib.sha256(b"{}").hexdigest(),
        "sha256": digest,
    }
    assert found == {"a/b": {"revision": commit, "files": {"model.safetensors": facts}}}
    files = {"model.safetensors": facts}
    assert not changed_files(folder, files, contents=True)
    files["model.safetensors"] = {**facts, "sha256": "0" * 64}
    assert not changed_files(folder, files)
    assert changed_files(folder, files, contents=True) == [
        "model.safetensors has another content than by the report"
    ]


def test_inspect_shows_the_report(merged: Path, tmp_path: Path) -> None:
    done = command("inspect", merged)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[1] == "merge_method lines around ties, seed 0"
    assert lines[2] == "α = 0.4: the recipe"
    blocks = [line.split() for line in lines if line.split()[:1] in (["1"], ["2"], ["3"], ["4"])]
    assert blocks == [["1", "0.4"], ["2", "0.5667"], ["3", "0.7333"], ["4", "0.9"]]
    assert ["model.norm.weight", "0.4"] in [line.split() for line in lines]
    assert any(line.startswith("output   39 tensors, ") for line in lines)
    assert any(line.startswith("run      ") and "on cpu" in line for line in lines)
    shown = command("inspect", merged, "--json")
    assert json.loads(shown.stdout) == json.loads((merged / "lines_report.json").read_text())
    none = command("inspect", tmp_path)
    assert none.exit_code == 1
    assert "found no lines_report.json" in none.stderr
    assert command("inspect", merged, "--plot", "a.png").exit_code == 2
