"""Cases of the recipe's words: schedules, wraps, and those of ``lines_postprocess``."""

from __future__ import annotations

from tests.cases.case import DROP, NAN, UP, Case
from tests.cases.checkpoints import model, set_entry
from tests.cases.recipes import entry, listing, post, postprocess_recipe, under_a, words

WORDS = [
    Case(
        "beta-missing",
        "Without beta the paper's value for this wrap is named.",
        words(wrap="ties", beta=DROP),
        ("parameters.beta", "found nothing", "wanted", "ties", "1.4"),
    ),
    Case(
        "beta-missing-for-the-default-wrap",
        "Without beta the paper's value for task arithmetic is named.",
        words(beta=DROP),
        ("parameters.beta", "found nothing", "task_arithmetic", "0.3"),
    ),
    Case(
        "beta-only-for-a-filter-that-matches-nothing",
        "Where beta's only filter matches no tensor, the message names the filter.",
        words(beta=[{"filter": "no_such_part", "value": 0.3}]),
        ("parameters.beta", "no_such_part", "matches no tensor", "wanted"),
    ),
    Case(
        "beta-filter-that-matches-nothing",
        "A filter that matches no tensor is named, though another entry gives a beta.",
        words(beta=[{"filter": "slef_attn", "value": 0.1}, {"value": 0.3}]),
        ("parameters.beta", "'slef_attn'", "matches no tensor", "wanted"),
    ),
    Case(
        "beta-only-for-some-tensors",
        "Where filters give a beta to some tensors only, others are named.",
        words(beta=[{"filter": "self_attn", "value": 0.3}]),
        ("parameters.beta", "found nothing", "lm_head.weight"),
    ),
    Case(
        "weight-filter-of-a-model-that-matches-nothing",
        "A filter under one model that matches no tensor is named with its place.",
        under_a(weight=[{"filter": "atention", "value": 0.1}, {"value": 0.3}]),
        ("models[0].parameters.weight", "'atention'", "matches no tensor"),
    ),
    Case(
        "values-and-alpha-and-beta",
        "Coefficients that are written out leave nothing for alpha and beta to say.",
        words(schedule="0.1, 0.2, 0.4"),
        ("parameters.schedule", "found values together with alpha and beta", "Take", "linear"),
    ),
    *(
        Case(
            f"weight-by-depth-{name}",
            "Weights by depth are finite numbers, two at least, in one text.",
            under_a(weight=value),
            ("models[0].parameters.weight", f"found {value!r}", "two at least"),
        )
        for name, value in {
            "of-words": "0.1, high",
            "of-one": "0.1,",
            "of-infinity": "0.1, inf",
        }.items()
    ),
    Case(
        "weight-by-depth-in-a-list",
        "A list of texts would be taken by the place in the slice.",
        under_a(weight=["0.1, 0.2", "0.3, 0.4"]),
        ("models[0].parameters.weight", "a list of which mergekit would take one word"),
    ),
    Case(
        "weight-outside-as-a-word",
        "The weight outside the blocks is a number.",
        under_a(weight_outside="alpha"),
        ("models[0].parameters.weight_outside", "found 'alpha'", "a finite number"),
    ),
    Case(
        "weight-outside-where-there-is-no-weight",
        "A wrap without weights has none outside.",
        words(wrap="model_stock", weight_outside=0.1),
        ("parameters.weight_outside", "nobody declares this name"),
    ),
    Case(
        "larv-and-beta",
        "Levels that the weights tell leave nothing for beta to say.",
        words(schedule="larv"),
        ("parameters.schedule", "found larv together with beta", "Take beta out", "linear"),
    ),
    Case(
        "larv-for-some-tensors-and-beta-for-all",
        "Tensors that have larv and a beta too are named.",
        words(schedule=[{"filter": "mlp", "value": "larv"}, {"value": "linear"}]),
        ("parameters.schedule", "found larv together with beta", "mlp"),
    ),
    Case(
        "block-under-wraps-of-two-kinds",
        "alpha: block compares the norms of one merge, as auto does.",
        words(alpha="block", wrap=[{"filter": "mlp", "value": "ties"}, {"value": "linear"}]),
        ("parameters.wrap", "alpha: block", "one wrap"),
    ),
    Case(
        "values-for-some-tensors-and-beta-for-all",
        "Tensors that have values and a beta too are named.",
        words(alpha=DROP, schedule=[{"filter": "mlp", "value": "0.1, 0.2"}, {"value": "linear"}]),
        ("parameters.schedule", "found values together with beta", "mlp"),
    ),
    *(
        Case(
            f"rank-{name}",
            "The rank of the merges by singular vectors is a share above 0 and up to 1.",
            words(wrap="cart", rank=value),
            ("parameters.rank", f"found {value!r}", "a share of the rank, above 0 and up to 1"),
        )
        for name, value in {"of-zero": 0, "as-a-count": 16, "as-a-word": "full"}.items()
    ),
    Case(
        "rank-where-there-is-none",
        "Iso-C has no rank to choose.",
        words(wrap="iso_c", rank=0.5),
        ("parameters.rank", "nobody declares this name"),
    ),
    Case(
        "lambda-of-cart-as-a-boolean",
        "The factor of a merge by singular vectors is a number.",
        words(wrap="tsv_m", **{"lambda": True}),
        ("parameters.lambda", "found True (a boolean)", "a finite number"),
    ),
    Case(
        "gamma-under-lines",
        "gamma belongs to lines_postprocess.",
        words(gamma=0.3),
        ("parameters.gamma", "lines_postprocess", "alpha", "beta"),
    ),
    Case(
        "weight-nan-under-a-model",
        "NaN as the weight of one model is refused with that model's place.",
        under_a(weight=NAN),
        ("models[0].parameters.weight", "nan", "finite number"),
    ),
    Case(
        "density-nan",
        "NaN as a density is refused.",
        words(wrap="ties", density=NAN),
        ("parameters.density", "nan", "finite number"),
    ),
    Case(
        "density-text",
        "Text as a density is refused.",
        words(wrap="ties", density="abc"),
        ("parameters.density", "'abc'", "number"),
    ),
    Case(
        "density-negative",
        "A negative density under a wrap that draws with it is refused by name.",
        words(wrap="dare_ties", density=-0.5),
        ("density", "-0.5"),
    ),
    Case(
        "normalize-text",
        "A text for a switch of the wrapped method is refused.",
        words(normalize="maybe"),
        ("parameters.normalize", "'maybe'", "boolean"),
    ),
    Case(
        "blocks-list",
        "blocks as a YAML list is refused: mergekit would read it as a gradient.",
        words(blocks=["model.layers", "visual.blocks"]),
        ("parameters.blocks", "list", "commas"),
    ),
    Case(
        "blocks-filter",
        "blocks by a filter is refused: which containers count is one decision.",
        words(blocks=[{"filter": "mlp", "value": "model.layers"}]),
        ("parameters.blocks", "filter", "commas"),
    ),
    Case(
        "blocks-empty",
        "An empty text of blocks is refused.",
        words(blocks=""),
        ("parameters.blocks", "''", "wanted"),
    ),
    Case(
        "blocks-number",
        "blocks as a number is refused: num_blocks is that word.",
        words(blocks=4),
        ("parameters.blocks", "4", "wanted", "names"),
    ),
    Case(
        "blocks-unknown-container",
        "blocks that name no container are refused with the nearest container.",
        words(blocks="model.layer"),
        ("blocks", "model.layer", "model.layers"),
    ),
    Case(
        "num-blocks-too-small",
        "num_blocks below the number of blocks in the names is refused.",
        words(num_blocks=2),
        ("num_blocks", "2", "model.layers", "number of blocks"),
    ),
    Case(
        "num-blocks-gradient",
        "num_blocks that differs between tensors is refused.",
        words(num_blocks=[{"filter": "mlp", "value": 4}, {"value": 8}]),
        ("parameters.num_blocks", "4", "8", "one value"),
    ),
    Case(
        "norm-filter",
        "A norm that differs between tensors is refused.",
        words(alpha="auto", norm=[{"filter": "mlp", "value": "l1"}, {"value": "l2"}]),
        ("parameters.norm", "l1", "l2", "one value"),
    ),
    Case(
        "seed-and-flag",
        "parameters.seed together with --random-seed is refused.",
        words(seed=3),
        ("parameters.seed", "3", "--random-seed", "7", "one"),
        flags=("--random-seed", "7"),
    ),
    Case(
        "seed-filter",
        "A seed that differs between tensors is refused.",
        words(seed=[{"filter": "mlp", "value": 1}, {"value": 2}]),
        ("parameters.seed", "1", "2", "one value"),
    ),
]


WRAPS = [
    Case(
        f"wrap-{label}",
        f"wrap: {value!r} is refused with what to write instead.",
        words(wrap=value),
        ("parameters.wrap", *expected),
    )
    for label, value, expected in (
        ("dare", "dare", ("'dare'", "dare_linear", "dare_ties")),
        ("misspelt", "tise", ("'tise'", "Did you mean 'ties'")),
        ("capitals", "TIES", ("'TIES'", "ties")),
        ("lines", "lines", ("'lines'", "itself")),
        ("postprocess", "lines_postprocess", ("'lines_postprocess'", "itself")),
        ("passthrough", "passthrough", ("'passthrough'", "lines_postprocess")),
        ("empty", "", ("''", "ties")),
        ("number", 3, ("3", "ties")),
        ("true", True, ("True", "boolean", "ties")),
        ("gradient", ["ties", "linear"], ("ties", "linear", "wanted")),
        ("one-of-ours-by-its-inner-name", "lines[ties]", ("'lines[ties]'", "ties")),
    )
] + [
    Case(
        "two-wraps-under-auto",
        "Two wraps in one recipe are refused under alpha: auto.",
        words(alpha="auto", wrap=[{"filter": "mlp", "value": "ties"}, {"value": "linear"}]),
        ("parameters.wrap", "ties", "linear", "alpha: auto", "one wrap"),
    ),
    Case(
        "wrap-filter-that-matches-nothing",
        "A wrap for a filter that matches nothing is refused, not taken for the default.",
        words(wrap=[{"filter": "mpl", "value": "ties"}, {"value": "dare_ties"}]),
        ("parameters.wrap", "'mpl'", "matches no tensor"),
    ),
    Case(
        "slerp-of-two",
        "slerp around two fine-tuned models is refused: it takes one.",
        words(wrap="slerp", t=0.5),
        ("models", "found 2", "wanted 1", "slerp"),
    ),
    Case(
        "slerp-without-t",
        "slerp without t is refused by the parameter's name.",
        listing("a", parameters={"wrap": "slerp", "alpha": 0.3, "beta": 0.3}),
        ("parameters.t", "found nothing", "slerp", "wanted"),
    ),
    Case(
        "slerp-with-t-of-text",
        "slerp with a t that is no number is refused.",
        listing("a", parameters={"wrap": "slerp", "t": "half", "alpha": 0.3, "beta": 0.3}),
        ("parameters.t", "'half'", "number"),
    ),
    Case(
        "model-stock-of-one",
        "model_stock around one fine-tuned model is refused: it takes two or more.",
        listing("a", parameters={"wrap": "model_stock", "alpha": 0.3, "beta": 0.3}),
        ("models", "found 1", "at least 2", "model_stock"),
    ),
]


POSTPROCESS = [
    Case(
        "postprocess-auto",
        "lines_postprocess has no alpha: auto.",
        post(alpha="auto", beta=0.5),
        ("parameters.alpha", "'auto'", "number", "gamma"),
    ),
    Case(
        "postprocess-block",
        "lines_postprocess has no alpha: block.",
        post(alpha="block", beta=0.5),
        ("parameters.alpha", "'block'", "number", "gamma"),
    ),
    Case(
        "postprocess-larv",
        "lines_postprocess has no models to compare, as larv does.",
        post(gamma=0.5, schedule="larv"),
        ("parameters.schedule", "'larv'", "merge_method: lines"),
    ),
    Case(
        "postprocess-gamma-and-alpha",
        "gamma together with alpha and beta is refused.",
        post(gamma=0.5, alpha=0.5, beta=0.5),
        ("parameters.gamma", "together", "alpha", "beta"),
    ),
    Case(
        "postprocess-gamma-and-beta",
        "gamma together with beta alone is refused.",
        post(gamma=0.5, beta=0.5),
        ("parameters.gamma", "together", "beta"),
    ),
    Case(
        "postprocess-values-and-gamma",
        "Coefficients that are written out stand in the place of gamma.",
        post(gamma=0.5, schedule="0.1, 0.2, 0.4"),
        ("parameters.schedule", "found values together with gamma", "wanted one of the two"),
    ),
    Case(
        "postprocess-neither",
        "lines_postprocess without gamma, alpha and beta is refused.",
        post(schedule="sqrt"),
        ("parameters.gamma", "found nothing", "alpha", "beta"),
    ),
    Case(
        "postprocess-alpha-alone",
        "lines_postprocess with alpha but no beta is refused.",
        post(alpha=0.5),
        ("found nothing", "beta", "gamma"),
    ),
    Case(
        "postprocess-gamma-nan",
        "NaN as gamma is refused.",
        post(gamma=NAN),
        ("parameters.gamma", "nan", "finite number"),
    ),
    Case(
        "postprocess-wrap",
        "lines_postprocess has no wrap.",
        post(gamma=0.5, wrap="ties"),
        ("parameters.wrap", "merge_method: lines", "one model"),
    ),
    Case(
        "postprocess-two-models",
        "lines_postprocess edits one model, not two.",
        lambda folder, models: postprocess_recipe(
            models, models=[entry(models.a), entry(models.b)]
        ),
        ("models", "found 2", "wanted one", "merge_method: lines"),
    ),
    Case(
        "postprocess-nan",
        "NaN in the edited model is refused with the tensor's name.",
        lambda folder, models: postprocess_recipe(
            models, models=model(set_entry(UP, NAN))(folder, models)["models"][:1]
        ),
        (UP, "broken", "NaN", "allow_nonfinite"),
        fault="weights",
    ),
]
