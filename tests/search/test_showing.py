"""``mergekit-lines show``: a search's results as a page, opened and clicked in a real browser."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mergekit_lines import LinesError
from mergekit_lines.cli import main
from mergekit_lines.figures.web import Dot
from mergekit_lines.search.showing import INPUT, SEARCHED, page_of, show
from mergekit_lines.search.store import RESULTS, SEARCH
from tests.search.searched import HOSTILE, recipe, sweep_folder, write_lines

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def line(made: dict[str, Any], mean: float | None = 0.5, **values: Any) -> dict[str, Any]:
    metrics = {
        name: {"value": value, "higher_is_better": True, "examples": None, "origin": "x"}
        for name, value in values.items()
    }
    return {"split": "validation", "recipe": made, "mean": mean, "metrics": metrics, "seconds": 1}


def of_way(dots: Any, way: str) -> list[Dot]:
    return [dot for dot in dots if dot.way == way]


# --- what is on the page -------------------------------------------------------------------


def test_every_point_has_its_own_recipe(tmp_path: Path) -> None:
    """The recipes of the points are those that were measured, as ``best.yml`` is written."""
    recipes = sweep_folder(tmp_path)
    dots = of_way(page_of(tmp_path).dots, "LiNeS")
    assert [yaml.safe_load(dot.recipe) for dot in dots] == recipes
    best = (tmp_path / "best.yml").read_text()
    assert [dot.recipe for dot in dots if dot.chosen] == [best.partition("# Chosen\n")[2]]
    assert [dot.settings["beta"] for dot in dots][:3] == ["0.1", "0.2", "0.3"]


def test_tells_what_stands_beside(tmp_path: Path) -> None:
    """Unscaled and uniform merges, and models as they are, are told from the sweep's points."""
    sweep_folder(tmp_path)
    dots = page_of(tmp_path).dots
    assert {way: len(of_way(dots, way)) for way in {dot.way for dot in dots}} == {
        "LiNeS": 10,
        "unscaled": 1,
        "uniform, equal mean": 10,
        INPUT: 3,
    }
    assert of_way(dots, INPUT)[2].settings == {"model": f"models/{HOSTILE}"}


def test_uniform_trials_of_a_search(tmp_path: Path) -> None:
    """Where proposals were made, uniform coefficients that stand beside none were searched."""
    flat = line(recipe(alpha=0.7, beta=0.0), 0.7, acc=0.4)
    write_lines(tmp_path, line(recipe(alpha=0.1, beta=0.5), 0.3, acc=0.5), flat)
    assert [dot.way for dot in page_of(tmp_path).dots] == ["LiNeS", "LiNeS"]
    (tmp_path / "trials.db").touch()
    assert [dot.way for dot in page_of(tmp_path).dots] == ["LiNeS", SEARCHED]


def test_roundings_of_a_mean_do_not_make_a_baseline_lines(tmp_path: Path) -> None:
    """Uniform coefficients are what they are, whatever the sum over 30 blocks rounds to."""
    lines, ways = [], []
    for number in range(60):
        alpha, beta = 0.1 + 0.007 * number, 0.3 + 0.013 * number
        mean = statistics.fmean(alpha + beta * block / 29 for block in range(30))
        flat = float(f"{mean:.12g}")  # as searches measure it
        lines.append(line(recipe(alpha=alpha, beta=beta), mean, acc=0.5))
        of_flat = statistics.fmean([flat] * 30)
        lines.append(line(recipe(alpha=flat, beta=0.0), of_flat, acc=0.4))
        ways += ["LiNeS", "uniform, equal mean"]
    for number in range(60):
        alpha = 0.0137 * (number + 1)
        own = statistics.fmean([alpha] * 30)
        lines.append(line(recipe(alpha=alpha, beta=0.0), own, acc=0.3))
        ways.append(SEARCHED)
    write_lines(tmp_path, *lines)
    (tmp_path / "trials.db").touch()
    assert [dot.way for dot in page_of(tmp_path).dots] == ways


def test_mean_is_scored_beside_the_models(tmp_path: Path) -> None:
    """The objective of the paper: the mean over the metrics of value over the best fine-tuned."""
    sweep_folder(tmp_path)
    page = page_of(tmp_path)
    assert [axis.name for axis in page.axes[:3]] == ["mean", "math", "chat"]
    for dot in of_way(page.dots, "LiNeS"):
        mean, math_, chat = (float(value or 0) for value in dot.values[:3])
        assert math.isclose(mean, (math_ / 0.6 + chat / 0.4) / 2)


def test_objectives_of_ones_own(tmp_path: Path) -> None:
    """``--objective`` adds a score; one of a metric that is not there is told."""
    sweep_folder(tmp_path, metrics=3)
    page = page_of(tmp_path, ["math - chat", "code"])
    assert [axis.name for axis in page.axes[:4]] == ["math - chat", "code", "math", "chat"]
    dot = of_way(page.dots, "LiNeS")[0]
    assert dot.values[0] == dot.values[2] - dot.values[3]  # type: ignore[operator]
    with pytest.raises(LinesError, match="--objective speed has no value anywhere"):
        page_of(tmp_path, ["speed"])


def test_scores_on_both_splits_have_their_errors(tmp_path: Path) -> None:
    """The standard error is the deviation of the examples over the root of their number."""
    own = line(recipe(beta=0.1), acc=0.5)
    own["metrics"]["acc"]["examples"] = [0.4, 0.6]
    write_lines(tmp_path, own, {**own, "split": "test"})
    (dot,) = page_of(tmp_path).dots
    assert dot.scores == {"acc": "0.5 ± 0.1", "acc, on test data": "0.5 ± 0.1"}


def test_soups_are_drawn_by_their_weights(tmp_path: Path) -> None:
    """Two metrics are drawn one over the other, and the weights that differ are the settings."""
    soups = [recipe(alpha=0.1, beta=0.5) for _ in range(3)]
    for number, each in enumerate(soups):
        each["models"][0]["parameters"]["weight"] = number / 2
        each["models"][1]["parameters"]["weight"] = 1 - number / 2
    write_lines(tmp_path, *(line(each, help=n, brief=-n) for n, each in enumerate(soups)))
    page = page_of(tmp_path)
    assert [page.axes[n].name for n in (page.across, page.up)] == ["help", "brief"]
    assert page.dots[1].settings == {
        "models.0.parameters.weight": "0.5",
        "models.1.parameters.weight": "0.5",
        "mean coefficient": "0.5",
    }


# --- what a folder may hold ----------------------------------------------------------------


def test_a_last_line_without_its_end_is_left(tmp_path: Path) -> None:
    """A search that still writes is shown as far as it is, and its file is not touched."""
    whole = json.dumps(line(recipe(beta=0.1), acc=0.5)) + "\n"
    write_lines(tmp_path, whole, whole[:40])
    assert len(page_of(tmp_path).dots) == 1
    assert (tmp_path / RESULTS).read_text() == whole + whole[:40]


def test_scores_that_are_no_numbers_are_gaps(tmp_path: Path) -> None:
    """NaN and what failed leave the others on the page, and the failures are counted."""
    failed = {**line(recipe(beta=0.3)), "problems": ["out of memory"]}
    pruned = {**line(recipe(beta=0.4)), "partials": [0.1], "pruned": True}
    lines = [line(recipe(beta=0.1), acc=0.5), line(recipe(beta=0.2), acc=math.nan), failed]
    write_lines(tmp_path, *lines, pruned)
    assert show(tmp_path, tmp_path / "page.html") == 2
    assert page_of(tmp_path).notes[1:] == (
        "Pruned after a part of the data: 1.",
        "Could not be measured: 1.",
    )
    assert "NaN" not in data_of(tmp_path / "page.html")


def data_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text.partition('id="data">')[2].partition("</script>")[0]


def test_one_point_and_two_thousand(tmp_path: Path) -> None:
    """The smallest search has a page, and a long one has all of its points."""
    for number, name in ((1, "one"), (2000, "many")):
        folder = tmp_path / name
        write_lines(folder, *(line(recipe(beta=n / 2000), acc=n) for n in range(number)))
        assert show(folder, folder / "page.html") == number
        assert len(json.loads(data_of(folder / "page.html"))["dots"]) == number
        assert (folder / "page.html").stat().st_size < 12 << 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no measured point"),
        ("no JSON\n", r"results\.jsonl, line 1: is no result"),
        ("[]\n", r"results\.jsonl, line 1: is no result"),
        ('{"split": "validation"}\n', r"results\.jsonl, line 1: is no result"),
        (json.dumps(line({}, 10**400)) + "\n", r"line 1: is no result"),
        (json.dumps(line({}, acc=10**400)) + "\n", r"line 1: is no result"),
        (json.dumps(line([], acc=1)) + "\n", r"line 1: is no result"),  # type: ignore[arg-type]
        (json.dumps(line({"parameters": 7}, acc=1)) + "\n", "a result whose recipe is none"),
    ],
)
def test_results_that_are_none_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """What is no result of a search is told by its line, and no page is written."""
    write_lines(tmp_path, text)
    with pytest.raises(LinesError, match=words):
        show(tmp_path, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    """A folder that is not there, or none of a search, ends the command by one sentence."""
    for folder in (tmp_path / "nowhere", tmp_path):
        done = CliRunner().invoke(main, ["show", str(folder)])
        assert done.exit_code == 1
        assert f"found no {SEARCH} and no {RESULTS}, wanted a folder that sweep" in done.output
    assert not any(tmp_path.iterdir())


# --- in a browser --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of this machine."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser is installed: looked for {', '.join(BROWSERS)}")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox"], timeout=120_000
        )
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page of a sweep as the command writes it, open from its file: without a trouble."""
    sweep_folder(tmp_path)
    done = CliRunner().invoke(main, ["show", str(tmp_path)])
    assert done.exit_code == 0, done.output
    context = browser.new_context(viewport={"width": 1200, "height": 1000})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    troubles, answered, refused = list[str](), list[str](), list[str]()
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda said: troubles.append(said.text))
    tab.on("dialog", lambda dialog: troubles.append(dialog.message))
    tab.on("response", lambda response: answered.append(response.url))
    tab.on("requestfailed", lambda request: refused.append(request.failure))
    tab.goto((tmp_path / "show.html").as_uri())
    tab.wait_for_selector("html[data-ready=yes]", timeout=120_000)
    yield tab
    # Older releases of plotly ask for a style of their maps, which the page's policy refuses.
    assert [
        text for text in troubles if "violates the following Content Security" not in text
    ] == []
    assert set(refused) <= {"csp"}
    assert answered == [(tmp_path / "show.html").as_uri()]
    context.close()


def place_of(tab: Any, trace: int, number: int) -> tuple[float, float]:
    """Return where a point of a trace is on the screen."""
    x, y = tab.evaluate(
        """([trace, number]) => {
            const plot = document.getElementById("plot"), layout = plot._fullLayout;
            const box = plot.getBoundingClientRect(), points = plot.data[trace];
            return [box.x + layout.xaxis._offset + layout.xaxis.d2p(points.x[number]),
                    box.y + layout.yaxis._offset + layout.yaxis.d2p(points.y[number])];
        }""",
        [trace, number],
    )
    return x, y


def test_a_click_shows_the_point_and_copies_its_recipe(opened: Any, tmp_path: Path) -> None:
    """What the button puts on the clipboard is the clicked point's recipe, to the letter."""
    opened.mouse.click(*place_of(opened, 0, 2))
    opened.wait_for_selector("#details:not([hidden])")
    opened.click("#copy")
    # The page's policy lets no text be run as code, which `wait_for_function` may have to.
    opened.wait_for_selector("#copied:text-is('copied')")
    copied = opened.evaluate("navigator.clipboard.readText()")
    assert copied == (tmp_path / "best.yml").read_text().partition("# Chosen\n")[2]
    assert opened.inner_text("#name") == "LiNeS (chosen)"
    assert "beta\t0.3" in opened.inner_text("#table")
    opened.mouse.click(*place_of(opened, 0, 7))
    opened.wait_for_selector("#name:text-is('LiNeS')")
    assert yaml.safe_load(opened.inner_text("#recipe"))["parameters"]["beta"] == 0.8


def test_a_hover_tells_settings_and_scores(opened: Any) -> None:
    """Over a point stand its way, its settings and its scores."""
    opened.mouse.move(*place_of(opened, 0, 2))
    opened.wait_for_selector("g.hovertext")
    told = opened.text_content("g.hovertext")
    for words in ("LiNeS (chosen)", "beta = 0.3", "math: 0.4", "chat: 0.855"):
        assert words in told


def test_what_is_drawn_can_be_switched(opened: Any) -> None:
    """Boxes take the front and the baselines away; other axes move the points."""
    shown = "[...document.getElementById('plot')._fullData].filter(t => t.visible).map(t => t.name)"
    ways = ["LiNeS", INPUT, "unscaled", "uniform, equal mean", "front", "chosen"]
    assert opened.evaluate(shown) == ways
    for way in ("front", "unscaled", INPUT):
        opened.get_by_label(way).uncheck()
    assert opened.evaluate(shown) == ["LiNeS", "uniform, equal mean", "chosen"]
    opened.select_option("#across", label="beta")
    drawn = opened.evaluate("document.getElementById('plot').data[0].x")
    assert drawn == [round(0.1 * n, 6) for n in range(1, 11)]
    # Models as they are have no beta: nothing of them is drawn, and nothing to switch.
    assert opened.get_by_label(INPUT).is_hidden()
    assert opened.get_by_label("unscaled").is_visible()
    opened.select_option("#across", label="math")
    assert opened.get_by_label(INPUT).is_visible()


def test_the_front_is_joined(opened: Any) -> None:
    """The front is that of the points that no other beats: more math, less chat."""
    line_ = opened.evaluate("(({x, y}) => [x, y])(document.getElementById('plot').data.at(-2))")
    betas = [round(0.1 * n, 6) for n in range(10, 0, -1)]
    assert line_ == [[0.3 + b / 3 for b in betas], [0.9 - b**2 / 2 for b in betas]]


def test_a_hostile_name_is_text_in_a_browser(opened: Any) -> None:
    """A model that is called as a script's end is shown by that name, and runs nothing."""
    opened.mouse.click(*place_of(opened, 1, 2))
    opened.wait_for_selector("#details:not([hidden])")
    assert HOSTILE in opened.inner_text("#table")
    assert opened.locator("img[src=x]").count() == 0


def test_a_script_that_slipped_in_does_not_run(browser: Any, tmp_path: Path) -> None:
    """The page's policy runs its own two scripts and no other."""
    sweep_folder(tmp_path)
    show(tmp_path, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    planted = "</h1><script>document.title = 'planted'</script>"
    (tmp_path / "page.html").write_text(text.replace("</h1>", planted, 1), encoding="utf-8")
    tab = browser.new_page()
    tab.goto((tmp_path / "page.html").as_uri())
    tab.wait_for_selector("html[data-ready=yes]", timeout=120_000)
    assert tab.title() != "planted"
    tab.close()
