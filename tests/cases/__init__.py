"""Bad recipes and bad models: what each command of this package must refuse, and in which words.

:data:`CASES` knows nothing of any command. ``build(folder, models)`` writes what the case
needs into an empty folder and returns the recipe; every recipe is :func:`recipes.recipe` with one
fault in it, so that a refusal can only be due to that fault.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.cases.case import Case
from tests.cases.flags import FLAGS, OUT
from tests.cases.folders import FOLDERS
from tests.cases.keys import KEYS, NUMBERS
from tests.cases.merges import MERGES
from tests.cases.parameters import POSTPROCESS, WORDS, WRAPS
from tests.cases.structure import STRUCTURE
from tests.cases.tensors import FITTING, WEIGHTS

CASES: tuple[Case, ...] = (
    *KEYS,
    *NUMBERS,
    *WORDS,
    *WRAPS,
    *POSTPROCESS,
    *MERGES,
    *STRUCTURE,
    *FOLDERS,
    *FITTING,
    *WEIGHTS,
    *FLAGS,
    *OUT,
)
BY_ID: Mapping[str, Case] = {case.id: case for case in CASES}
