"""``mergekit-lines push``: a merged model to the Hub, with its card, in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_lines.errors import tell, visible

if TYPE_CHECKING:
    from mergekit_lines.hub.parcel import Parcel


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("repo", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Make a new model private.")
@click.option("--branch", help="Commit to this branch, which is made if it is not there.")
@click.option("--message", help="Of the commit.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--license", "licence", help="Where the inputs' licences differ or are not known.")
@click.option("--dry-run", is_flag=True, help="Print the card and the files, and send nothing.")
def push(out: Path, repo: str, dry_run: bool, **words: Any) -> None:
    """Put a merged model on the Hub, with its card, in one commit.

    OUT is the folder of a merge by lines or lines_postprocess, whole and as its report says. The
    weights are sent first, and show together with everything else; what an interrupted push has
    sent is not sent again. The token is the one that huggingface_hub finds (`hf auth login`).

    Nothing in OUT is changed. In what is sent, models on this machine go by their folder's name.
    """
    if words["branch"] and words["create_pr"]:
        raise click.UsageError("--branch and --create-pr: a pull request has a branch of its own.")
    from mergekit_lines.hub.parcel import PushOptions, pack
    from mergekit_lines.hub.push import reach, send

    options = PushOptions(repo, **words)
    if not dry_run:
        reach(options)
    parcel = pack(out, options)
    for note in parcel.notes:
        tell(note)
    if dry_run:
        click.echo(visible(parcel.card, keep="\n\t"))
        _list(parcel)
        return
    click.echo(visible(send(parcel, options, tell)))


def _list(parcel: Parcel) -> None:
    sizes = {name: parcel.size(name) for name in parcel.files}
    width = max(len(f"{sum(sizes.values()):,}"), 5)
    for name, size in sizes.items():
        click.echo(f"{size:>{width},}  {visible(name)}")
    click.echo(f"{sum(sizes.values()):>{width},}  bytes in {len(sizes)} files")
