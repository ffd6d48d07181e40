"""Vision: a ViT and a ConvNeXt, small and pre-trained here, fine-tuned, then edited and merged.

Two questions of the paper, on images: what does a model that was fine-tuned on one task forget, and
does LiNeS give it back; and does a merge of three such models gain by it? Choices are made on
validation images, and reported on test images. See vision.sh, _images.py and _image_models.py.
"""

from __future__ import annotations

import json
import logging
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _image_accuracy
import _images
import finetune
from _base import say
from _image_models import ARCHITECTURES, get_tuned
from _model import run
from _stories import PRE_TRAINED, Measure, OverSeeds, as_they_are, inside, over_seeds, told_apart
from finetune import Size
from forgetting import (
    BEST,
    EQUAL,
    FINE_TUNED,
    OUTSIDE,
    REVERSED,
    RIVALS,
    ROWS,
    Edited,
    differences,
    edited,
    ratio_of,
)
from many_tasks import BETAS, PLAIN, TINY_BETAS, Inputs, Merged, inputs, merged, numbers
from tqdm import tqdm

import mergekit_lines
from mergekit_lines import figures
from mergekit_lines.console import new_table, open_console, print_table
from mergekit_lines.figures.drawing import fit_height, legend_below, number_ticks, plain_axes
from mergekit_lines.figures.parts import looks_of
from mergekit_lines.search.bench import LINES

NAME = "vision"
FULL = Size(_images.TASKS, 150, 300, 1000, 120, 32, 1e-3)
TINY = Size(_images.TINY_TASKS, 16, 24, 64, 8, 8, 1e-3, small=True)
PRE_TRAINING = FULL._replace(steps=400, batch=96)
TINY_PRE_TRAINING = TINY._replace(steps=20, batch=16)
MERGES = ("task arithmetic", "TIES, mergekit's")
WAYS = (PLAIN, BEST, EQUAL, LINES)
SIGHT = Measure(
    "python:_image_accuracy:tasks",
    _image_accuracy.tasks,
    Path(_image_accuracy.__file__),
    str(_image_accuracy.FOLDER),
)


class Story(NamedTuple):
    """What came out for one architecture, over all seeds."""

    edits: list[Edited]
    inputs: list[Inputs]
    merges: list[Merged]

    @property
    def unseen(self) -> str:
        """The task that no model was fine-tuned on."""
        own = self.inputs[0]
        return next(task for task in own.base if task not in own.tuned)

    def edit(self, way: str) -> list[OverSeeds]:
        """Return normalised accuracies of a way of editing: on targets, and on controls."""
        return [over_seeds(ratio_of(self.edits, way, place)) for place in (0, 1)]

    def merge(self, merge: str, way: str) -> list[OverSeeds]:
        """Return normalised accuracies of a merge: on its tasks, and on the unseen one."""
        of_seed = {each.seed: each.test[way][self.unseen] for each in self._of(merge)}
        kept = [of_seed[own.seed] / own.base[self.unseen] for own in self.inputs]
        return [over_seeds(self._numbers(merge, way)), over_seeds(kept)]

    def merge_difference(self, merge: str, way: str) -> OverSeeds:
        """Return LiNeS minus another way of a merge, on its tasks."""
        pairs = zip(self._numbers(merge, LINES), self._numbers(merge, way), strict=True)
        return over_seeds([own - other for own, other in pairs])

    def _of(self, merge: str) -> list[Merged]:
        return [each for each in self.merges if each.merge == merge]

    def _numbers(self, merge: str, way: str) -> list[float]:
        return numbers(self.inputs, self.merges, merge, way)


# --- one architecture ----------------------------------------------------------------------------


def told(
    size: Size, targets: Sequence[str], betas: Sequence[float], seeds: int, threads: int | None
) -> Story:
    """Edit and merge the models of one architecture, in whose folder this is."""
    story, alone = Story([], [], []), targets[:1] if size.small else targets
    total = seeds * (len(alone) + len(MERGES))
    with tqdm(total=total, desc="   editing and merging", leave=False, disable=None) as bar:
        for seed in range(seeds):
            with inside(Path(f"seed-{seed}")):
                accuracies = as_they_are(targets, SIGHT)
                story.inputs.append(inputs(seed, targets, SIGHT))
                for target in alone:
                    story.edits.append(edited(size, seed, target, accuracies, threads, SIGHT))
                    bar.update()
                for merge in MERGES:
                    story.merges.append(merged(seed, merge, targets, betas, threads, SIGHT))
                    bar.update()
    return story


# --- what came out -------------------------------------------------------------------------------


def show(stories: Mapping[str, Story], seeds: int) -> None:
    say("3/3  what came out: test images, percent, ± standard error over seeds")
    for name, story in stories.items():
        print(f"   {name}: {', '.join(_as_they_are(story))}", flush=True)
    print(
        "   below: accuracy over the fine-tuned models' (targets, merged tasks) and over the\n"
        "   pre-trained one's (controls); LiNeS minus another way: points (95% interval over\n"
        "   seeds) of (2·target + controls)/3 for edits, of the merged tasks for merges",
        flush=True,
    )
    heads = [
        f"{name}: {column}"
        for name in stories
        for column in ("target", "controls", "LiNeS minus it")
    ]
    table = new_table("", *heads)
    for label, cells in rows(stories):
        table.add_row(label, *cells)
    print_table(open_console(), table)
    if seeds > 1:
        words = {1: "is higher than", -1: "is lower than", 0: "may equal"}
        for name, story in stories.items():
            gaps = {way: differences(story.edits, way)[2] for way in RIVALS}
            gaps |= {
                f"{merge}, {way}": story.merge_difference(merge, way)
                for merge in MERGES
                for way in WAYS[:-1]
            }
            sentence = f"{name}, by these intervals: LiNeS {told_apart(gaps, words)}."
            print("\n" + textwrap.fill(sentence, 88, initial_indent="   ", subsequent_indent="   "))


def _as_they_are(story: Story) -> Iterator[str]:
    """Yield accuracies of each task: pre-trained and, where one is, fine-tuned."""
    for task in story.inputs[0].base:
        before = over_seeds([own.base[task] for own in story.inputs]).text
        after = [own.tuned[task] for own in story.inputs if task in own.tuned]
        yield f"{task} {before}" + (f" -> {over_seeds(after).text}" if after else "")


def rows(stories: Mapping[str, Story]) -> Iterator[tuple[str, list[str]]]:
    """Yield the lines of the table: a name, and three numbers for each architecture."""
    for way in (*ROWS, *OUTSIDE.values()):
        cells: list[str] = []
        for story in stories.values():
            gap = differences(story.edits, way)[2].interval if way in RIVALS else "-"
            cells += [*(number.text for number in story.edit(way)), gap]
        yield way, cells
    for merge in MERGES:
        for way in WAYS:
            cells = []
            for story in stories.values():
                gap = "-" if way == LINES else story.merge_difference(merge, way).interval
                cells += [*(number.text for number in story.merge(merge, way)), gap]
            yield f"{merge}: {way}", cells


def draw(stories: Mapping[str, Story], path: Path) -> None:
    """Draw both normalised accuracies of every way: edits above, merges below; bars are errors."""
    looks = looks_of([LINES, EQUAL, FINE_TUNED, BEST, REVERSED, PLAIN])
    with figures.page(path) as figure:
        handles: dict[str, Any] = {}
        panels = figure.subplots(2, len(stories), squeeze=False)
        for column, (name, story) in enumerate(stories.items()):
            edits = {way: story.edit(way) for way in ROWS if way != PRE_TRAINED}
            _draw_ways(panels[0, column], edits, looks, "full", handles)
            for merge, filled in zip(MERGES, ("full", "none"), strict=True):
                ways = {way: story.merge(merge, way) for way in WAYS}
                _draw_ways(panels[1, column], ways, looks, filled, handles)
            panels[0, column].set_title(f"{name}: one model, edited", fontsize=11)
            panels[1, column].set_title(f"{name}: merged", fontsize=11)
            panels[0, column].set_xlabel("target, normalised, percent")
            panels[1, column].set_xlabel("merged tasks, normalised, percent; TIES: hollow")
        panels[0, 0].set_ylabel("controls, normalised, percent")
        panels[1, 0].set_ylabel(f"{story.unseen}, normalised, percent")
        legend_below(figure, list(handles.values()))
        fit_height(figure, panels[0, 0], 2, 2.6)


def _draw_ways(
    axes: Any,
    ways: Mapping[str, Sequence[OverSeeds]],
    looks: Mapping[str, Mapping[str, Any]],
    filled: str,
    handles: dict[str, Any],
) -> None:
    """Draw a point for each way, with its standard errors where there are several seeds."""
    for way, (across, up) in ways.items():
        dot = {"marker": looks[way]["marker"], "color": looks[way]["color"]}
        drawn = axes.errorbar(
            [100 * across.mean],
            [100 * up.mean],
            xerr=None if across.error != across.error else [100 * across.error],
            yerr=None if up.error != up.error else [100 * up.error],
            linestyle="none",
            markersize=7,
            elinewidth=1,
            capsize=2,
            markerfacecolor=looks[way]["color"] if filled == "full" else "white",
            label=way,
            **dot,
        )
        handles.setdefault(way, drawn)
    plain_axes(axes, "both")
    axes.locator_params(nbins=6)  # more run into each other in half a page
    number_ticks(axes.xaxis)
    number_ticks(axes.yaxis)


def main() -> None:
    started = time.monotonic()
    options = finetune.arguments(__doc__).parse_args()
    size = finetune.begin(options, NAME, (FULL, TINY))
    how, betas = (TINY_PRE_TRAINING, TINY_BETAS) if size.small else (PRE_TRAINING, BETAS)
    targets = [task for task in size.tasks if task != size.tasks[0]]  # the first: a control alone
    mergekit_lines.register()
    logging.getLogger().setLevel(logging.ERROR)  # mergekit tells of each architecture it infers
    stories = {}
    for number, name in enumerate(ARCHITECTURES, 1):
        say(f"{number}/3  {name}: pre-trained, then fine-tuned on {', '.join(targets)}")
        folder = Path(name.lower())
        folder.mkdir(exist_ok=True)
        with inside(folder):
            get_tuned(name, size, how, options.seeds, targets)
            stories[name] = told(size, targets, betas, options.seeds, options.num_threads)
    file, figure = Path("vision.json"), Path("vision.png")
    file.write_text(json.dumps(_numbers(stories), indent=1), encoding="utf-8")
    show(stories, options.seeds)
    draw(stories, figure)
    print(f"\n   the figure: {figure.resolve()}")
    print(f"   every number: {file.resolve()}")
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")


def _numbers(stories: Mapping[str, Story]) -> dict[str, Any]:
    return {
        name: {
            field: [each._asdict() for each in entries]
            for field, entries in story._asdict().items()
        }
        for name, story in stories.items()
    }


if __name__ == "__main__":
    run(main, "to go on from the last whole step")
