"""A rewarded soup, measured: two policies, two rewards, and the front between them three ways.

Everything is made in ``examples/work`` (``--tiny``: in ``examples/work/tiny``). A step's folder is
renamed when it is whole, and the front is kept point by point, so an interrupted run goes on.
See rewarded_soup.sh.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import statistics
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import _base  # before transformers: it says where the Hub's library keeps its files
import _policies
import _rewards
import _tiny
import torch
from _base import NOTE, WORK, fingerprint, finished, making, say
from _model import fail, load, run, save
from _prompts import HELD_OUT, TRAINING
from tqdm import tqdm

import mergekit_lines
from mergekit_lines.evaluate import Settings
from mergekit_lines.report.file import versions
from mergekit_lines.search.bench import LINES, UNIFORM, UNSCALED
from mergekit_lines.search.pareto import Difference
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
SEED = 0
AT_ONCE = 16  # prompts that are drawn from at once, each several times

# The two policies and what each is trained for; the first one's weight in the soup is c.
POLICIES = {"glad": "vader_compound", "readable": "minus_ari"}
RECIPE = """\
merge_method: lines
base_model: ./base
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


# --- 1. the base model ---------------------------------------------------------------------------


def base_made_from(size: Size) -> str:
    if size is FULL:
        return _base.MADE_FROM
    return fingerprint(words_of(size), SEED, Path(_tiny.__file__).read_text("utf-8"))


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
            _tiny.make(part, words_of(size), SEED)


# --- 2. two policies -----------------------------------------------------------------------------


def samples_made_from(size: Size) -> str:
    code = Path(_policies.__file__).read_text("utf-8")
    asked = (size.training, size.samples, size.tokens, TRAINING, SEED, AT_ONCE)
    return fingerprint(base_made_from(size), code, asked, torch.__version__)


def get_samples(size: Size) -> list[list[_policies.Sample]]:
    """Return what the base draws for each training prompt."""
    count = size.training * size.samples
    say(f"2/5  {count} completions drawn from the base (about two minutes)")
    made_from, file = samples_made_from(size), Path("samples", "samples.json")
    if finished(file.parent, made_from):
        print("   already there")
    else:
        model, tokenizer = load(Path("base"))
        torch.manual_seed(SEED)
        drawn: list[list[_policies.Sample]] = []
        with tqdm(total=count, desc="   drawing", leave=False, disable=None) as bar:
            for start in range(0, size.training, AT_ONCE):
                prompts = TRAINING[: size.training][start : start + AT_ONCE]
                drawn += _policies.draw(model, tokenizer, prompts, size.samples, size.tokens)
                bar.update(len(prompts) * size.samples)
        with making(file.parent, {"made_from": made_from}) as part:
            (part / file.name).write_text(json.dumps(drawn), encoding="utf-8")
    read = json.loads(file.read_text(encoding="utf-8"))
    return [[_policies.Sample(*sample) for sample in of_prompt] for of_prompt in read]


def policy_made_from(name: str, size: Size) -> str:
    rewards = Path(_rewards.__file__).read_text("utf-8")
    reward = POLICIES[name]
    asked = (size.steps, size.learning_rate, SEED)
    return fingerprint(samples_made_from(size), reward, rewards, asked, versions())


def tune(name: str, samples: Sequence[Sequence[_policies.Sample]], size: Size) -> dict:
    """Fine-tune the base on the samples that its reward likes best; return what was seen."""
    made_from, reward = policy_made_from(name, size), POLICIES[name]
    if note := finished(Path(name), made_from):
        return note | {"reused": True}
    rewards = [scores(reward, [sample.text for sample in drawn]) for drawn in samples]
    chosen = _policies.best(samples, rewards)
    model, tokenizer = load(Path("base"))
    with tqdm(total=size.steps, desc=f"   {name}", leave=False, disable=None) as bar:

        def step(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.2f}")
            bar.update()

        settings = (tokenizer.pad_token_id, size.steps, size.learning_rate, SEED)
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


def get_policies(size: Size) -> None:
    samples = get_samples(size)
    say(f"3/5  two policies: the best of {size.samples} completions, learnt in {size.steps} steps")
    for name, reward in POLICIES.items():
        note = tune(name, samples, size)
        print(
            f"   {name:8} {reward} of all samples {note['drawn']:.2f}, of the best "
            f"{note['chosen']:.2f}; loss {note['losses'][0]:.2f} -> {note['losses'][-1]:.2f}"
            + (" (already there)" if "reused" in note else ""),
            flush=True,
        )


# --- 3. the front --------------------------------------------------------------------------------


def get_front(size: Size) -> Soup:
    """Measure the front with ``mergekit_lines.soup``, on prompts that no policy was trained on."""
    points = f"{size.points} points, three ways, {size.held_out} held-out prompts"
    say(f"4/5  the front between both: {points} (about ten minutes)")
    print(textwrap.indent(RECIPE.rstrip(), "   | "), flush=True)
    RECIPE_FILE.write_text(RECIPE, encoding="utf-8")
    HELD_OUT_FILE.write_text("\n".join(HELD_OUT[: size.held_out]) + "\n", encoding="utf-8")
    options = f"do_sample=true&temperature={_policies.TEMPERATURE}"
    rewards = [f"rewards:_rewards:{name}?{options}" for name in POLICIES.values()]
    settings = Settings(
        prompts=HELD_OUT_FILE, batch_size=size.held_out, max_new_tokens=size.tokens, seed=SEED
    )
    out = Path("soup")
    made_from = soup_made_from(size, rewards)
    if not finished(out, made_from):  # of something else: what is there is of no use
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / NOTE).write_text(json.dumps({"made_from": made_from}), encoding="utf-8")
    return mergekit_lines.soup(RECIPE_FILE, rewards, out, points=size.points, settings=settings)


def soup_made_from(size: Size, rewards: Sequence[str]) -> str:
    code = sorted(Path(mergekit_lines.__file__).parent.rglob("*.py"))
    sources = [path.read_text(encoding="utf-8") for path in code]
    policies = [policy_made_from(name, size) for name in POLICIES]
    files = [Path(name, "model.safetensors") for name in ("base", *POLICIES)]
    times = [file.stat().st_mtime_ns for file in files]  # one that was made again is another one
    return fingerprint(policies, times, size, RECIPE, HELD_OUT, rewards, sources, versions())


# --- 4. what came out ----------------------------------------------------------------------------


def paired(after: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """Return the mean difference over the same prompts, and its standard error."""
    differences = [one - other for one, other in zip(after, before, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), error


def show_policies(found: Soup) -> None:
    """Tell what training did: the unscaled ends of the front are the policies as they are."""
    ends = dict(zip(POLICIES, (found.fronts[UNSCALED][-1], found.fronts[UNSCALED][0]), strict=True))
    print(
        "   vader_compound: sentiment from -1 to 1. minus_ari: minus the school grade that it takes"
    )
    print("   to read the text. Of both more is better.")
    print("\n   mean rewards on held-out prompts, and the change from the base ± standard error")
    print(f"   {'':8} | " + "".join(f"{name:28}" for name in found.rewards).rstrip())
    base = found.base.metrics
    cells = "".join(f"{base[name].value:<28.3f}" for name in found.rewards)
    print(f"   {'base':8} | {cells.rstrip()}")
    for policy, record in ends.items():
        cells = ""
        for name in found.rewards:
            metric = record.metrics[name]
            change, error = paired(metric.examples or (), base[name].examples or ())
            cells += f"{metric.value:.3f}, {change:+.3f} ± {error:.3f}".ljust(28)
        print(f"   {policy:8} | {cells.rstrip()}")


def verdict(differences: Mapping[tuple[str, str], Difference], prompts: int) -> list[str]:
    """Say in sentences what the intervals of LiNeS's hypervolume minus the others' show."""
    signs, told = {}, []
    for other, name in ((UNSCALED, "the unscaled"), (UNIFORM, "the uniform")):
        difference = differences[LINES, other]
        low, high = difference.interval
        numbers = f"{difference.value:+.3g}, 95% interval {low:+.3g} to {high:+.3g}"
        signs[other] = (low > 0) - (high < 0)
        if signs[other]:
            size = "larger" if signs[other] > 0 else "smaller"
            told.append(f"LiNeS's front dominates a {size} area than {name} one ({numbers}).")
        else:
            told.append(
                f"Whether LiNeS's front dominates a larger or a smaller area than {name} one, "
                f"{prompts} prompts cannot tell ({numbers})."
            )
    if signs[UNSCALED] > 0:
        told.append(
            {
                1: "So the depth gave more than the larger step alone.",
                0: "So the larger step may be all that helped; of the depth nothing is shown.",
                -1: "So the larger step helped, and its going with the depth did not.",
            }[signs[UNIFORM]]
        )
    told.append("The intervals are about prompts alone: each policy was trained once.")
    return told


@torch.no_grad()
def sentences(model, tokenizer, size: Size) -> list[str]:
    """Let a model write on, taking the likeliest token each time."""
    told = []
    for opening in HELD_OUT[:OPENINGS]:
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


def show(found: Soup, size: Size) -> None:
    say("5/5  what came out")
    show_policies(found)
    print("\n   the fronts: means over the prompts ± standard error", flush=True)
    show_soup(found)
    print()
    told = verdict(found.bootstrap.differences, size.held_out)
    print(textwrap.fill(" ".join(told), 88, initial_indent="   ", subsequent_indent="   "))
    figure = Path("soup", "figure.png")
    draw_soup(found, figure)
    middle = show_sentences(size)
    print(f"\n   the figure: {figure.resolve()}")
    print(f"   recipes of LiNeS's Pareto-optimal points: {Path('soup', 'recipes').resolve()}")
    print(f"   every score: {Path('soup', 'results.jsonl').resolve()}")
    print(f"   the model of c = 0.5, with LiNeS: {middle.resolve()}")


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    given = _base.arguments(__doc__).parse_args()
    size = TINY if given.tiny else FULL
    folder = given.folder or (WORK / "tiny" if given.tiny else WORK)
    _base.enter(folder)
    started = time.monotonic()
    mergekit_lines.register()
    get_base(size)
    get_policies(size)
    show(get_front(size), size)
    print(
        f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes, {cpu_seconds() / 60:.1f} CPU "
        "minutes (this run; a step that was already there was not run again)."
    )


if __name__ == "__main__":
    run(main, "to go on from there")
