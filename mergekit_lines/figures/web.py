"""Points of a search as one HTML page to look at: hover, switch, click, and copy a recipe.

The page holds its data, its own script and plotly's, and loads nothing. What others named reaches
it as JSON, and from there as text: no name is ever HTML.
"""

from __future__ import annotations

import hashlib
import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from mergekit_lines.errors import LinesError, visible
from mergekit_lines.figures.parts import looks_of
from mergekit_lines.figures.web_script import SCRIPT, STYLE

MOST_POINTS = 20_000
MOST_CHARACTERS = 32 << 20  # of all recipes together
LETTERS = 120  # of a name or a value that are shown
IN_HOVER = 10  # settings, and scores, that a hover shows; the click shows all
# No script runs but those of these digests. Nothing is fetched or sent, though older releases of
# plotly ask for a style of their maps; it sets styles and draws images itself.
_POLICY = (
    "default-src 'none'; script-src {}; style-src 'unsafe-inline'; "
    "img-src data: blob:; form-action 'none'; base-uri 'none'"
)
_SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down"}


@dataclass(frozen=True)
class Axis:
    """What points can be drawn over.

    Attributes:
        name: of a score or a setting.
        direction: 1 where more is better, -1 where less is, 0 for what is no score.
    """

    name: str
    direction: int = 0


@dataclass(frozen=True)
class Dot:
    """A point of the page.

    Attributes:
        way: what it is one of, the word of the legend: LiNeS, unscaled, ….
        values: one for each axis; what is None or not finite is not drawn.
        settings: what tells it from the others, by name.
        scores: the words for its scores, by name.
        recipe: as YAML, to be copied.
        chosen: whether the search chose it.
    """

    way: str
    values: Sequence[float | None]
    settings: Mapping[str, str]
    scores: Mapping[str, str]
    recipe: str
    chosen: bool = False


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        title: of it.
        axes: those that can be chosen.
        across: number of the axis that is drawn across at first.
        up: number of the axis that is drawn upwards at first.
        dots: the points.
        front_of: the way whose front is drawn.
        notes: sentences under the title.
    """

    title: str
    axes: Sequence[Axis]
    across: int
    up: int
    dots: Sequence[Dot]
    front_of: str
    notes: Sequence[str] = field(default_factory=tuple)


def check_plotly(where: str) -> None:
    """Check that plotly is there.

    Raises:
        LinesError: it is not; with what to install.
    """
    try:
        import plotly  # noqa: F401 - a look whether it is there
    except ImportError as error:
        raise LinesError(
            f"{where}: {error.name or 'plotly'} is not installed, which draws the page. Install "
            f"it with `pip install 'mergekit-lines[plot]'`."
        ) from error


def html_of(page: Page, where: str) -> str:
    """Return a page as HTML, whole in itself.

    Args:
        page: what it shows.
        where: what is said first of a problem.

    Raises:
        LinesError: plotly is not there, or there are no points or too many.
    """
    check_plotly(where)
    from plotly.offline import get_plotlyjs

    _check_size(page, where)
    # With the line ends that a browser makes of them before it takes the digest.
    library = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
    policy = _POLICY.format(" ".join(map(_digest, (library, SCRIPT))))
    title = escape(shown(page.title))
    notes = "".join(f"<p>{escape(visible(note))}</p>" for note in page.notes)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>{notes}"
        f"{_BODY}"
        f'<script type="application/json" id="figure">{_json(_figure(page))}</script>'
        f'<script type="application/json" id="data">{_json(_data(page))}</script>'
        f"<script>{library}</script><script>{SCRIPT}</script></body></html>\n"
    )


_BODY = (
    '<form class="bar"><label>across <select id="across"></select></label>'
    '<label>up <select id="up"></select></label><span id="switches"></span></form>'
    '<div id="plot"></div><section id="point" aria-live="polite">'
    '<p id="hint">Click a point for its settings, its scores and its recipe.</p>'
    '<div id="details" hidden><h2 id="name"></h2><table id="table"></table>'
    '<p><button id="copy" type="button">Copy the recipe</button> <span id="copied"></span></p>'
    '<pre id="recipe"></pre></div></section>'
)


def _digest(script: str) -> str:
    """Return what a policy calls a script by."""
    return f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


def _check_size(page: Page, where: str) -> None:
    if not page.dots:
        raise LinesError(f"{where}: there is no point to show.")
    if len(page.dots) > MOST_POINTS:
        raise LinesError(
            f"{where}: found {len(page.dots):,} points, wanted at most {MOST_POINTS:,}: a browser "
            f"shows no more in one page."
        )
    characters = sum(len(dot.recipe) for dot in page.dots)
    if characters > MOST_CHARACTERS:
        raise LinesError(
            f"{where}: the recipes of its points are {characters:,} characters, wanted at most "
            f"{MOST_CHARACTERS:,} in one page."
        )


def shown(text: str) -> str:
    """Return a name or a value as it may be shown: on one line, cut where it is long."""
    text = visible(text[: 2 * LETTERS])
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def _json(content: Any) -> str:
    """Return JSON that ends no script, whatever it says."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _drawn(text: str) -> str:
    """Return a text for plotly, which reads a little HTML in what it draws."""
    return escape(shown(text), quote=False)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _data(page: Page) -> dict[str, Any]:
    dots = [
        {
            "way": shown(dot.way),
            "values": [_finite(value) for value in dot.values],
            "settings": [[shown(name), shown(value)] for name, value in dot.settings.items()],
            "scores": [[shown(name), shown(value)] for name, value in dot.scores.items()],
            "recipe": dot.recipe,
            "chosen": dot.chosen,
        }
        for dot in page.dots
    ]
    return {
        "axes": [
            {"name": shown(axis.name), "drawn": _title(axis), "direction": axis.direction}
            for axis in page.axes
        ],
        "across": page.across,
        "up": page.up,
        "dots": dots,
        "frontOf": shown(page.front_of),
    }


def _title(axis: Axis) -> str:
    return _drawn(axis.name) + (" (less is better)" if axis.direction < 0 else "")


def _figure(page: Page) -> dict[str, Any]:
    """Return plotly's figure: one trace for each way, then the front and the chosen ones.

    The coordinates are set by the page's script, which knows what is chosen to be drawn.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    ways = sorted(dict.fromkeys(dot.way for dot in page.dots), key=lambda way: way != page.front_of)
    for way, look in looks_of(ways).items():
        numbers = [number for number, dot in enumerate(page.dots) if dot.way == way]
        figure.add_scatter(
            mode="markers",
            name=_drawn(way),
            customdata=numbers,
            hovertext=[_hover(page.dots[number]) for number in numbers],
            hoverinfo="text",
            marker={
                "color": look["color"],
                "symbol": _SYMBOLS.get(str(look["marker"]), "circle"),
                "size": 9,
                "opacity": 0.8,
            },
        )
    colour = looks_of(ways).get(page.front_of, {}).get("color", "#222222")
    figure.add_scatter(
        mode="lines", name="front", hoverinfo="skip", line={"color": colour, "width": 2}
    )
    figure.add_scatter(
        mode="markers",
        name="chosen",
        hoverinfo="skip",
        marker={"symbol": "circle-open", "size": 17, "color": "#222222", "line": {"width": 2}},
    )
    figure.update_layout(
        template="plotly_white",
        hovermode="closest",
        clickmode="event",
        margin={"l": 80, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "y": -0.18, "itemclick": False, "itemdoubleclick": False},
        hoverlabel={"align": "left", "namelength": -1},
        font={"family": "system-ui, sans-serif", "size": 14, "color": "#222222"},
        showlegend=True,
    )
    content: dict[str, Any] = json.loads(figure.to_json())
    return content


def _hover(dot: Dot) -> str:
    lines = [f"<b>{_drawn(dot.way)}</b>{' (chosen)' if dot.chosen else ''}"]
    for part, sign in ((dot.settings, " = "), (dot.scores, ": ")):
        items = list(part.items())
        lines += [f"{_drawn(name)}{sign}{_drawn(value)}" for name, value in items[:IN_HOVER]]
        lines += [f"… {len(items) - IN_HOVER} more"] if len(items) > IN_HOVER else []
    return "<br>".join(lines)
