"""Sizes on the command line."""

from __future__ import annotations

import click


def shard_size(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    """Return the bytes of a size as mergekit writes it: 500M, 5B."""
    if text is None:
        return None
    from mergekit.common import parse_kmb

    try:
        return int(parse_kmb(text))
    except (ValueError, IndexError):
        raise click.BadParameter(f"found {text!r}, wanted a size such as 500M or 5B") from None
