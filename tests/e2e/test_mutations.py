"""Mutated shards, indexes, adapters and recipes: refused by name, or merged right.

What is right is computed here in float64, from the mutated files as safetensors' own reader
reads them. ``LINES_MUTATIONS`` is how many are tried; some few of them say the same as before.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from tests import models
from tests.e2e.runner import recipe_text
from tests.e2e.torture import Torturer, check_left, partial_of

LOG = logging.getLogger(__name__)  # pytest -o log_cli=true --log-cli-level=INFO
MUTATIONS = int(os.environ.get("LINES_MUTATIONS", "320"))
ALPHA, BETA, LAYERS = 0.4, 0.5, 3
Header = dict[str, Any]
ODD_VALUES = (None, True, -1, 0, 3, 1e308, math.nan, "", "x", "../x", [], {}, [1, "a"], {"a": 1})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two fine-tuned models, of which one is in shards, and an adapter."""
    folder = tmp_path_factory.mktemp("sound")
    shape = {"hidden": 16, "vocab": 40, "layers": LAYERS}
    base = models.llama(folder / "base", **shape, seed=1)
    models.finetuned(base, folder / "first", seed=2)
    sharded = models.llama(folder / "origin", **shape, seed=1, max_shard_size=8_000)
    models.finetuned(sharded, folder / "second", seed=3)
    models.lora(base, folder / "adapter", seed=4)
    shutil.rmtree(sharded)
    return folder


def recipe(*names: str) -> dict[str, Any]:
    return {
        "merge_method": "lines",
        "base_model": "base",
        "models": [{"model": name} for name in names],
        "parameters": {"alpha": ALPHA, "beta": BETA},
        "dtype": "float32",
    }


# --- mutating ----------------------------------------------------------------------------


def parts(file: Path) -> tuple[Header, bytes]:
    """Return the header and the data of a safetensors file."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(file: Path, header: Header | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def some_tensor(header: Header, chance: random.Random) -> str:
    return chance.choice(sorted(name for name in header if name != "__metadata__"))


def bytes_of_header(file: Path, chance: random.Random) -> None:
    """Flip, insert or delete a byte of the header; its length stays or follows."""
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    place = 8 + chance.randrange(length)
    kind = chance.choice(["flip", "insert", "delete"])
    if kind == "flip":
        content[place] ^= 1 << chance.randrange(8)
    elif kind == "insert":
        content.insert(place, chance.randrange(256))
    else:
        del content[place]
    if chance.random() < 0.5:
        length += {"flip": 0, "insert": 1, "delete": -1}[kind]
        content[:8] = length.to_bytes(8, "little")
    file.write_bytes(content)


def header_length(file: Path, chance: random.Random) -> None:
    """Lie about the header's length."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    lies = [0, 1, 2, length - 1, length + 1, length + 8, len(content), 1 << 40, (1 << 64) - 1]
    file.write_bytes(chance.choice(lies).to_bytes(8, "little") + content[8:])


def length_of_file(file: Path, chance: random.Random) -> None:
    """Cut the file anywhere, or let something follow."""
    content = file.read_bytes()
    if chance.random() < 0.6:
        file.write_bytes(content[: chance.randrange(len(content))])
    else:
        file.write_bytes(content + bytes(chance.randrange(1, 100)))


def offsets(file: Path, chance: random.Random) -> None:
    """Swap, shift, grow, turn round or forget the place of a tensor."""
    header, data = parts(file)
    one, other = (some_tensor(header, chance) for _ in range(2))
    kind = chance.choice(["swap", "shift", "grow", "turn", "odd", "same"])
    first, last = header[one]["data_offsets"]
    if kind == "swap":
        found = header[other]["data_offsets"]
        header[one]["data_offsets"], header[other]["data_offsets"] = found, [first, last]
    elif kind == "shift":
        by = chance.choice([-8, -4, 4, 64, 1 << 33])
        header[one]["data_offsets"] = [first + by, last + by]
    elif kind == "grow":
        header[one]["data_offsets"] = [first, last + chance.choice([-4, 4])]
    elif kind == "turn":
        header[one]["data_offsets"] = [last, first]
    elif kind == "odd":
        header[one]["data_offsets"] = chance.choice([[], [first], [first, last, 1], *ODD_VALUES])
    else:
        header[one]["data_offsets"] = header[other]["data_offsets"]
    write(file, header, data)


def dtypes(file: Path, chance: random.Random) -> None:
    """Lie about a tensor's dtype, with and without the shape that would fit it."""
    header, data = parts(file)
    name = some_tensor(header, chance)
    names = ["F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "F4", "X1", "f32", None, 4]
    header[name]["dtype"] = chance.choice(names)
    sizes = {"F64": 0.5, "F16": 2, "BF16": 2, "U8": 4, "BOOL": 4, "F8_E4M3": 4}
    if chance.random() < 0.5 and header[name]["dtype"] in sizes:
        header[name]["shape"][-1] = int(header[name]["shape"][-1] * sizes[header[name]["dtype"]])
    write(file, header, data)


def shapes(file: Path, chance: random.Random) -> None:
    """Lie about a tensor's shape."""
    header, data = parts(file)
    entry = header[some_tensor(header, chance)]
    shape = entry["shape"]
    lies = [shape[::-1], [*shape, 1], [math.prod(shape)], [0], [-x for x in shape]]
    lies += [[1 << 40, 1 << 40], [shape[0] + 1, *shape[1:]], [str(x) for x in shape], *ODD_VALUES]
    entry["shape"] = chance.choice(lies)
    write(file, header, data)


def names(file: Path, chance: random.Random) -> None:
    """Let a tensor stand twice in the header, go, or have another name."""
    header, data = parts(file)
    one, other = some_tensor(header, chance), some_tensor(header, chance)
    kind = chance.choice(["twice", "lost", "renamed", "exchanged", "metadata"])
    if kind == "twice":
        text = json.dumps(header)[:-1] + f", {json.dumps(one)}: {json.dumps(header[other])}}}"
        write(file, text.encode(), data)
        return
    if kind == "lost":
        del header[one]
    elif kind == "renamed":
        header[one + "x"] = header.pop(one)
    elif kind == "exchanged":
        header[one], header[other] = header[other], header[one]
    else:
        header["__metadata__"] = chance.choice([{}, {"format": "tf"}, {"x": 1}, *ODD_VALUES])
    write(file, header, data)


def numbers(file: Path, chance: random.Random) -> None:
    """Plant NaN, infinity, or any bits, among the weights."""
    header, data = parts(file)
    changed = bytearray(data)
    place = chance.randrange(len(data) // 4) * 4
    bits = [0x7FC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1, chance.getrandbits(32)]
    changed[place : place + 4] = chance.choice(bits).to_bytes(4, "little")
    write(file, header, bytes(changed))


SHARDS = (bytes_of_header, header_length, length_of_file, offsets, dtypes, shapes, names, numbers)


def mutate_shard(folder: Path, chance: random.Random) -> Path:
    files = [folder / "base" / "model.safetensors", folder / "first" / "model.safetensors"]
    files += sorted((folder / "second").glob("*.safetensors"))
    file = chance.choice(files)
    chance.choice(SHARDS)(file, chance)
    return file


def text_of(file: Path, chance: random.Random) -> None:
    """Flip, insert, delete or cut bytes of a text."""
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    kind = chance.choice(["flip", "insert", "delete", "cut"])
    if kind == "flip":
        content[place] ^= 1 << chance.randrange(8)
    elif kind == "insert":
        content.insert(place, chance.randrange(256))
    elif kind == "delete":
        del content[place]
    else:
        del content[place:]
    file.write_bytes(content)


def mutate_index(folder: Path, chance: random.Random) -> Path:
    file = folder / "second" / models.INDEX
    if chance.random() < 0.3:
        text_of(file, chance)
        return file
    index = json.loads(file.read_text())
    entries = index["weight_map"]
    name, shards = chance.choice(sorted(entries)), sorted(set(entries.values()))
    kind = chance.choice(["outside", "missing", "other", "lost", "added", "odd", "map", "twice"])
    if kind == "outside":
        outside = ["../first/model.safetensors", str(folder / "first" / "model.safetensors")]
        entries[name] = chance.choice([*outside, "./" + shards[0], "x/../" + shards[0], ".."])
    elif kind == "missing":
        entries[name] = chance.choice(["model-00099-of-00002.safetensors", "", "config.json"])
    elif kind == "other":
        entries[name] = chance.choice([shard for shard in shards if shard != entries[name]])
    elif kind == "lost":
        del entries[name]
    elif kind == "added":
        entries[chance.choice(["x", "model.layers.3.mlp.up_proj.weight"])] = shards[0]
    elif kind == "odd":
        entries[name] = chance.choice(ODD_VALUES)
    elif kind == "map":
        index["weight_map"] = chance.choice(ODD_VALUES)
    else:  # a second copy of a tensor in another shard
        other = file.with_name(chance.choice([x for x in shards if x != entries[name]]))
        held = safetensors.torch.load(other.read_bytes())
        held[name] = torch.zeros_like(models.read(folder / "second")[name])
        other.write_bytes(safetensors.torch.save(held, {"format": "pt"}))
        return other
    file.write_text(json.dumps(index))
    return file


def mutate_adapter(folder: Path, chance: random.Random) -> Path:
    weights = folder / "adapter" / "adapter_model.safetensors"
    config = folder / "adapter" / "adapter_config.json"
    kind = chance.choice(["weights", "weights", "text", "config", "config"])
    if kind == "weights":
        chance.choice(SHARDS)(weights, chance)
        return weights
    if kind == "text":
        text_of(config, chance)
        return config
    content = json.loads(config.read_text())
    keys = ["r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "peft_type", "bias"]
    keys += ["modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias"]
    content[chance.choice(keys)] = chance.choice(ODD_VALUES)
    config.write_text(json.dumps(content))
    return config


def mistake(content: dict[str, Any], chance: random.Random) -> None:
    """Give a recipe another value of the right type, which may even be one that works."""
    kind = chance.choice(["number", "number", "word", "model", "model", "base", "dtype"])
    if kind == "number":
        numbers = [0, -1, 2, 0.3, 1e30, 1e38, math.nan, math.inf, "auto", "0.4", [0.1, 0.4]]
        content["parameters"][chance.choice(["alpha", "beta"])] = chance.choice(numbers)
    elif kind == "word":
        content["parameters"][chance.choice(["alhpa", "densitty", "lambda", "x"])] = 0.5
    elif kind == "dtype":
        content["dtype"] = chance.choice(["float16", "bfloat16", "float64", "int8", "float99"])
    else:
        models = ["nowhere", "first", "second", "base+adapter", "first+adapter", "adapter"]
        name = chance.choice([*models, "first+nowhere", "recipe.yml", "base", "../x", "/", ""])
        if kind == "base":
            content["base_model"] = name
        else:
            chance.choice(content["models"])["model"] = name


def mutate_recipe(folder: Path, chance: random.Random) -> Path:
    file = folder / "recipe.yml"
    content = yaml.safe_load(file.read_text())
    how = chance.random()
    if how < 0.2:
        text_of(file, chance)
        return file
    if how < 0.7:
        mistake(content, chance)
        file.write_text(yaml.safe_dump(content))
        return file
    places: list[tuple[Any, Any]] = [(content, key) for key in content]
    places += [(content["parameters"], key) for key in content["parameters"]]
    places += [(content["models"], number) for number in range(len(content["models"]))]
    places += [(entry, key) for entry in content["models"] for key in entry]
    holder, key = chance.choice(places)
    kind = chance.choice(["odd", "lost", "renamed"])
    if kind == "odd" or isinstance(holder, list):
        holder[key] = chance.choice(ODD_VALUES)
    elif kind == "lost":
        del holder[key]
    else:
        holder[str(key) + chance.choice("sx_ ")] = holder.pop(key)
    file.write_text(yaml.safe_dump(content))
    return file


# --- judging -----------------------------------------------------------------------------


def read(folder: Path) -> models.Tensors:
    """Return a checkpoint's tensors as its index says, by safetensors' own reader."""
    index = folder / models.INDEX
    if not index.exists():
        return safetensors.torch.load((folder / "model.safetensors").read_bytes())
    entries = json.loads(index.read_text())["weight_map"]
    held: models.Tensors = {}
    for shard in sorted(set(entries.values())):
        for name, tensor in safetensors.torch.load((folder / shard).read_bytes()).items():
            if name in entries:
                assert name not in held, f"{name} is in two shards"
                held[name] = tensor
    return held


def adapted(base: models.Tensors, folder: Path) -> models.Tensors:
    """Return the base with a plain LoRA adapter, in float64."""
    config = json.loads((folder / "adapter_config.json").read_text())
    held = safetensors.torch.load((folder / "adapter_model.safetensors").read_bytes())
    root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    scale = config["lora_alpha"] / root
    result = {name: tensor.double() for name, tensor in base.items()}
    for name, down in held.items():
        if name.endswith("lora_A.weight"):
            up = held[name.replace("lora_A", "lora_B")]
            target = name.removeprefix("base_model.model.").replace("lora_A.", "")
            result[target] = result[target] + scale * up.double() @ down.double()
    return result


def model_of(folder: Path, name: str) -> models.Tensors:
    path, plus, adapter = name.partition("+")
    held = read(folder / path)
    return adapted(held, folder / adapter) if plus else held


def check_right(folder: Path, text: str) -> None:
    """Assert that OUT holds θ_0 + λ·Σ(θ_i − θ_0) of the mutated files, as the recipe says."""
    made = yaml.safe_load(text)
    cast = getattr(torch, made.get("dtype") or "float32")
    known = {"merge_method", "base_model", "models", "parameters", "dtype"}
    assert set(made) <= known and made["merge_method"] == "lines", made
    parameters = made["parameters"]
    assert set(parameters) <= {"alpha", "beta"}, parameters
    # Eq. 2, where alpha is left out, is recomputed elsewhere.
    report = json.loads((folder / "out" / "lines_report.json").read_text())
    beta, alpha = float(parameters["beta"]), parameters.get("alpha", "auto")
    alpha = report["alpha"]["value"] if alpha == "auto" else float(alpha)
    base = model_of(folder, made["base_model"])
    tuned = []
    for entry in made["models"]:
        assert set(entry) <= {"model", "parameters"} and not entry.get("parameters"), entry
        if entry["model"] != made["base_model"]:  # the base moves nothing
            tuned.append(model_of(folder, entry["model"]))
    out = models.read(folder / "out")
    assert out.keys() <= base.keys()
    for name, tensor in out.items():
        block = int(name.split(".")[2]) if name.startswith("model.layers.") else 0
        factor = alpha + beta * block / (LAYERS - 1)
        start = base[name].double()
        models_of = [held[name].double() for held in tuned]
        want = start + factor * sum((other - start for other in models_of), torch.zeros(()))
        size = max(float(one.abs().max()) for one in [start, want, *models_of])
        # A recipe's dtype rounds every input, too, and their differences are scaled.
        digits = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
        limit = size * (1e-6 if cast is torch.float32 else (3 + abs(factor)) * digits.get(cast, 0))
        limit = max(limit, size * digits.get(tensor.dtype, 1e-6))
        assert torch.isfinite(tensor).all() and torch.isfinite(want).all(), name
        assert float((tensor.double() - want).abs().max()) <= limit, f"{name} is wrong"


Mutate = Callable[[Path, random.Random], Path]
TARGETS: dict[str, tuple[Mutate, tuple[str, ...]]] = {
    "shards": (mutate_shard, ("first", "second")),
    "indexes": (mutate_index, ("first", "second")),
    "adapters": (mutate_adapter, ("first", "base+adapter")),
    "recipes": (mutate_recipe, ("first", "second")),
}
SHARES = {"shards": 0.4, "indexes": 0.2, "adapters": 0.2, "recipes": 0.2}


@pytest.mark.parametrize("target", TARGETS)
def test_mutations(target: str, torturer: Torturer, sound: Path, tmp_path: Path) -> None:
    """Whatever is done to one file: an error that names it, or the result that is right."""
    mutate, merged = TARGETS[target]
    refused = right = by_mergekit = 0
    wrong = []
    for number in range(math.ceil(SHARES[target] * MUTATIONS)):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        text = recipe_text(recipe(*merged))
        (folder / "recipe.yml").write_text(text)
        file = mutate(folder, random.Random(f"{target} {number}"))
        ended = torturer.merge(folder, "--out-shard-size", "8K")
        try:
            if ended.returncode == 0:
                check_right(folder, (folder / "recipe.yml").read_text())
                right += 1
            else:
                if file.name == "recipe.yml" and "lines] " not in ended.stderr:
                    by_mergekit += 1  # no recipe at all: run_merge has not begun
                    assert ended.returncode == 1 and not (folder / "out").exists()
                    continue
                refusal = ended.refusal
                assert named(file, folder, refusal), refusal
                check_left(folder / "out", {})
                assert not partial_of(folder / "out").exists()
                refused += 1
        except Exception as error:
            wrong.append(
                f"{number} ({file.relative_to(folder)}): {type(error).__name__} {error}"[:400]
            )
        finally:
            shutil.rmtree(folder)
    LOG.info("%s: %d refused, %d right, %d by mergekit", target, refused, right, by_mergekit)
    assert not wrong, "\n".join([f"{len(wrong)} wrong", *wrong])
    assert refused > right > 0 and refused > by_mergekit


def named(file: Path, folder: Path, refusal: str) -> bool:
    """Tell whether a refusal names the file, or its model and what is in it."""
    if file.name == "recipe.yml":
        return True
    # The folder is the model as the recipe calls it; what is wrong in it is told beside.
    if "for finite inputs" in refusal:
        return True  # numbers so large that only their difference is infinite: of no one file
    return file.name in refusal or bool(re.search(rf"\b{file.parent.name}\b", refusal))


def test_a_base_with_an_adapter(torturer: Torturer, sound: Path, tmp_path: Path) -> None:
    """``base_model: BASE+ADAPTER`` is merged from, and the tokenizer is that of BASE."""
    folder = tmp_path / "merge"
    shutil.copytree(sound, folder)
    text = recipe_text(recipe("first", "second") | {"base_model": "base+adapter"})
    (folder / "recipe.yml").write_text(text)
    torturer.merge(folder).succeeded()
    check_right(folder, text)
    tokenizers = [folder / place / "tokenizer.json" for place in ("out", "base")]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()


def test_half_an_update_in_a_file_that_peft_reads(
    torturer: Torturer, sound: Path, tmp_path: Path
) -> None:
    """PEFT starts a matrix that the file lacks with random numbers; such a merge is refused."""
    folder = tmp_path / "merge"
    shutil.copytree(sound, folder)
    (folder / "recipe.yml").write_text(recipe_text(recipe("first", "base+adapter")))
    file = folder / "adapter" / "adapter_model.safetensors"
    header, data = parts(file)
    name = next(name for name in header if name.endswith("lora_A.weight"))
    header[name + "x"] = header.pop(name)
    write(file, header, data)
    refusal = torturer.merge(folder).refusal
    assert "model base+adapter" in refusal and "missing adapter keys" in refusal


def pickled(folder: Path) -> Path:
    """Save the first model as torch does instead of in safetensors, and return its file."""
    file = folder / "first" / "model.safetensors"
    torch.save(safetensors.torch.load(file.read_bytes()), file.with_name("pytorch_model.bin"))
    file.unlink()
    return file.with_name("pytorch_model.bin")


INPUTS: dict[str, Callable[[Path], Path]] = {
    "the base": lambda folder: folder / "base" / "model.safetensors",
    "a shard": lambda folder: folder / "second" / "model-00003-of-00005.safetensors",
    "an adapter": lambda folder: folder / "adapter" / "adapter_model.safetensors",
    "its config": lambda folder: folder / "adapter" / "adapter_config.json",
    "a pickle": pickled,
}


@pytest.mark.parametrize("how", ["truncate", "rewrite", "replace", "touch", "remove"])
@pytest.mark.parametrize("what", INPUTS)
def test_an_input_that_changes_while_it_is_read(
    what: str, how: str, torturer: Torturer, sound: Path, tmp_path: Path
) -> None:
    """Cut, written anew, replaced by another, touched or gone: refused by name, nothing is left."""
    folder = tmp_path / "merge"
    shutil.copytree(sound, folder)
    (folder / "recipe.yml").write_text(recipe_text(recipe("first", "second", "base+adapter")))
    file = INPUTS[what](folder)
    other = tmp_path / "other"
    other.write_bytes(file.read_bytes())
    for number in (5, 60):
        hook = ("change", number, how, str(file), str(other))
        refusal = torturer.merge(folder, "--out-shard-size", "8K", hooks=[hook]).refusal
        assert str(file.relative_to(folder)) in refusal
        assert "while it was" in refusal
        assert not partial_of(folder / "out").exists()
        assert not (folder / "out").exists()
        file.unlink(missing_ok=True)
        file.write_bytes(other.read_bytes())
    torturer.merge(folder, "--out-shard-size", "8K").succeeded()


def test_an_input_that_changes_between_a_kill_and_the_next_run(
    torturer: Torturer, sound: Path, tmp_path: Path
) -> None:
    """The kill hides a change from the run that it hit; the next run sees it and refuses."""
    folder = tmp_path / "merge"
    shutil.copytree(sound, folder)
    (folder / "recipe.yml").write_text(recipe_text(recipe("first", "second")))
    file = folder / "first" / "model.safetensors"
    other = tmp_path / "other"
    other.write_bytes(file.read_bytes())
    numbers(other, random.Random(1))
    # Both at one rename: how far the reading thread is ahead of the writing one is luck.
    change = ("change", 4, "replace", str(file), str(other), "rename")
    flags = ("--out-shard-size", "8K", "--num-threads", "1")
    torturer.merge(folder, *flags, hooks=[change, ("die", 4, "after", "rename")])
    assert list(partial_of(folder / "out").glob("*.safetensors"))
    assert file.read_bytes() == other.read_bytes()
    refusal = torturer.merge(folder, *flags).refusal
    assert "model first (model.safetensors) differ" in refusal
