"""``mergekit-lines learn``: learn the coefficients of blocks on examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_lines.cli.options.searching import MODEL, draw, memory_size
from mergekit_lines.errors import tell


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Texts: paragraphs parted by blank lines, JSON lines with a text and perhaps a label, or "
    "CSV with these columns. Or a folder of images, those of one class in a folder of its name.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Results go here.")
@click.option(
    "--objective",
    default="entropy",
    show_default=True,
    help="entropy of the predictions, or loss: negative log-likelihood of tokens or labels.",
)
@click.option(
    "--per-model",
    is_flag=True,
    help="Learn those of every model's own task vector, not the merge's.",
)
@click.option(
    "--logits",
    metavar="SPEC",
    help="python:MODULE:FUNCTION, a function of model, tokenizer and rows of the data that returns "
    "their logits: for models that are neither language models nor classifiers.",
)
@click.option("--steps", type=int, default=30, show_default=True, help="Of Adam, a batch each.")
@click.option(
    "--batch-size", type=int, default=4, show_default=True, help="Windows, texts or images."
)
@click.option("--lr", "learning_rate", type=float, default=0.03, show_default=True, help="Of Adam.")
@click.option(
    "--held-out", type=float, default=0.25, show_default=True, help="Share that is measured only."
)
@click.option("--max-length", type=int, help="Tokens in a window or text.  [default: at most 1024]")
@click.option("--limit", type=int, help="Use the first N examples only.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the parts and batches.")
@click.option("--dtype", help="Of the weights meanwhile, e.g. float32.  [default: the recipe's]")
@click.option("--device", help="Hold the model on this device.  [default: cpu]")
@click.option(
    "--memory-budget",
    callback=memory_size,
    default="4GiB",
    show_default=True,
    help="Host memory for task vectors of wraps such as ties; the rest goes to disk.",
)
@click.option("--num-threads", type=click.IntRange(min=1), help="Threads that merge.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the models.")
@click.option("--quiet", is_flag=True, help="No progress; the table only.")
def learn(recipe: Path, data: Path, out: Path, **options: Any) -> None:
    """Learn a coefficient for each block on texts or images.

    Adam minimises the entropy of predictions (as AdaMerging does), or the loss: of the tokens of
    a language model, or of the classes of a classifier of texts or images. It goes from the
    recipe's own coefficients on, or from the best uniform one where that is better on the
    training part. A share of the examples is held out and measured only: at the recipe's own
    coefficients, at the best uniform one, and at the learnt ones.

    With --per-model every model's own task vector has a coefficient for each block: for wraps
    that add them up by weights, such as task_arithmetic and dare_linear.

    OUT gets learned.yml, a recipe for mergekit-yaml with the values written out (from the
    beginning on: Ctrl-C keeps the best so far), learned.json and figure.png. What was learnt
    there to the end is not learnt again.

    With --logits any other model learns, such as an encoder that chooses the nearest label: the
    function is called as function(model, tokenizer, rows), each row a line of the data, and
    returns a tensor of logits, a row for each. A label is the number of its column.

    Labels are the classes' names or their numbers; where names are numerals of other numbers,
    such as 1 to 5 of stars, names alone.

    Memory: the weights once, three times their largest tensor for gradients, and the activations
    of one batch; the models stay on the disk. 16-bit weights are slow on most CPUs: give --dtype
    float32 there.
    """
    from mergekit_lines.search.learn import learn as search
    from mergekit_lines.search.learning import show
    from mergekit_lines.search.store import FIGURE, LEARNED

    model = {name: options.pop(name) for name in MODEL if name in options}
    model = {name: value for name, value in model.items() if value not in (None, False)}
    learned = search(recipe, data, out, **options, **model)
    show.show_learned(learned)
    draw(show.draw_learned, learned, out / FIGURE)
    tell(f"recipe: {out / LEARNED}")
