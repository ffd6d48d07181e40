"""Bytes of memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Peak anonymous memory of a run in bytes, and what it is made of.

    Args:
        process: the imported packages and the plan; None where the system does not tell.
        tensor: what is held of the tensor that takes most: its pieces on every thread, and its
            inputs and the method's own temporaries where it cannot be merged in pieces. On an
            accelerator the temporaries are there, and are counted all the same.
        loaded: what peft makes anew in merging an adapter into its base, before the merge.
        total: the peak; None where ``process`` is.
        device: where the arithmetic is done.
    """

    process: int | None
    tensor: int
    loaded: int
    total: int | None
    device: str
