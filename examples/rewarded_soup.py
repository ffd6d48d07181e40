"""A rewarded soup, measured: two policies, two rewards, and the front between them three ways.

All of it is done for several seeds, each with its own samples, policies and choice of the prompts.
Everything is made in ``examples/work/rewarded-soup`` (``--tiny``: in ``examples/work/tiny``). A
step's folder is renamed when it is whole, and the front is kept point by point, so an interrupted
run goes on. See rewarded_soup.sh.
"""

from __future__ import annotations

import json
import math
import random
import resource
import shutil
import statistics
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import _base  # before transformers: it says where the Hub's library keeps its files
import _policies
import _rewards
import _tiny
import torch
from _base import NOTE, WORK, fingerprint, finished, making, say
from _fronts import draw_seeds, ends, print_paragraph, show_seeds, verdict
from _model import fail, load, run, save
from _prompts import HELD_OUT, TRAINING
from _stories import engine, inside
from tqdm import tqdm

import mergekit_lines
from mergekit_lines.evaluate import Settings
from mergekit_lines.report.file import versions
from mergekit_lines.search.soup import Soup, write
from mergekit_lines.search.telling import draw_soup, show_soup


class Size(NamedTuple):
    """How much of everything."""

    training: int  # prompts, of each of which the base draws
    samples: int  # completions, of which each policy learns the best
    tokens: int  # of a completion, at most
    steps: int
    learning_rate: float
    held_out: int  # prompts of the front
    points: int  # of c


FULL = Size(64, 6, 32, 24, 3e-5, 96, 11)
TINY = Size(8, 8, 16, 12, 1e-2, 8, 3)
SEEDS = 3
TINY_SEED = 0  # of the random model
AT_ONCE = 16  # prompts that are drawn from at once, each several times

BASE = Path("../../base")  # as every seed's folder sees it

# The two policies and what each is trained for; the first one's weight in the soup is c.
POLICIES = {"glad": "vader_compound", "readable": "minus_ari"}
RECIPE = """\
merge_method: lines
base_model: ../../base
models:
  - model: ./glad
    parameters: {weight: 0.5}       # c: the soup goes over it
  - model: ./readable
    parameters: {weight: 0.5}       # 1 - c
parameters: {wrap: task_arithmetic, alpha: 1, beta: 1}
dtype: float32
"""
HELD_OUT_FILE, RECIPE_FILE = Path("held_out.txt"), Path("rewarded-soup.yml")
SHOWN = (1.0, 0.5, 0.0)  # c of the models that say something in the end
OPENINGS = 2


def scores(name: str, texts: Sequence[str]) -> list[float]:
    """Return a reward of some completions."""
    return getattr(_rewards, name)([], list(texts))


def prompts_of(size: Size, seed: int) -> tuple[list[str], list[str]]:
    """Return the openings that the policies are trained on, and those that they are measured on.

    Those of seed 0 are about other subjects, as _prompts.py has them; other seeds draw theirs from
    all of these.
    """
    training, held_out = list(TRAINING[: size.training]), list(HELD_OUT[: size.held_out])
    if seed:
        every = training + held_out
        random.Random(seed).shuffle(every)
        training, held_out = every[: size.training], every[size.training :]
    return training, held_out


# --- 1. the base model ---------------------------------------------------------------------------


def base_made_from(size: Size) -> str:
    if size is FULL:
        return _base.made_from(BASE)
    return fingerprint(words_of(size), TINY_SEED, Path(_tiny.__file__).read_text("utf-8"))


def words_of(size: Size) -> tuple[str, ...]:
    return (*TRAINING[: size.training], *HELD_OUT[: size.held_out])


def get_base(size: Size) -> None:
    if size is FULL:
        say("1/5  base model: SmolLM2-135M-Instruct, a LLaMA of 30 blocks (about half a minute)")
        _base.get_base(Path("base").resolve())
        return
    say("1/5  base model: a LLaMA of 4 blocks with random weights")
    made_from = base_made_from(size)
    if not finished(Path("base"), made_from):
        with making(Path("base"), {"made_from": made_from}) as part:
            _tiny.make(part, words_of(size), TINY_SEED)


# --- 2. two policies -----------------------------------------------------------------------------


def samples_made_from(size: Size, seed: int) -> str:
    code = Path(_policies.__file__).read_text("utf-8")
    asked = (size.samples, size.tokens, prompts_of(size, seed)[0], seed, AT_ONCE)
    return fingerprint(base_made_from(size), code, asked, torch.__version__)


def get_samples(size: Size, seed: int) -> list[list[_policies.Sample]]:
    """Return what the base draws for each training prompt."""
    count = size.training * size.samples
    say(f"2/5  seed {seed}: {count} completions drawn from the base (about two minutes)")
    made_from, file = samples_made_from(size, seed), Path("samples", "samples.json")
    if finished(file.parent, made_from):
        print("   already there")
    else:
        model, tokenizer = load(BASE)
        training, _ = prompts_of(size, seed)
        torch.manual_seed(seed)
        drawn: list[list[_policies.Sample]] = []
        with tqdm(total=count, desc="   drawing", leave=False, disable=None) as bar:
            for start in range(0, size.training, AT_ONCE):
                prompts = training[start : start + AT_ONCE]
                drawn += _policies.draw(model, tokenizer, prompts, size.samples, size.tokens)
                bar.update(len(prompts) * size.samples)
        with making(file.parent, {"made_from": made_from}) as part:
            (part / file.name).write_text(json.dumps(drawn), encoding="utf-8")
    read = json.loads(file.read_text(encoding="utf-8"))
    return [[_policies.Sample(*sample) for sample in of_prompt] for of_prompt in read]


def policy_made_from(name: str, size: Size, seed: int) -> str:
    rewards = Path(_rewards.__file__).read_text("utf-8")
    reward = POLICIES[name]
    asked = (size.steps, size.learning_rate, seed)
    return fingerprint(samples_made_from(size, seed), reward, rewards, asked, versions())


def tune(name: str, samples: Sequence[Sequence[_policies.Sample]], size: Size, seed: int) -> dict:
    """Fine-tune the base on the samples that its reward likes best; return what was seen."""
    made_from, reward = policy_made_from(name, size, seed), POLICIES[name]
    if note := finished(Path(name), made_from):
        return note | {"reused": True}
    rewards = [scores(reward, [sample.text for sample in drawn]) for drawn in samples]
    chosen = _policies.best(samples, rewards)
    model, tokenizer = load(BASE)
    with tqdm(total=size.steps, desc=f"   {name}", leave=False, disable=None) as bar:

        def step(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.2f}")
            bar.update()

        settings = (tokenizer.pad_token_id, size.steps, size.learning_rate, seed)
        losses = _policies.learn(model, chosen, *settings, step)
    note = {
        "made_from": made_from,
        "drawn": statistics.fmean(score for of_prompt in rewards for score in of_prompt),
        "chosen": statistics.fmean(scores(reward, [sample.text for sample in chosen])),
        "losses": losses,
    }
    # In fp32: a step of bf16 is as large as much of what so short a training changes.
    with making(Path(name), note) as part:
        save(model, tokenizer, part)
    return note


def get_policies(size: Size, seed: int) -> None:
    samples = get_samples(size, seed)
    how = f"the best of {size.samples} completions, learnt in {size.steps} steps"
    say(f"3/5  seed {seed}: two policies: {how}")
    for name, reward in POLICIES.items():
        note = tune(name, samples, size, seed)
        print(
            f"   {name:8} {reward} of all samples {note['drawn']:.2f}, of the best "
            f"{note['chosen']:.2f}; loss {note['losses'][0]:.2f} -> {note['losses'][-1]:.2f}"
            + (" (already there)" if "reused" in note else ""),
            flush=True,
        )


# --- 3. the front --------------------------------------------------------------------------------


def get_front(size: Size, seed: int) -> Soup:
    """Measure the front with ``mergekit_lines.soup``, on prompts that no policy was trained on."""
    points = f"{size.points} points, three ways, {size.held_out} held-out prompts"
    say(f"4/5  seed {seed}: the front between both: {points} (about ten minutes)")
    if not seed:
        print(textwrap.indent(RECIPE.rstrip(), "   | "), flush=True)
    RECIPE_FILE.write_text(RECIPE, encoding="utf-8")
    HELD_OUT_FILE.write_text("\n".join(prompts_of(size, seed)[1]) + "\n", encoding="utf-8")
    options = f"do_sample=true&temperature={_policies.TEMPERATURE}"
    rewards = [f"rewards:_rewards:{name}?{options}" for name in POLICIES.values()]
    settings = Settings(
        prompts=HELD_OUT_FILE, batch_size=size.held_out, max_new_tokens=size.tokens, seed=seed
    )
    out = Path("soup")
    made_from = soup_made_from(size, seed, rewards)
    if not finished(out, made_from):  # of something else: what is there is of no use
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / NOTE).write_text(json.dumps({"made_from": made_from}), encoding="utf-8")
    return mergekit_lines.soup(RECIPE_FILE, rewards, out, points=size.points, settings=settings)


def soup_made_from(size: Size, seed: int, rewards: Sequence[str]) -> str:
    policies = [policy_made_from(name, size, seed) for name in POLICIES]
    files = [Path(name, "model.safetensors") for name in (BASE, *POLICIES)]
    times = [file.stat().st_mtime_ns for file in files]  # one that was made again is another one
    held_out = prompts_of(size, seed)[1]
    return fingerprint(policies, times, size, RECIPE, held_out, rewards, engine())


# --- 4. what came out of one seed ----------------------------------------------------------------


def paired(after: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """Return the mean difference over the same prompts, and its standard error."""
    differences = [one - other for one, other in zip(after, before, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), error


def show_policies(found: Soup) -> None:
    """Tell what training did."""
    print("\n   mean rewards on held-out prompts, and the change from the base ± standard error")
    print(f"   {'':8} | " + "".join(f"{name:28}" for name in found.rewards).rstrip())
    base = found.base.metrics
    cells = "".join(f"{base[name].value:<28.3f}" for name in found.rewards)
    print(f"   {'base':8} | {cells.rstrip()}")
    for policy, record in ends(found, tuple(POLICIES)).items():
        cells = ""
        for name in found.rewards:
            metric = record.metrics[name]
            change, error = paired(metric.examples or (), base[name].examples or ())
            cells += f"{metric.value:.3f}, {change:+.3f} ± {error:.3f}".ljust(28)
        print(f"   {policy:8} | {cells.rstrip()}")


def show_front(found: Soup, size: Size) -> None:
    """Tell what one seed's prompts say, and draw its front."""
    show_policies(found)
    print("\n   the fronts: means over the prompts ± standard error", flush=True)
    show_soup(found)
    told = verdict(found.bootstrap.differences, f"{size.held_out} prompts")
    told.append("The intervals are about prompts alone: each policy was trained once.")
    print()
    print_paragraph(told)
    draw_soup(found, Path("soup", "figure.png"))


@torch.no_grad()
def sentences(model, tokenizer, size: Size) -> list[str]:
    """Let a model write on, taking the likeliest token each time."""
    told = []
    for opening in prompts_of(size, 0)[1][:OPENINGS]:
        ids = tokenizer(opening, return_tensors="pt", add_special_tokens=False)["input_ids"]
        model_said = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=size.tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        told.append(tokenizer.decode(model_said[0], skip_special_tokens=True))
    return told


def show_sentences(size: Size) -> Path:
    """Write the model in the middle, and let it and both ends say something."""
    middle, made_from = Path("soup-c0.5"), Path("soup", NOTE).read_text(encoding="utf-8")
    made_from = json.loads(made_from)["made_from"]
    if not finished(middle, made_from):
        shutil.rmtree(middle, ignore_errors=True)
        write(RECIPE_FILE, 0.5, middle, quiet=True)
        (middle / NOTE).write_text(json.dumps({"made_from": made_from}), encoding="utf-8")
    told = {}
    with mergekit_lines.LiveModel(RECIPE_FILE, quiet=True) as live:
        for share in SHOWN:
            live.set(weights=[share, 1 - share])
            told[share] = sentences(live.model, live.tokenizer, size)
    if sentences(*load(middle), size) != told[0.5]:
        raise fail(f"{middle.resolve()} does not say what the same point said when measured.")
    for number in range(OPENINGS):
        print()
        for share in SHOWN:
            lines = textwrap.wrap(" ".join(told[share][number].split()), 80) or ["(nothing)"]
            for row, line in enumerate(lines):
                print(f"   {f'c = {share:g}' if row == 0 else '':9} | {line}")
    return middle


# --- 5. what came out of all ---------------------------------------------------------------------


def show(soups: Sequence[Soup], size: Size, folders: Sequence[Path]) -> None:
    say("5/5  what came out")
    print(
        "   vader_compound: sentiment from -1 to 1. minus_ari: minus the school grade that it takes"
    )
    print("   to read the text. Of both more is better.\n")
    figure = folders[0] / "soup" / "figure.png"
    if len(soups) > 1:
        show_seeds(soups, tuple(POLICIES))
        figure = folders[0].parent / "figure.png"
        draw_seeds(soups, figure)
    with inside(folders[0]):
        middle = show_sentences(size).resolve()
    print(f"\n   the figure: {figure.resolve()}")
    for folder in folders:
        print(f"   every score, recipes, a figure of this seed: {(folder / 'soup').resolve()}")
    print(f"   the model of c = 0.5, with LiNeS: {middle}")


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = _base.arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many, from 0 on")
    options = parser.parse_args()
    size = TINY if options.tiny else FULL
    _base.enter(options.folder or (WORK / "tiny" if options.tiny else WORK))
    started = time.monotonic()
    mergekit_lines.register()
    get_base(size)
    folders = [Path("rewarded-soup", f"seed-{seed}") for seed in range(options.seeds)]
    soups = []
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        with inside(folder):
            get_policies(size, seed)
            soups.append(get_front(size, seed))
            show_front(soups[-1], size)
    show(soups, size, folders)
    print(
        f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes, {cpu_seconds() / 60:.1f} CPU "
        "minutes (this run; a step that was already there was not run again)."
    )


if __name__ == "__main__":
    run(main, "to go on from there")
