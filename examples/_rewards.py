"""The two rewards of the rewarded soup. Both need no network, and of both more is better.

They have the form of ``rewards:module:function``: lists of prompts and completions in, a number
for each completion out. The functions' names are the names of the metrics.
"""

from __future__ import annotations

import textstat
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

LOWEST = -20.0  # grades; in 32 tokens one endless word would outweigh all other texts
WORDS = 5  # of fewer the index tells nothing, and saying nothing must not be rewarded

_VADER = SentimentIntensityAnalyzer()


def vader_compound(_prompts: list[str], completions: list[str]) -> list[float]:
    """Return VADER's compound sentiment of each completion, from -1 to 1 (glad)."""
    return [_VADER.polarity_scores(text)["compound"] for text in completions]


def minus_ari(_prompts: list[str], completions: list[str]) -> list[float]:
    """Return the automated readability index of each completion, a US school grade, negated.

    It is at least ``LOWEST``, which is also what a completion of fewer than ``WORDS`` words gets.
    """
    return [
        max(LOWEST, -textstat.automated_readability_index(text))
        if len(text.split()) >= WORDS
        else LOWEST
        for text in completions
    ]
