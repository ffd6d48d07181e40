"""Sentences spoken by espeak-ng, and how many of their words a transcription has wrong."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path

import espeakng_loader
import numpy as np
from scipy.signal import resample_poly

# espeak-ng's voice, words per minute, pitch from 0 to 100.
VOICES = {"scots": ("en-gb-scotland", 180, 30), "high": ("en-us", 180, 90)}
RATE = 16_000  # samples per second, as Whisper hears
_RETRIEVAL, _WORDS_PER_MINUTE, _PITCH, _UTF8 = 2, 1, 3, 1  # of espeak-ng's speak_lib.h
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@cache
def _library() -> tuple[ctypes.CDLL, int]:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = Path(espeakng_loader.get_data_path()).parent
    return library, library.espeak_Initialize(_RETRIEVAL, 0, str(data).encode(), 0)


@cache
def spoken(sentence: str, voice: str) -> np.ndarray:
    """Return the samples of a sentence in one voice, between -1 and 1."""
    library, rate = _library()
    name, words, pitch = VOICES[voice]
    chunks = []

    def keep(samples, count: int, _events) -> int:
        if samples and count:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(keep)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetVoiceByName(name.encode())
    library.espeak_SetParameter(_WORDS_PER_MINUTE, words, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    text = sentence.encode()
    library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    whole = np.concatenate(chunks).astype(np.float32) / 2**15
    return resample_poly(whole, RATE, rate).astype(np.float32)


def word_errors(heard: list[str], sentences: list[str]) -> float:
    """Return words that are wrong, missing or too many, over the words that were spoken."""
    pairs = [(_words(one), _words(other)) for one, other in zip(heard, sentences, strict=True)]
    return sum(_edits(*pair) for pair in pairs) / sum(len(other) for _, other in pairs)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _edits(first: list[str], second: list[str]) -> int:
    """Return the Levenshtein distance of two lists of words."""
    row = list(range(len(second) + 1))
    for number, word in enumerate(first, 1):
        above, row = row, [number]
        for place, other in enumerate(second):
            row.append(min(above[place] + (word != other), above[place + 1] + 1, row[-1] + 1))
    return row[-1]
