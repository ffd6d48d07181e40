"""The package's names, loaded when they are asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mergekit_lines


def test_names_are_lazy() -> None:
    """Every public name resolves, ``dir`` lists it, and light ones import neither torch nor click.

    ``block_depths`` needs click for its errors only, and no torch.
    """
    assert set(mergekit_lines.__all__) <= set(dir(mergekit_lines))
    for name in mergekit_lines.__all__:
        assert getattr(mergekit_lines, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'scale'"):
        mergekit_lines.scale  # noqa: B018
    program = (
        "import sys, mergekit_lines; dir(mergekit_lines); mergekit_lines.Schedule(0.1, 0.2)\n"
        "assert not {'torch', 'mergekit', 'click'} & set(sys.modules)\n"
        "mergekit_lines.block_depths(['h.0.a', 'h.1.a'])\n"
        "assert not {'torch', 'mergekit'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
