"""Objectives against the paper's formulas written out, and every part an expression may have."""

from __future__ import annotations

import math

import pytest

from mergekit_lines import LinesError
from mergekit_lines.evaluate import Metric
from mergekit_lines.search.objective import parse_objective


def metrics(lower: tuple[str, ...] = (), **values: float) -> dict[str, Metric]:
    return {name: Metric(value, name not in lower) for name, value in values.items()}


POINT = metrics(("ppl",), acc=0.6, em=0.3, ppl=12.0)
TUNED = metrics(("ppl",), acc=0.8, em=0.4, ppl=10.0)
BASE = metrics(("ppl",), acc=0.5, em=0.1, ppl=8.0)


def refusal(text: str, **words: object) -> str:
    with pytest.raises(LinesError) as caught:
        parse_objective(text, **words)  # type: ignore[arg-type]
    return caught.value.message


def test_mean_is_that_of_values_over_the_fine_tuned_models() -> None:
    """A perplexity's ratio is turned over, so that more is better for all."""
    objective = parse_objective("mean")
    assert objective.needs == {"tuned"}
    want = (0.6 / 0.8 + 0.3 / 0.4 + 10.0 / 12.0) / 3
    assert objective.score(POINT, TUNED, None) == pytest.approx(want, rel=1e-15)
    assert objective.score(TUNED, TUNED, None) == 1.0


def test_retention_is_the_papers() -> None:
    """C.1: w_target·M_target + M_control; the table's ViT-B/32 numbers give the table's order."""
    objective = parse_objective("retention", targets=["acc"], controls=["em", "ppl"])
    assert objective.needs == {"tuned", "base"}
    want = 2 * (0.6 / 0.8) + (0.3 / 0.1 + 8.0 / 12.0) / 2
    assert objective.score(POINT, TUNED, BASE) == pytest.approx(want, rel=1e-15)
    heavy = parse_objective("retention", targets=["acc"], controls=["em"], target_weight=5)
    assert heavy.score(POINT, TUNED, BASE) == pytest.approx(5 * 0.75 + 3.0, rel=1e-15)
    table = parse_objective("retention", targets=["target"], controls=["control"])
    tuned, base = metrics(target=90.5, control=38.0), metrics(target=48.3, control=48.3)
    lines = metrics(target=90.3, control=48.0)
    assert table.score(lines, tuned, base) > table.score(tuned, tuned, base)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("acc", 0.6),
        ("-ppl", -12.0),
        ("+acc", 0.6),
        ("acc + 2 * em - 1", 0.6 + 2 * 0.3 - 1),
        ("(acc + em) / 2", (0.6 + 0.3) / 2),
        ("acc ** 2", 0.6 * 0.6),
        ("-acc ** 2", -(0.6 * 0.6)),
        ("2 ** -1 + 0 * acc", 0.5),
        ("min(acc, em, 0.4)", 0.3),
        ("max(acc, em)", 0.6),
        ("max(acc)", 0.6),
        ("mean(acc, em, ppl)", (0.6 + 0.3 + 12) / 3),
        ("-log(ppl)", -math.log(12)),
        ("exp(-ppl / 10)", math.exp(-1.2)),
        ("abs(em - acc)", 0.3),
        ("sqrt(ppl)", math.sqrt(12)),
        ("acc / tuned.acc + em / base.em", 0.6 / 0.8 + 0.3 / 0.1),
        ("1e3 * acc", 600.0),
    ],
)
def test_an_expression_is_its_value(text: str, want: float) -> None:
    """Every operator and function, against Python's own."""
    objective = parse_objective(f"  {text} ")
    objective.names(["acc", "em", "ppl"])
    assert objective.score(POINT, TUNED, BASE) == pytest.approx(want, rel=1e-14)


def test_only_named_baselines_are_measured() -> None:
    """An expression without any needs none."""
    assert parse_objective("acc - ppl").needs == set()
    assert parse_objective("acc - tuned.acc").needs == {"tuned"}
    assert parse_objective("min(acc / base.acc, acc / tuned.acc)").needs == {"tuned", "base"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "objective '': invalid syntax. Wanted mean, retention, or an expression of"),
        ("acc +", "objective 'acc +': invalid syntax."),
        ("acc em", "objective 'acc em': invalid syntax"),
        ("1 + 2", "objective '1 + 2': found no metric in it."),
        ("acc ^ 2", "found 'acc ^ 2' in it. A power is written **."),
        ("acc // 2", "found 'acc // 2' in it."),
        ("acc > 2", "found 'acc > 2' in it."),
        ("acc if em else ppl", "found 'acc if em else ppl' in it."),
        ("not acc", "found 'not acc' in it."),
        ("acc * True", "found 'True' in it."),
        ("acc * 2j", "found '2j' in it."),
        ("acc * 'x'", "found \"'x'\" in it."),
        ("acc[0]", "found 'acc[0]' in it."),
        ("lg(acc)", "found 'lg(acc)' in it. There is no function 'lg'. Did you mean 'log'?"),
        ("__import__('os')", "There is no function '__import__'."),
        ("acc.__class__", "found 'acc.__class__' in it. 'acc' is no baseline."),
        ("tunde.acc", "'tunde' is no baseline. Did you mean 'tuned'?"),
        ("tuned.acc.real", "found 'tuned.acc.real' in it."),
        ("tuned", "found 'tuned' in it."),
        ("2 * mean", "found 'mean' in it."),
        ("retention + acc", "found 'retention' in it."),
        ("log(acc, 2)", "log has 2 arguments, wanted one argument."),
        ("min()", "min has 0 arguments, wanted at least one argument."),
        ("max(acc, key=em)", "found 'max(acc, key=em)' in it."),
        ("max(*acc)", "found '*acc' in it."),
        ("(acc := 2)", "found 'acc := 2' in it."),
        ("lambda: acc", "found 'lambda: acc' in it."),
        ("acc, em", "found 'acc, em' in it."),
        (f"acc * {'9' * 400}", "it cannot be read (OverflowError)"),
        ("-" * 5000 + "acc", "objective '-----"),
        ("acc\0", "objective 'acc\\x00': "),
    ],
)
def test_what_is_no_expression(text: str, message: str) -> None:
    """The bad part is named, and nothing is evaluated."""
    assert message in refusal(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acc / (em - em)", "division by zero) with acc = 0.6, em = 0.3."),
        ("log(-acc)", "objective 'log(-acc)' has no value ("),
        ("(-acc) ** 0.5", "has no value (math domain error) with acc = 0.6."),
        ("exp(ppl ** 3)", "has no value (math range error) with ppl = 12.0."),
        ("9 ** 9 ** 9 * acc", "has no value (math range error)"),
        ("1e308 * 10 * acc", "is inf with acc = 0.6, wanted a finite number."),
        ("tuned.acc / (base.em * 0)", "division by zero) with tuned.acc = 0.8, base.em = 0.1."),
    ],
)
def test_results_that_are_no_numbers(text: str, message: str) -> None:
    """The values that went in are shown."""
    with pytest.raises(LinesError) as caught:
        parse_objective(text).score(POINT, TUNED, BASE)
    assert message in caught.value.message


def test_metrics_that_are_not_measured() -> None:
    """All of them at once, with the nearest name; baselines' names too."""
    with pytest.raises(LinesError) as caught:
        parse_objective("acc + base.acx + tuned.pl").names(["acc", "ppl"])
    assert tuple(map(str, caught.value.problems)) == (
        "objective 'acc + base.acx + tuned.pl': there is no metric 'acx'. Did you mean 'acc'? "
        "Measured are: acc, ppl.",
        "objective 'acc + base.acx + tuned.pl': there is no metric 'pl'. Did you mean 'ppl'? "
        "Measured are: acc, ppl.",
    )
    with pytest.raises(LinesError, match=r"no metric 'retenton'. Did you mean 'retention'\?"):
        parse_objective("retenton").names(["acc"])
    with pytest.raises(LinesError, match=r"no metric 'em'\. Measured are: acc\."):
        parse_objective("retention", targets=["acc"], controls=["em"]).names(["acc"])
    parse_objective("mean").names(["acc"])


def test_a_baseline_that_was_not_measured() -> None:
    """The error says whose metric is missing."""
    with pytest.raises(LinesError, match=r"acc was not measured of the fine-tuned model"):
        parse_objective("mean").score(POINT, None, BASE)
    with pytest.raises(LinesError, match=r"acc was not measured of the base model"):
        parse_objective("acc - base.acc").score(POINT, None, None)
    with pytest.raises(LinesError, match=r"objective mean: there are no metrics"):
        parse_objective("mean").score({}, TUNED, None)


@pytest.mark.parametrize(
    ("point", "tuned", "message"),
    [
        ({"r": 0.5}, {"r": 0.0}, "the fine-tuned model's r is 0.0, and a ratio wants a value"),
        ({"r": 0.5}, {"r": -2.0}, "the fine-tuned model's r is -2.0"),
        ({"loss": 0.0}, {"loss": 1.0}, "loss is 0.0, and a ratio wants a value above 0."),
        ({"loss": 1.0}, {"loss": -1.0}, "the fine-tuned model's loss is -1.0"),
    ],
)
def test_ratios_of_what_is_not_above_zero(
    point: dict[str, float], tuned: dict[str, float], message: str
) -> None:
    """A reward may be negative: the error advises an expression that works."""
    name = next(iter(point))
    example = "r - tuned.r" if name == "r" else "-(loss - tuned.loss)"
    with pytest.raises(LinesError) as caught:
        parse_objective("mean").score(
            metrics(("loss",), **point), metrics(("loss",), **tuned), None
        )
    assert message in caught.value.message
    assert f"for example `{example}`." in caught.value.message
    parse_objective(example).names([name])


def test_a_negative_value_over_a_positive_one_is_a_number() -> None:
    """Only what is divided by has to be above 0."""
    assert parse_objective("mean").score(metrics(r=-1.0), metrics(r=2.0), None) == -0.5


def test_what_retention_wants() -> None:
    """Targets and controls, apart, and a weight above 0; nothing of it for other objectives."""
    assert "wanted at least one target and one control" in refusal("retention", targets=["a"])
    assert "a is both target and control" in refusal("retention", targets=["a"], controls=["a"])
    for weight in (0, -1.0, math.inf, True, "2"):
        message = refusal("retention", targets=["a"], controls=["b"], target_weight=weight)
        assert f"the target weight is {weight!r}, wanted a number above 0" in message
    assert "are of the objective retention" in refusal("mean", targets=["a"])
    assert "are of the objective retention" in refusal("a", target_weight=3.0)
