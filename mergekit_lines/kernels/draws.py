"""Random draws by entry: a hash of (key, flat index), the same whatever the pieces."""

from __future__ import annotations

import functools
import hashlib
import struct
import threading
from collections.abc import Iterator

import torch

_WORD = 1 << 32
# Odd multipliers with even avalanche: 2³²/φ (prime), then the two of MurmurHash3's finalizer.
_FIRST, _SECOND, _THIRD = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35


MOST_HELD = 1 << 22  # entries of a tensor that a thread keeps for its next draws
_HELD = threading.local()


class Draws:
    """Draws for one run of entries of a tensor.

    A draw is a uniform 32-bit integer and depends on nothing but the key and the entry's
    flat index: not on where the run begins, nor on threads, nor on the device.

    Args:
        start: flat index of the first entry.
        count: number of entries; below 2³¹.
        device: where the draws are made.
    """

    def __init__(self, start: int, count: int, device: torch.device) -> None:
        self.start = start
        self.count = count
        self._indices = _reused("indices", count, device)
        self._scratch = _reused("scratch", count, device)

    def draw(self, key: bytes, *, lasting: bool = True) -> torch.Tensor:
        """Return one draw per entry, 1-D int32, uniform over −2³¹ … 2³¹ − 1.

        Args:
            key: 16 or more bytes.
            lasting: whether the tensor is the caller's; otherwise it is valid until the same
                thread's next draw.
        """
        indices = self._indices
        own = torch.empty_like(indices) if lasting else None
        drawn = _reused("drawn", self.count, indices.device) if own is None else own
        for begin, end, low, salts in self._segments(key):
            run, scratch = drawn[begin:end], self._scratch[begin:end]
            torch.add(self._indices[: end - begin], _signed(low + salts[0]), out=run)
            run.mul_(_signed(_FIRST))
            _fold(run, scratch, 16)
            run.bitwise_xor_(_signed(salts[1])).mul_(_signed(_SECOND))
            _fold(run, scratch, 15)
            run.bitwise_xor_(_signed(salts[2])).mul_(_signed(_THIRD))
            _fold(run, scratch, 16)
        return drawn

    def _segments(self, key: bytes) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
        """Cut the run where the index's high word changes; it goes into the key."""
        begin = 0
        while begin < self.count:
            high, low = divmod(self.start + begin, _WORD)
            end = min(self.count, begin + _WORD - low)
            yield begin, end, low, words(key, high)
            begin = end


@functools.lru_cache(maxsize=64)  # every piece of a tensor asks for the same
def words(key: bytes, high: int) -> tuple[int, int, int]:
    """Return the three words of 32 bits that a key is for indexes of one high word."""
    digest = hashlib.blake2b(key + high.to_bytes(8, "little"), digest_size=12).digest()
    first, second, third = struct.unpack("<3I", digest)
    return first, second, third


def _reused(name: str, count: int, device: torch.device) -> torch.Tensor:
    """Return ``count`` int32 entries that are this thread's; of ``indices`` they are 0, 1, ….

    A fresh megabyte is filled with zeros by the system, page by page, which takes several times
    as long as what is computed in it.
    """
    held: dict[tuple[str, str], torch.Tensor] = _HELD.__dict__.setdefault("tensors", {})
    entries = held.get((name, str(device)))
    if entries is None or len(entries) < count:
        with torch.inference_mode(mode=False):  # it may be written to outside of that mode
            entries = torch.arange(count, dtype=torch.int32, device=device)
        if count <= MOST_HELD:
            held[name, str(device)] = entries
    return entries[:count]


def bound(probability: float) -> int:
    """Return b such that a draw is below b with ``probability``, to within 2⁻³²."""
    return min(max(round(probability * _WORD), 0), _WORD - 1) - (_WORD >> 1)


def bounds(probabilities: torch.Tensor) -> torch.Tensor:
    """Return :func:`bound` of every probability, as int32.

    Args:
        probabilities: float64, overwritten.
    """
    drawn = probabilities.mul_(_WORD).round_().clamp_(0, _WORD - 1).sub_(_WORD >> 1)
    return drawn.to(torch.int32)


def mask(tensor: torch.Tensor, kept: torch.Tensor) -> None:
    """Set entries of ``tensor`` to zero where ``kept`` is 0; keep them where it is 1.

    Args:
        tensor: 1-D, fp32 or float64, changed in place.
        kept: int32 of the same shape, zeros and ones.
    """
    # Bit patterns times 0 or 1: several times faster than a bool mask in PyTorch.
    words = torch.int64 if tensor.dtype == torch.float64 else torch.int32
    tensor.view(words).mul_(kept)


def _fold(run: torch.Tensor, scratch: torch.Tensor, shift: int) -> None:
    """XOR with itself shifted right; int32 shifts drag the sign along, so it is masked off."""
    torch.bitwise_right_shift(run, shift, out=scratch)
    run.bitwise_xor_(scratch.bitwise_and_((1 << (32 - shift)) - 1))


def _signed(word: int) -> int:
    return (word + (_WORD >> 1)) % _WORD - (_WORD >> 1)
