"""Cases of a recipe's structure: models, slices, modules, tokenizer, base."""

from __future__ import annotations

from tests import models as make
from tests.cases.case import ALL_LAYERS, DROP, NAN, Case
from tests.cases.checkpoints import base, linked_twin, text, typo
from tests.cases.recipes import entry, listing, recipe, slices, top, words

STRUCTURE = [
    Case(
        "no-base",
        "Without base_model there is nothing to measure a change from.",
        top(base_model=DROP),
        ("base_model", "found nothing", "wanted", "pre-trained"),
    ),
    Case(
        "only-the-base",
        "The base alone is nothing to merge.",
        listing("base"),
        ("models", "besides base_model", "wanted", "fine-tuned"),
    ),
    Case(
        "base-twice",
        "The base listed twice is refused.",
        listing("base", "a", "base"),
        ("models", "llama_base", "twice", "once"),
    ),
    Case(
        "model-twice",
        "A model listed twice is refused.",
        listing("a", "b", "a"),
        ("models", "llama_a", "twice", "once"),
    ),
    Case(
        "model-twice-spelt-otherwise",
        "A model listed twice is refused where one of the two paths ends in a slash.",
        lambda folder, models: recipe(models, models=[entry(models.a), entry(f"{models.a}/")]),
        ("models", "llama_a", "twice", "once"),
    ),
    Case(
        "model-twice-by-a-link",
        "A model listed twice is refused where one of the two paths is a link.",
        linked_twin,
        ("models", "llama_a", "twice", "once"),
    ),
    Case(
        "base-spelt-otherwise",
        "The base listed under another spelling of its path is not taken for a fine-tuned model.",
        lambda folder, models: recipe(
            models, models=[entry(f"{models.base}/"), entry(models.a), entry(models.b)]
        ),
        ("models", "llama_base", "once"),
    ),
    Case(
        "base-folder-missing",
        "A base folder that is not there is named by key and path.",
        lambda folder, models: recipe(models, base_model=str(folder / "absent")),
        ("absent", "no such folder", "Check"),
        fault="models",
    ),
    Case(
        "model-typo",
        "A path that misses a folder by a letter is answered with that folder.",
        typo,
        ("my-tunde-model", "no such folder", "did you mean", "my-tuned-model"),
        fault="models",
    ),
    Case(
        "model-is-a-file",
        "The path of a weight file in the place of its folder is refused.",
        lambda folder, models: recipe(
            models, models=[entry(models.a / "model.safetensors"), entry(models.b)]
        ),
        ("model.safetensors", "folder", "Check"),
        fault="models",
    ),
    Case(
        "hub-model-offline",
        "A Hub name that cannot be reached is refused with the network and the login.",
        lambda folder, models: recipe(
            models, models=[entry("nobody-here/no-such-model"), entry(models.b)]
        ),
        ("nobody-here/no-such-model", "no such folder", "network"),
        fault="models",
    ),
    Case(
        "slice-without-base",
        "A slice whose sources lack the base is refused.",
        slices(a=ALL_LAYERS, b=ALL_LAYERS),
        ("slices[0].sources", "base_model", "llama_base", "layer_range"),
    ),
    Case(
        "slice-of-unequal-ranges",
        "A slice whose sources have unequal layer counts is refused.",
        slices(base=(0, 4), a=(0, 3), b=(0, 4)),
        ("slices[0]", "layer_range", "wanted"),
    ),
    Case(
        "slice-beyond-the-model",
        "A layer range beyond the model's layers is refused with the number it has.",
        slices(base=(0, 6), a=(0, 6), b=(0, 6)),
        ("slices[0]", "layer_range", "6", "4"),
        problems=None,
    ),
    Case(
        "slice-backwards",
        "A layer range that runs backwards is refused: it would make a model without layers.",
        slices(base=(3, 1), a=(3, 1), b=(3, 1)),
        ("slices[0]", "layer_range", "3", "1"),
        problems=None,
    ),
    Case(
        "slice-empty",
        "A layer range without layers is refused: it would make a model without blocks.",
        slices(base=(2, 2), a=(2, 2), b=(2, 2)),
        ("slices[0]", "layer_range", "2"),
        problems=None,
    ),
    Case(
        "slice-negative",
        "A layer range that starts below 0 is refused by key.",
        slices(base=(-1, 2), a=(-1, 2), b=(-1, 2)),
        ("slices[0]", "layer_range", "-1"),
        problems=None,
    ),
    Case(
        "unknown-module",
        "A module that the architecture lacks is refused with the ones it has.",
        lambda folder, models: recipe(
            models, models=DROP, modules={"decoder": {"models": [entry(models.a)]}}
        ),
        ("decoder", "modules", "default"),
    ),
    Case(
        "dtype-unknown",
        "An unknown dtype is refused with the known ones.",
        top(dtype="float17"),
        ("dtype", "'float17'", "float16", "bfloat16"),
    ),
    Case(
        "out-dtype-integer",
        "An integer out_dtype is refused.",
        top(out_dtype="int64"),
        ("out_dtype", "'int64'", "float32", "bfloat16"),
    ),
    Case(
        "out-dtype-fp8",
        "out_dtype of fp8 is refused.",
        top(out_dtype="float8_e4m3fn"),
        ("out_dtype", "'float8_e4m3fn'", "bfloat16"),
    ),
    Case(
        "tokenizer-source-missing",
        "A tokenizer source that is not there is refused by key and name.",
        lambda folder, models: recipe(models, tokenizer={"source": str(folder / "nowhere")}),
        ("tokenizer", "nowhere", "Check"),
    ),
    Case(
        "tokenizer-of-a-model-without-one",
        "tokenizer: {source: base} with a base that holds no tokenizer is refused.",
        lambda folder, models: recipe(
            models,
            base_model=str(make.llama(folder / "broken", seed=1, tokenizer=False)),
            tokenizer={"source": "base"},
        ),
        ("tokenizer", "broken", "wanted"),
        fault="models",
    ),
    Case(
        "tokenizer-corrupt",
        "tokenizer: {source: base} with a tokenizer.json that is no JSON is refused by file.",
        base(text("tokenizer.json", "{"), tokenizer={"source": "base"}),
        ("tokenizer", "broken", "again"),
        fault="models",
    ),
    Case(
        "tokenizer-padding-negative",
        "A negative padding of the vocabulary is refused by key.",
        top(tokenizer={"source": "base", "pad_to_multiple_of": -3}),
        ("tokenizer.pad_to_multiple_of", "-3", "wanted"),
    ),
    Case(
        "chat-template-unknown",
        "A chat template that is neither a known name nor a template is refused.",
        top(chat_template="chatmll"),
        ("chat_template", "'chatmll'", "chatml"),
    ),
    Case(
        "chat-template-too-short",
        "A template that mergekit would refuse behind the merge is refused before it.",
        top(chat_template="{{ broken"),
        ("chat_template", "'{{ broken'", "20 letters"),
    ),
    Case(
        "two-faults",
        "Two faults are told at once, numbered.",
        words(beta=NAN, wrap="dare"),
        ("2 problems", "1. ", "2. ", "parameters.beta", "parameters.wrap"),
        problems=2,
    ),
]
