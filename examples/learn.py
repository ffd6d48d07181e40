"""Coefficients of blocks learnt on a few texts, beside the recipe's own and the best uniform one.

The policies are the quickstart's; everything is made in ``examples/work`` (``--tiny``: in
``examples/work/tiny-learn``). The policies are made once, what is learnt anew in each run.
See learn.sh.
"""

from __future__ import annotations

import json
import shutil
import textwrap
import time
from pathlib import Path
from typing import Any

import _base  # before transformers: it says where the Hub's library keeps its files
import _policies
import _tiny
import quickstart
import torch
from _base import WORK, fingerprint, finished, making, say
from _model import SYSTEM, load, run, save
from _styles import STYLES, conversations
from transformers import AutoTokenizer

import mergekit_lines
from mergekit_lines.search.learning.show import draw_learned, show_learned

TEXTS, OUT = Path("texts.jsonl"), Path("learnt")
STEPS, LEARNING_RATE, SEED = 16, 0.1, 0
TINY_STEPS, TINY_RATE = 12, 1e-2  # of the policies of --tiny


def tiny_policies() -> None:
    """Make a random model, and two that were trained on a style each."""
    say("1/4  base model: a LLaMA of 4 blocks with random weights")
    pairs = {style: conversations(style, held_out=False) for style in STYLES}
    unseen = {style: conversations(style, held_out=True) for style in STYLES}
    made_from = fingerprint(pairs, unseen, TINY_STEPS, TINY_RATE, SEED, torch.__version__)
    if not finished(Path("base"), made_from):
        every = [*pairs.values(), *unseen.values()]
        words = [text for listed in every for pair in listed for text in pair]
        with making(Path("base"), {"made_from": made_from}) as part:
            _tiny.make(part, words, SEED)
    say("2/4  two policies")
    for style in STYLES:
        if finished(Path(style), made_from):
            continue
        model, tokenizer = load(Path("base"))
        rows = [[tokenizer(text)["input_ids"] for text in pair] for pair in pairs[style]]
        samples = [_policies.Sample(question, answer, "") for question, answer in rows]
        settings = (tokenizer.pad_token_id, TINY_STEPS, TINY_RATE, SEED)
        _policies.learn(model, samples, *settings, lambda _: None)
        with making(Path(style), {"made_from": made_from}) as part:
            save(model, tokenizer, part)


def policies() -> None:
    say("1/4  base model: SmolLM2-135M-Instruct, a LLaMA of 30 blocks (about half a minute)")
    _base.get_base(WORK / "base")
    quickstart.get_policies()


def write_texts() -> int:
    """Write conversations that no policy was trained on, and return how many."""
    tokenizer: Any = AutoTokenizer.from_pretrained("base")
    lines = []
    for style in STYLES:
        for question, answer in conversations(style, held_out=True):
            turns = (("system", SYSTEM), ("user", question), ("assistant", answer))
            chat = [{"role": role, "content": content} for role, content in turns]
            text = f"{question} {answer}"
            if tokenizer.chat_template:
                text = tokenizer.apply_chat_template(chat, tokenize=False)
            lines.append(json.dumps({"text": text}) + "\n")
    TEXTS.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def learn(threads: int | None) -> None:
    """Learn on one half of the texts, and tell what the other half says."""
    count = write_texts()
    say(f"3/4  {STEPS} steps on half of {count} unseen conversations (about four minutes)")
    print(textwrap.indent(quickstart.RECIPE.read_text(encoding="utf-8").rstrip(), "   | "))
    shutil.rmtree(OUT, ignore_errors=True)
    learned = mergekit_lines.learn(
        quickstart.RECIPE,
        TEXTS,
        OUT,
        objective="loss",
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        held_out=0.5,
        seed=SEED,
        dtype="float32",
        num_threads=threads,
    )
    say("4/4  what came out: lower is better")
    show_learned(learned)
    draw_learned(learned, OUT / "figure.png")
    print("one small run with one seed ranks no method", flush=True)
    print(f"\n   the figure: {(OUT / 'figure.png').resolve()}")
    print(f"   the recipe that was learnt: {(OUT / 'learned.yml').resolve()}")


def main() -> None:
    started = time.monotonic()
    parser = _base.arguments(__doc__)
    parser.add_argument("--num-threads", type=int, help="threads that compute")
    options = parser.parse_args()
    if options.folder and not options.tiny:
        parser.error("--folder goes with --tiny: the quickstart's policies lie in examples/work")
    folder = options.folder or (WORK / "tiny-learn" if options.tiny else WORK)
    _base.enter(folder)
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    mergekit_lines.register()
    if options.tiny:
        tiny_policies()
    else:
        policies()
    learn(options.num_threads)
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    run(main, "to go on from the last whole step")
