"""Cases of a recipe's keys and numbers: misspelt, misplaced, of another kind."""

from __future__ import annotations

from tests.cases.case import DROP, INF, NAN, Case
from tests.cases.recipes import beside_model, beside_source, top, under_a, words

KEYS = [
    Case(
        "unknown-key",
        "A misspelt top-level key is named with the right one.",
        top(dtype=DROP, dtpye="float32"),
        ("dtpye", "Did you mean 'dtype'"),
    ),
    Case(
        "parameter-at-the-top",
        "A parameter written at the top level is sent to `parameters`.",
        top(parameters={"alpha": 0.3}, beta=0.3),
        ("beta:", "parameters"),
    ),
    Case(
        "unknown-key-of-a-model",
        "A misspelt key of an item of `models:` is named with its place and the right one.",
        beside_model(paramters={"weight": 0.5}),
        ("models[0].paramters", "Did you mean 'parameters'"),
    ),
    Case(
        "parameter-beside-a-model",
        "A weight written beside `model:` instead of under its parameters is sent there.",
        beside_model(weight=0.5),
        ("models[0].weight", "parameters"),
    ),
    Case(
        "unknown-key-of-a-source",
        "A misspelt key of a slice's source is named with its place and the right one.",
        beside_source(parameter={"weight": 0.5}),
        ("slices[0].sources[1].parameter:", "Did you mean 'parameters'"),
    ),
    Case(
        "unknown-key-of-the-tokenizer",
        "A misspelt key of `tokenizer:` is named: without it another tokenizer would be made.",
        top(tokenizer={"sorce": "base"}),
        ("tokenizer.sorce", "Did you mean 'source'"),
    ),
    Case(
        "misspelt-parameter",
        "A misspelt parameter is named with the right one.",
        words(beta=DROP, beat=0.3),
        ("parameters.beat", "Did you mean 'beta'"),
    ),
    Case(
        "unknown-parameter",
        "A parameter that resembles none is refused with the list of known ones.",
        words(zzz=1),
        ("parameters.zzz", "known", "alpha", "schedule"),
    ),
    Case(
        "misspelt-parameter-under-a-model",
        "A misspelt parameter under one model is named with that model's place.",
        under_a(wieght=0.5),
        ("models[0].parameters.wieght", "Did you mean 'weight'"),
    ),
    Case(
        "lines-word-under-a-model",
        "A coefficient under one model has no meaning: it belongs to the whole recipe.",
        under_a(beta=0.3),
        ("models[0].parameters.beta", "under one model", "Move"),
    ),
    Case(
        "wrap-under-a-model",
        "A wrap under one model has no meaning: it belongs to the whole recipe.",
        under_a(wrap="ties"),
        ("models[0].parameters.wrap", "under one model", "Move"),
    ),
    Case(
        "parameter-of-another-wrap",
        "A parameter that only another wrap has is refused, not ignored.",
        words(wrap="ties", epsilon=0.1),
        ("parameters.epsilon", "density"),
    ),
]


NUMBERS = [
    Case(
        f"{name}-{label}",
        f"{name}: {value!r} is refused with what was found and what is wanted.",
        words(**{name: value}),
        (f"parameters.{name}", "found", "wanted", *expected),
    )
    for name, label, value, expected in (
        ("beta", "nan", NAN, ("nan", "finite number")),
        ("beta", "infinite", INF, ("inf", "finite number")),
        ("beta", "text", "abc", ("'abc'", "number")),
        ("beta", "true", True, ("True", "boolean", "number")),
        ("beta", "empty-list", [], ("empty",)),
        ("beta", "nan-in-gradient", [0.1, NAN], ("nan", "finite number")),
        ("beta", "nan-in-filter", [{"filter": "mlp", "value": NAN}, {"value": 0.3}], ("nan",)),
        ("beta", "auto", "auto", ("'auto'", "finite number")),
        ("beta", "beyond-every-float", 10**400, ("number",)),
        ("beta", "beyond-fp32", 1e39, ("1e+39", "number")),
        ("alpha", "misspelt-auto", "auot", ("'auot'", "auto", "Did you mean 'auto'")),
        ("alpha", "misspelt-block", "blok", ("'blok'", "`block`", "Did you mean 'block'")),
        ("alpha", "true", True, ("True", "boolean", "number", "auto")),
        ("alpha", "nan", NAN, ("nan", "finite number", "auto")),
        ("alpha", "auto-in-gradient", ["auto", 1.0], ("auto",)),
        ("schedule", "misspelt", "linaer", ("'linaer'", "linear", "sqrt", "quadratic")),
        ("schedule", "misspelt-larv", "lavr", ("'lavr'", "larv", "Did you mean 'larv'")),
        ("schedule", "zero", 0, ("0", "exponent above 0")),
        ("schedule", "negative", -1, ("-1", "exponent above 0")),
        ("schedule", "infinite", INF, ("inf", "exponent")),
        ("schedule", "true", True, ("True", "boolean", "exponent")),
        ("schedule", "list", [0.1, 0.4], ("[0.1, 0.4]", "gradient", 'schedule: "0.1, 0.4"')),
        (
            "schedule",
            "list-in-a-filter",
            [{"filter": "mlp", "value": [0, 1]}, {"value": "linear"}],
            ("[0, 1]", "gradient", 'schedule: "0, 1"'),
        ),
        ("schedule", "word-in-values", "0.1, much", ("'0.1, much'", "finite numbers", "commas")),
        ("schedule", "nan-in-values", "0.1, nan", ("'0.1, nan'", "finite numbers", "two at least")),
        ("schedule", "hole-in-values", "0.1,,0.4", ("'0.1,,0.4'", "finite numbers", "commas")),
        ("schedule", "one-value-and-a-comma", "0.4,", ("'0.4,'", "two at least")),
        ("outside", "word", "beta", ("'beta'", "`alpha`", "number")),
        ("outside", "nan", NAN, ("nan", "finite number")),
        ("norm", "unknown", "l3", ("'l3'", "l1", "l2")),
        ("norm", "number", 2, ("2", "l1", "l2")),
        ("seed", "negative", -1, ("-1", "whole number")),
        ("seed", "broken", 1.5, ("1.5", "whole number")),
        ("seed", "true", True, ("True", "boolean", "whole number")),
        ("num_blocks", "zero", 0, ("0", "whole number")),
        ("num_blocks", "broken", 2.5, ("2.5", "whole number")),
        ("num_blocks", "text", "four", ("'four'", "whole number")),
        ("allow_nonfinite", "one", 1, ("1", "true or false")),
        ("allow_nonfinite", "text", "yes", ("'yes'", "true or false")),
        ("lambda", "nan", NAN, ("nan", "finite number")),
        ("weight", "true", True, ("True", "boolean", "number")),
    )
]
