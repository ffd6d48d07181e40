"""Cases of a model's tensors: by their headers, and by their weights."""

from __future__ import annotations

from tests import models as make
from tests.cases.case import HEAD, INF, NAN, UP, Case
from tests.cases.checkpoints import (
    alike,
    base,
    integers_everywhere,
    model,
    other,
    set_entry,
    set_tensors,
    to_integers,
    vit_without,
    with_tensor,
    without,
    zero_rows,
)
from tests.cases.recipes import entry, recipe, top

FITTING = [
    Case(
        "tensor-missing-in-a-model",
        "A tensor that one model lacks is refused by model and name.",
        model(without(UP)),
        ("broken", "lacks", UP),
        fault="models",
    ),
    Case(
        "tensor-missing-in-the-base",
        "A tensor that the base lacks is refused by name.",
        base(without(UP)),
        ("broken", "lacks", UP),
        fault="models",
    ),
    Case(
        "tensor-of-the-base-without-a-place",
        "A tensor of the base that the output has no place for is refused, not lost.",
        base(with_tensor("model.layers.1.extra.weight")),
        ("broken", "model.layers.1.extra.weight", "lost"),
        fault="models",
    ),
    Case(
        "shapes-differ",
        "A model of another width is refused with both shapes.",
        other(lambda path: make.llama(path, hidden=64, seed=2)),
        ("broken", "shapes", "(128, 32)", "(128, 64)"),
        fault="models",
    ),
    Case(
        "one-shape-differs",
        "One tensor of another shape is refused by name with both shapes.",
        model(set_tensors(lambda tensor: tensor[:-1].clone(), UP)),
        ("broken", "shapes", UP, "(64, 32)", "(63, 32)"),
        fault="models",
    ),
    Case(
        "fewer-layers",
        "A model with fewer layers than the base is refused.",
        other(lambda path: make.llama(path, layers=3, seed=2)),
        ("broken", "layers", "4", "3"),
        fault="models",
    ),
    Case(
        "more-layers",
        "A model with more layers than the base is refused: its last ones would be dropped.",
        other(lambda path: make.llama(path, layers=5, seed=2)),
        ("broken", "layers", "4", "5"),
        fault="models",
    ),
    Case(
        "vocabulary-sizes",
        "A larger vocabulary is refused with both sizes and the tokenizer key.",
        model(zero_rows(130)),
        ("broken", "vocabulary", "128", "130", "tokenizer"),
        fault="models",
    ),
    Case(
        "vocabulary-smaller",
        "A smaller vocabulary is refused with both sizes and the tokenizer key.",
        model(zero_rows(120)),
        ("broken", "vocabulary", "128", "120", "tokenizer"),
        fault="models",
    ),
    Case(
        "architectures-differ",
        "Models of two architectures are refused.",
        other(lambda path: make.gpt2(path, seed=2)),
        ("broken", "GPT2LMHeadModel", "LlamaForCausalLM", "wanted"),
        fault="models",
    ),
    Case(
        "vit-in-part",
        "A ViT that lacks a tensor is refused by its name, and its architecture is not blamed.",
        vit_without("vit.encoder.layer.0.output.dense.weight"),
        ("tuned", "lacks", "vit.encoder.layer.0.output.dense.weight", "whole"),
        fault="models",
    ),
    Case(
        "kinds-differ",
        "Integers where the other models hold floats are refused by tensor.",
        model(to_integers),
        ("broken", "I32", UP, "wanted"),
        fault="models",
    ),
    Case(
        "integers-everywhere",
        "Integer weights in all models are refused: a task vector of integers is rounded away.",
        integers_everywhere,
        ("int32", UP, "wanted"),
        fault="models",
    ),
]


WEIGHTS = [
    Case(
        "nan-in-the-base",
        "NaN in the base is refused by tensor and model.",
        base(set_entry(UP, NAN)),
        (UP, "broken", "NaN", "wanted", "allow_nonfinite"),
        fault="weights",
    ),
    Case(
        "nan-in-a-model",
        "NaN in a fine-tuned model is refused by tensor and model.",
        model(set_entry(HEAD, NAN)),
        (HEAD, "broken", "NaN", "wanted", "allow_nonfinite"),
        fault="weights",
    ),
    Case(
        "infinity-in-a-model",
        "Infinity in a fine-tuned model is refused by tensor and model.",
        model(set_entry(UP, -INF)),
        (UP, "broken", "infinity", "wanted", "allow_nonfinite"),
        fault="weights",
    ),
    Case(
        "nan-under-auto",
        "NaN is found while alpha: auto is calibrated, too.",
        model(set_entry(UP, NAN), parameters={"wrap": "ties", "beta": 0.3}),
        (UP, "broken", "NaN", "allow_nonfinite"),
        fault="weights",
    ),
    Case(
        "nan-under-larv",
        "NaN is found while larv takes ranks, too, whatever allow_nonfinite says.",
        model(
            set_entry(UP, NAN),
            parameters={"schedule": "larv", "alpha": 0.3, "allow_nonfinite": True},
        ),
        ("parameters.schedule", "larv", UP, "broken", "NaN", "wanted finite", "Repair"),
        fault="weights",
    ),
    Case(
        "models-equal-to-the-base",
        "alpha: auto with models that equal the base is refused: Eq. 2 divides zero by zero.",
        alike,
        ("alpha", "auto", "zero", "base_model", "give alpha"),
        fault="weights",
    ),
    Case(
        "token-without-a-source",
        "A token of the recipe for which no embedding can be told is refused.",
        top(tokenizer={"source": "base", "tokens": {"w3": {"force": True}}}),
        ("tokenizer.tokens", "w3", "source"),
        fault="weights",
    ),
    Case(
        "token-that-the-base-lacks",
        "A token that mergekit cannot add to the base's vocabulary is refused with the remedy.",
        top(tokenizer={"source": "base", "tokens": {"<new>": {"source": {"kind": "zero"}}}}),
        ("tokenizer.tokens", "<new>", "source: union"),
        fault="weights",
    ),
    Case(
        "weights-summing-to-zero",
        "Weights that sum to zero under wrap: linear are refused, not written as NaN.",
        lambda folder, models: recipe(
            models,
            models=[entry(models.a, weight=1), entry(models.b, weight=-1)],
            parameters={"wrap": "linear", "alpha": 0.3, "beta": 0.3},
        ),
        ("linear", "weight", "sum to zero"),
        fault="weights",
    ),
    Case(
        "overflow-of-fp16",
        "A result beyond fp16 is refused with another out_dtype.",
        lambda folder, models: recipe(
            models, dtype="float16", parameters={"alpha": 1e8, "beta": 0.3}
        ),
        ("tensor", "float16", "out_dtype", "bfloat16"),
        fault="weights",
    ),
]
