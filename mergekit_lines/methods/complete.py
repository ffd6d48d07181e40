"""What a recipe has to say of its coefficients, and may say only once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_lines.errors import Problem
from mergekit_lines.lines.placed import LARV
from mergekit_lines.lines.schedule import EXPONENTS
from mergekit_lines.methods.words import of_parameter

# The paper's β, or the range it was tuned in, for the error that asks for one: Table 8 and
# appendix B of arXiv 2410.17146.
PAPER_BETA = {
    "task_arithmetic": "0.3 for 8 vision models, tuned in 0.1 to 1.0 (uniform soups and rewarded "
    "soups: alpha 1 with beta 0 to 1.0)",
    "ties": "1.4 for 8 vision models, tuned in 0.1 to 1.5",
    "consensus_ta": "0.9 for 8 vision models, tuned in 0.1 to 1.0",
}
PAPER_BETA_ELSE = "not given in the paper for this wrap; 0.1 to 1.0 is where it tunes the others"

MISSING_GAMMA = of_parameter(
    "gamma",
    "found nothing, wanted gamma (0 to 1; the paper chooses it among 0, 0.1, …, 1 on validation "
    "data), or alpha and beta both.",
)


GAMMA_TWICE = of_parameter(
    "gamma",
    "found together with alpha or beta, wanted one way of saying it: gamma alone (alpha = gamma, "
    "beta = 1 - gamma), or alpha and beta.",
)


LARV_AND_BETA = of_parameter(
    "schedule",
    "found larv together with beta, wanted one of the two: larv multiplies alpha by levels that "
    "the weights tell, and nothing is gained by depth. Take beta out, or name a shape: "
    f"{', '.join(EXPONENTS)}.",
)


def missing_beta(wrap: str) -> Problem:
    """Return the error for a recipe without beta, with the paper's values for its wrap."""
    return of_parameter(
        "beta",
        f"found nothing, wanted the coefficient gained from the first block to the last. The "
        f"paper's value for {wrap}: {PAPER_BETA.get(wrap, PAPER_BETA_ELSE)}.",
    )


def values_and_more(names: Sequence[str]) -> Problem | None:
    """Return what is wrong with coefficients that are written out beside others, or None.

    Args:
        names: of the words that stand there too, among alpha, beta and gamma.
    """
    if not names:
        return None
    return of_parameter(
        "schedule",
        f"found values together with {' and '.join(names)}, wanted one of the two: the values are "
        f"the coefficients themselves. Take {' and '.join(names)} out, or name a shape: "
        f"{', '.join(EXPONENTS)}.",
    )


def incomplete(values: Mapping[str, Any], wrap: str) -> Problem | None:
    """Return what is missing or said twice among alpha, beta and gamma, or None.

    Args:
        values: the resolved words of one tensor; only ``lines`` has ``wrap``, and only in
            ``lines_postprocess`` is ``gamma`` ours; a merge alone has none of them.
        wrap: the wrapped method, whose paper values the error names.
    """
    if "alpha" not in values:
        return None
    own = ["alpha", "beta"] if "wrap" in values else ["alpha", "beta", "gamma"]
    if isinstance(values["schedule"], tuple):
        return values_and_more([name for name in own if values[name] is not None])
    if values["schedule"] == LARV:
        return None if values["beta"] is None else LARV_AND_BETA
    if "wrap" in values:
        return missing_beta(wrap) if values["beta"] is None else None
    pair = [values["alpha"], values["beta"]]
    if values["gamma"] is None:
        return MISSING_GAMMA if None in pair else None
    return None if pair == [None, None] else GAMMA_TWICE
