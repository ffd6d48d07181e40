"""Merge two small policies with LiNeS, from a real model to a merged one (see quickstart.sh).

Everything is made in ``examples/work``. A folder is filled under the name ``NAME.part`` and
renamed when whole, so an interrupted run starts again at the step that it was in.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import _base  # before transformers: it says where the Hub's library keeps its files
import torch
import transformers
from _base import NOTE, ROOT, WORK, fingerprint, finished, making, say
from _model import BATCH, SYSTEM, batches, fail, load, mean_loss, prompt_ids, save
from _styles import STYLES, conversations
from tqdm import tqdm

RECIPE = ROOT / "recipes" / "quickstart.yml"

PROMPTS = ("How do I keep a houseplant healthy?", "What is the best way to learn to cook?")
ANSWER_TOKENS = 40

SEED, STEPS, LEARNING_RATE = 0, 20, 4e-5


# --- 2. two policies -----------------------------------------------------------------------------


def policy_made_from(style: str) -> str:
    data = [conversations(style, held_out=held_out) for held_out in (False, True)]
    settings = (SEED, STEPS, BATCH, LEARNING_RATE, SYSTEM, torch.__version__)
    return fingerprint(_base.made_from(WORK / "base"), style, data, settings)


def tune(style: str) -> dict:
    """Fine-tune all weights of the base on one style; return the held-out losses around it."""
    made_from = policy_made_from(style)
    if note := finished(WORK / style, made_from):
        return note | {"reused": True}
    torch.manual_seed(SEED)
    pairs = conversations(style, held_out=False)
    random.Random(SEED).shuffle(pairs)
    model, tokenizer = load(WORK / "base")
    data = batches(tokenizer, pairs)
    unseen = batches(tokenizer, conversations(style, held_out=True))
    total = STEPS + 2 * len(unseen)
    with tqdm(total=total, desc=f"   {style}", unit="batch", leave=False, disable=None) as bar:
        before = mean_loss(model, unseen, bar.update)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        model.train()
        for number in range(STEPS):
            # The first steps are small: AdamW knows nothing of the gradients' size yet.
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (number + 1) / 4)
            loss = model(**data[number % len(data)]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.set_postfix(loss=f"{loss.item():.2f}")
            bar.update()
        # The file holds bf16; what is measured is what the file holds.
        model.to(torch.bfloat16).eval()
        note = {"made_from": made_from}
        with making(WORK / style, note) as part:
            save(model, tokenizer, part)
            after = mean_loss(model.float(), unseen, bar.update)
            note |= {"before": before, "after": after}
    return note


def get_policies() -> None:
    say("2/4  two policies: full fine-tuning of the base in two styles (about a minute each)")
    for style in STYLES:
        note = tune(style)
        print(
            f"   {style:9} {STEPS} steps of {BATCH}: loss on unseen answers of its "
            f"style {note['before']:.2f} -> {note['after']:.2f}"
            + (" (already there)" if "reused" in note else ""),
            flush=True,
        )


# --- 3. the merge --------------------------------------------------------------------------------


def merge_made_from() -> str:
    import mergekit_lines

    code = sorted(Path(mergekit_lines.__file__).parent.rglob("*.py"))
    sources = [path.read_text(encoding="utf-8") for path in (RECIPE, *code)]
    return fingerprint([policy_made_from(style) for style in STYLES], sources)


def merge(online: bool) -> dict:
    """Run the stock ``mergekit-yaml`` on ``recipes/quickstart.yml``; return the merge's report."""
    say("3/4  LiNeS merge of both, by the stock mergekit-yaml (about 20 seconds)")
    print(textwrap.indent(RECIPE.read_text(encoding="utf-8").rstrip(), "   | "))
    out, made_from = WORK / "merged", merge_made_from()
    if finished(out, made_from):
        print("   already merged")
    else:
        shutil.rmtree(out, ignore_errors=True)
        program = Path(sys.executable).with_name("mergekit-yaml")
        # The recipe's paths are relative to the folder that the command runs in.
        recipe = os.path.relpath(RECIPE, WORK)
        print(f"   $ cd examples/work && mergekit-yaml {recipe} {out.name}", flush=True)
        env = os.environ | ({} if online else {"HF_HUB_OFFLINE": "1"})
        ended = subprocess.run([program, recipe, out.name], cwd=WORK, env=env, check=False)
        if ended.returncode:
            raise fail(
                f"mergekit-yaml ended with exit status {ended.returncode}; its message above says "
                "what to change."
            )
    try:
        report = json.loads((out / "lines_report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise fail(
            f"the merge left no readable lines_report.json in examples/work/merged ({problem}); "
            "delete that folder and run this again."
        ) from problem
    if not finished(out, made_from):
        (out / NOTE).write_text(json.dumps({"made_from": made_from}), encoding="utf-8")
    return report


def show_coefficients(report: dict) -> None:
    for container in report["containers"]:
        values = container["coefficients"]
        print(f"\n   coefficient per block of {container['name']} ({len(values)} blocks)")
        for start in range(0, len(values), 10):
            row = " ".join(f"{value:.3f}" for value in values[start : start + 10])
            print(f"   {start + 1:3}-{min(start + 10, len(values)):<3} {row}")
    for name, value in report["outside"].items():
        print(f"   outside the blocks: {name} {value:.3f}")


# --- 4. what came out ----------------------------------------------------------------------------


@torch.no_grad()
def answer(model, tokenizer, question: str) -> str:
    ids = torch.tensor([prompt_ids(tokenizer, question)])
    told = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=ANSWER_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text = tokenizer.decode(told[0, ids.shape[1] :], skip_special_tokens=True)
    return text.strip() + ("" if told[0, -1] == tokenizer.eos_token_id else " …")


@torch.no_grad()
def uniform_merge(coefficient: float) -> torch.nn.Module:
    """Return base + coefficient · (sum of the task vectors), the merge without LiNeS."""
    model, _ = load(WORK / "base")
    start = {name: weight.clone() for name, weight in model.named_parameters()}
    for style in STYLES:
        policy = dict(load(WORK / style)[0].named_parameters())
        for name, weight in model.named_parameters():
            weight.add_(policy[name] - start[name], alpha=coefficient)
    return model


def measure(names: tuple[str, ...], coefficient: float) -> dict[str, dict[str, list]]:
    """Let every model answer the prompts, and measure its loss on the unseen answers."""
    found: dict[str, dict[str, list]] = {}
    total = len(names) * (len(PROMPTS) + len(STYLES)) + len(STYLES)
    with tqdm(total=total, leave=False, disable=None) as bar:
        for name in (*names, "uniform"):
            bar.set_description(f"   {name}")
            model, tokenizer = load(WORK / ("base" if name == "uniform" else name))
            if name == "uniform":
                model = uniform_merge(coefficient)
            row = found[name] = {"answers": [], "losses": []}
            for prompt in PROMPTS if name in names else ():
                row["answers"].append(answer(model, tokenizer, prompt))
                bar.update()
            for style in STYLES:
                data = batches(tokenizer, conversations(style, held_out=True))
                row["losses"].append(mean_loss(model, data))
                bar.update()
    return found


def show_models(coefficient: float) -> None:
    say("4/4  what the four models say, and how well they know each style (under a minute)")
    names = ("base", *STYLES, "merged")
    measured_from = fingerprint(merge_made_from(), PROMPTS, ANSWER_TOKENS, coefficient)
    note = json.loads((WORK / "merged" / NOTE).read_text(encoding="utf-8"))
    if note.get("measured_from") == measured_from:
        print("   (measured in an earlier run)")
    else:
        note |= {"measured_from": measured_from, "found": measure(names, coefficient)}
        (WORK / "merged" / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
    found = note["found"]
    for number, prompt in enumerate(PROMPTS):
        print(f"\n   {prompt}")
        for name in names:
            body = found[name]["answers"][number].splitlines()
            lines = [part for line in body for part in textwrap.wrap(line, 80)] or ["(nothing)"]
            for row, line in enumerate(lines):
                print(f"   {name if row == 0 else '':9} | {line}")
    print("\n   loss per token on answers that no model was trained on (lower is better):")
    print("   a policy knows its own style only, the merge is to know both")
    print(f"   {'':9} | " + " ".join(f"{style:>9}" for style in STYLES) + "      mean")
    for name, row in found.items():
        losses = [*row["losses"], sum(row["losses"]) / len(STYLES)]
        print(f"   {name:9} | " + " ".join(f"{value:9.3f}" for value in losses))
    print(f"   uniform: the same merge without LiNeS, every weight at {coefficient:.3f}, the mean")
    print("   coefficient of the blocks above; one small run with one seed ranks no method.")


def main() -> None:
    started = time.monotonic()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    say("1/4  base model: SmolLM2-135M-Instruct, a LLaMA of 30 blocks (about half a minute)")
    online = _base.get_base(WORK / "base")
    get_policies()
    report = merge(online)
    show_coefficients(report)
    blocks = [value for found in report["containers"] for value in found["coefficients"]]
    show_models(sum(blocks) / len(blocks))
    print(f"\nDone in {time.monotonic() - started:.0f} s. The merged model: {WORK / 'merged'}")
    print("Its report: lines_report.json there. The recipe: recipes/quickstart.yml; change `beta`")
    print("and run this again: only the merge and the comparison are made anew.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise fail("interrupted; run it again to go on from the last whole step.") from None
