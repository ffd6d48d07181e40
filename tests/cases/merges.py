"""Cases of the words of this package's own merges, alone and as a wrap."""

from __future__ import annotations

from typing import Any

from tests.cases.case import DROP, INF, NAN, Build, Case
from tests.cases.recipes import entry, recipe, words


def alone(method: str, /, **parameters: Any) -> Build:
    """Build a recipe of a merge of this package, with exactly these parameters."""
    return lambda folder, models: recipe(models, merge_method=method, parameters=parameters)


def one_model(method: str, /, **parameters: Any) -> Build:
    """Build the same of one model."""
    return lambda folder, models: recipe(
        models, merge_method=method, models=[entry(models.a)], parameters=parameters
    )


MERGES = [
    Case(
        "weight-by-depth-of-a-merge-alone",
        "Without lines nothing hangs on depth.",
        alone("consensus_ta", weight="0.1, 0.4"),
        ("parameters.weight", "found '0.1, 0.4'", "a finite number"),
    ),
    Case(
        "tall-lambda-zero",
        "λ_t of 0 would want every entry that is not 0.",
        alone("consensus_ta", tall_lambda=0),
        ("parameters.tall_lambda", "found 0", "number above 0", "0.2"),
    ),
    Case(
        "tall-lambda-negative-in-a-wrap",
        "λ_t below 0 is refused under lines too.",
        words(wrap="consensus_ties", tall_lambda=-0.4),
        ("parameters.tall_lambda", "-0.4", "number above 0"),
    ),
    Case(
        "tall-lambda-infinite",
        "λ_t is finite.",
        alone("consensus_ties", tall_lambda=INF),
        ("parameters.tall_lambda", "inf", "number above 0"),
    ),
    Case(
        "tall-lambda-text",
        "λ_t is a number.",
        alone("consensus_ta", tall_lambda="high"),
        ("parameters.tall_lambda", "'high'", "number above 0"),
    ),
    Case(
        "tall-lambda-without-consensus",
        "Another wrap has no masks.",
        words(wrap="ties", tall_lambda=0.4),
        ("parameters.tall_lambda", "nobody declares this name"),
    ),
    Case(
        "min-agree-zero",
        "That no model has to agree is the merge without a mask.",
        alone("consensus_ta", min_agree=0),
        ("parameters.min_agree", "found 0", "whole number of at least 1"),
    ),
    Case(
        "min-agree-fraction",
        "Models are counted.",
        words(wrap="consensus_ta", min_agree=1.5),
        ("parameters.min_agree", "1.5", "whole number of at least 1"),
    ),
    Case(
        "min-agree-above-the-models",
        "Two models cannot agree three times.",
        words(wrap="consensus_ties", min_agree=3),
        ("parameters.min_agree", "found 3", "at most 2", "more models"),
    ),
    Case(
        "min-agree-of-one-model",
        "One model and the default of two is told with what to give.",
        one_model("consensus_ta"),
        ("parameters.min_agree", "found 2", "at most 1", "min_agree: 1"),
    ),
    Case(
        "min-agree-boolean",
        "true is no number of models.",
        alone("consensus_ties", min_agree=True),
        ("parameters.min_agree", "True (a boolean)"),
    ),
    Case(
        "density-of-consensus-as-a-percentage",
        "A density is a share.",
        alone("consensus_ties", density=20),
        ("parameters.density", "found 20", "a share from 0 to 1"),
    ),
    Case(
        "density-of-consensus-without-ties",
        "Consensus of plain sums keeps whole task vectors.",
        alone("consensus_ta", density=0.2),
        ("parameters.density", "nobody declares this name"),
    ),
    Case(
        "lambda-of-consensus-nan",
        "λ of a merge of ours is finite.",
        alone("consensus_ta", **{"lambda": NAN}),
        ("parameters.lambda", "nan", "finite number"),
    ),
    Case(
        "beta-of-a-merge-alone",
        "A merge alone is not scaled by depth; how to scale it is told.",
        alone("consensus_ta", beta=0.9),
        ("parameters.beta", "merge_method: lines", "wrap"),
    ),
    Case(
        "beta-missing-around-consensus",
        "Without beta the paper's value for consensus is named.",
        words(wrap="consensus_ta", beta=DROP),
        ("parameters.beta", "found nothing", "consensus_ta", "0.9"),
    ),
    Case(
        "rescale-by-unknown",
        "How DARE makes up for what it drops has two answers.",
        words(wrap="dare_ties", density=0.5, rescale_by="l2"),
        ("parameters.rescale_by", "'l2'", "l1", "p"),
    ),
    Case(
        "rescale-by-without-draws",
        "rescale_by belongs to DARE.",
        words(wrap="ties", rescale_by="p"),
        ("parameters.rescale_by", "nobody declares this name"),
    ),
    Case(
        "trim-unknown",
        "What TIES trims over has two answers.",
        words(wrap="ties", trim="layer"),
        ("parameters.trim", "'layer'", "tensor", "model"),
    ),
    Case(
        "trim-misspelt-alone",
        "A misspelt trim gets the nearest.",
        alone("consensus_ties", trim="modle"),
        ("parameters.trim", "'modle'", "Did you mean 'model'?"),
    ),
    Case(
        "trim-without-ties",
        "A wrap that trims nothing has no trim.",
        words(wrap="dare_ties", density=0.5, trim="model"),
        ("parameters.trim", "nobody declares this name"),
    ),
    Case(
        "trim-gradient",
        "Words have no gradient.",
        words(wrap="ties", trim=["tensor", "model"]),
        ("parameters.trim", "a list", "one value"),
    ),
    Case(
        "trim-for-some-tensors",
        "A cut over the whole model is one for all tensors.",
        words(wrap="ties", trim=[{"filter": "mlp", "value": "model"}, {"value": "tensor"}]),
        ("parameters.trim", "'model' for some tensors", "one value"),
    ),
    Case(
        "trim-under-a-model",
        "trim stands under the recipe's own parameters.",
        lambda folder, models: recipe(
            models,
            models=[entry(models.a, trim="model"), entry(models.b)],
            parameters={"wrap": "ties", "beta": 1.0},
        ),
        ("models[0].parameters.trim", "found under one model", "Move it"),
    ),
    Case(
        "trim-with-a-density-gradient",
        "One magnitude cuts all tensors, so that their densities cannot differ.",
        words(wrap="ties", trim="model", density=[0.2, 0.8]),
        ("parameters.density", "different tensors of one model", "trim: model"),
    ),
    Case(
        "trim-with-rescale",
        "The paper's merge matches no norm.",
        words(wrap="ties", trim="model", density=0.2, rescale=True),
        ("parameters.rescale", "found true with trim: model", "false"),
    ),
]
