"""The project's pages for readers: README.md, and one beside each thing that needs more words."""

from __future__ import annotations

import re
from pathlib import Path

import mergekit_lines

ROOT = Path(__file__).parents[1]
PACKAGE = "mergekit_lines"  # its page lies in the wheel, whose place is the installed package


def file(name: str) -> Path:
    """Return where a file of the repository lies, in a checkout or beside an installed wheel."""
    folder, _, rest = name.partition("/")
    return Path(mergekit_lines.__file__).parent / rest if folder == PACKAGE else ROOT / name


PAGES = {
    name: file(name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "recipes/README.md",
        "examples/README.md",
        "mergekit_lines/README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    )
}
README, RECIPES, EXAMPLES, PYTHON = list(PAGES.values())[:4]


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def section(page: str, title: str) -> str:
    """Return what stands under one heading of the second level."""
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def anchors(page: str) -> set[str]:
    """Return the fragments by which a page's headings are reached, as GitHub forms them."""
    page = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
