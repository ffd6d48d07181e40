"""A deep look as one HTML page: tables, warnings and the picture, with nothing to load."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from mergekit_lines._version import __version__
from mergekit_lines.errors import LinesError, visible
from mergekit_lines.inspection.deep import Depth, Look
from mergekit_lines.inspection.findings import Inspection
from mergekit_lines.inspection.landscape import looks_as_png
from mergekit_lines.inspection.look_tables import cells, columns, look_lines

# No script, no address: what a stranger named a model stays text, and nothing is fetched.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } .wide { overflow-x: auto; }
.warning { background: #fff4e5; border-left: 4px solid #d55e00; padding: .5rem .8rem;
  margin: .5rem 0; }
.fine { border-left: 4px solid #009e73; padding: .5rem .8rem; } .small { color: #555; }
"""


def write_page(inspections: Sequence[Inspection], title: str, path: Path) -> None:
    """Write the page.

    Args:
        inspections: of a recipe file's documents.
        title: what was inspected.
        path: of the page.

    Raises:
        LinesError: matplotlib is not there, nothing was looked at, or the file cannot be written.
    """
    where = f"--page {path}"
    if not any(one.deep for one in inspections):
        raise LinesError(f"{where}: no document of {title} was looked at: see the notes above.")
    drawable = any(one.deep and one.deep.depths for one in inspections)
    png = looks_as_png(inspections, where) if drawable else b""
    picture = base64.b64encode(png).decode("ascii")
    body = "\n".join(_body(inspections, title, picture))
    try:
        path.write_text(body, encoding="utf-8")
    except OSError as error:
        raise LinesError(
            f"{where}: cannot be written ({error.strerror}). Choose another file."
        ) from error


def _body(inspections: Sequence[Inspection], title: str, picture: str) -> Iterator[str]:
    name = _text(title)
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{name}</title><style>{_STYLE}</style></head><body><h1>{name}</h1>"
    for inspection in inspections:
        if inspection.name:
            yield f"<h2>{_text(inspection.name)}</h2>"
        wraps = f" around {', '.join(inspection.wraps)}" if inspection.wraps else ""
        yield f"<p>merge_method {_text(inspection.merge_method + wraps)}</p>"
        yield from (f'<p class="warning">{_text(one)}</p>' for one in inspection.troubles)
        if inspection.deep and not inspection.troubles:
            yield '<p class="fine">Nothing was found that makes merges fail.</p>'
    alt = "change, agreement, effective rank and coefficient of every block"
    if picture:
        yield f'<p><img alt="{alt}" src="data:image/png;base64,{picture}"></p>'
    for inspection in inspections:
        if inspection.deep:
            yield from _tables(inspection.deep)
    yield f'<p class="small">mergekit-lines {__version__}</p></body></html>\n'


def _tables(look: Look) -> Iterator[str]:
    for container, group in groupby(look.depths, key=lambda depth: depth.container):
        if container:
            yield _table(look, container, list(group))
    rest = [depth for depth in look.depths if not depth.index]
    yield _table(look, "over all", [*rest, look.total])
    yield from (f'<p class="small">{_text(line)}</p>' for line in look_lines(look))


def _table(look: Look, title: str, depths: Sequence[Depth]) -> str:
    head = "".join(f"<th>{_text(one)}</th>" for one in columns(look))
    rows = "".join(
        "<tr>" + "".join(f"<td>{_text(one)}</td>" for one in cells(look, depth)) + "</tr>"
        for depth in depths
    )
    return (
        f'<div class="wide"><table><caption>{_text(title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _text(text: str) -> str:
    return escape(visible(text))
