"""``mergekit-lines edit``: ``lines_postprocess`` without writing YAML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from mergekit_lines.cli.options.flags import shard_size
from mergekit_lines.errors import LinesError, reason

if TYPE_CHECKING:
    from mergekit.options import MergeOptions

WORDS = (
    "gamma",
    "alpha",
    "beta",
    "schedule",
    "outside",
    "blocks",
    "num_blocks",
    "allow_nonfinite",
)


def value(text: str) -> int | float | str:
    """Return a number where the text is one, as YAML would; the words say what is a good one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@click.command()
@click.argument("model", type=click.Path())
@click.option("--base", type=click.Path(), required=True, help="What MODEL was fine-tuned from.")
@click.option("--out", type=click.Path(), help="The folder or file to make.")
@click.option("--gamma", type=value, help="0 to 1: alpha = GAMMA, beta = 1 - GAMMA.")
@click.option("--alpha", type=value, help="Coefficient of the first block.")
@click.option("--beta", type=value, help="Coefficient gained from first to last block.")
@click.option(
    "--schedule",
    type=value,
    help="linear, sqrt, quadratic, an exponent above 0, or the coefficients: 0.1,0.2,0.4,1.",
)
@click.option("--blocks", help="Containers that count, e.g. decoder.block,encoder.block.")
@click.option("--num-blocks", type=value, help="Block count where the names cannot tell.")
@click.option("--outside", type=value, help="Coefficient outside the blocks: alpha or a number.")
@click.option("--allow-nonfinite", is_flag=True, help="Go on although MODEL or BASE holds NaN.")
@click.option("--dtype", help="Cast the inputs to this first: float32, bfloat16, …")
@click.option("--out-dtype", help="Round the result to this.")
@click.option("--out-shard-size", callback=shard_size, help="As mergekit's: 500M, 5B.")
@click.option("--device", help="Compute on this device.  [default: cpu]")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the models.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--print-recipe", is_flag=True, help="Print the recipe this stands for, and stop.")
def edit(model: str, base: str, out: str | None, print_recipe: bool, **flags: Any) -> None:
    """Scale one model's change from its base by depth.

    MODEL and BASE are folders or Hub ids; MODEL may be BASE+ADAPTER. It is what mergekit-yaml
    does with merge_method: lines_postprocess, to the byte; give --gamma, or --alpha and --beta,
    or the coefficients themselves, from the first block to the last, as --schedule.

    For timm and open_clip, MODEL and BASE may be one .safetensors file each, or a folder
    with exactly one and no config.json (where there is one, name the file itself). OUT is
    then a .safetensors file, or a folder in which the file keeps MODEL's name; the report is
    written beside it as NAME.lines_report.json, and tensors are read one pair at a time.
    """
    _check_usage(model, base, out, print_recipe, flags)
    recipe = recipe_text(model, base, flags)
    files = _files(model, base)
    if print_recipe:
        if files:
            raise LinesError(
                f"--print-recipe: {files[0]} has no config.json, without which mergekit-yaml reads "
                f"no model; wanted folders that it reads. Leave --print-recipe out."
            )
        click.echo(recipe, nl=False)
        return
    import mergekit_lines

    mergekit_lines.register()
    if files:
        _edit_file(files, Path(str(out)), recipe, flags)
        return
    from mergekit import merge  # not `run_merge` by name: register() puts ours in its place

    options = _options(flags)
    merge.run_merge(_config(recipe), str(out), options=options, config_source=recipe)


def _check_usage(
    model: str, base: str, out: str | None, print_recipe: bool, flags: dict[str, Any]
) -> None:
    if "" in (model, base, out):
        raise click.UsageError("Found an empty MODEL, --base or --out, wanted a path or Hub id.")
    for flag, path in {"MODEL": model, "--base": base, "--out": out or ""}.items():
        try:
            path.encode()
        except UnicodeEncodeError:
            raise LinesError(
                f"{flag} {path}: a name in this path is no UTF-8, which neither YAML nor "
                f"safetensors takes. Rename the folder, or use a link of another name."
            ) from None
    if out is None and not print_recipe:
        raise click.UsageError("Missing option '--out'.")
    has = [word for word in ("gamma", "alpha", "beta") if flags[word] is not None]
    values = "," in str(flags["schedule"])  # the recipe's words say what may not stand beside them
    if not values and has not in (["gamma"], ["alpha", "beta"]):
        named = ", ".join(f"--{word}" for word in has) or "none of them"
        raise click.UsageError(
            f"Found {named}, wanted --gamma alone or --alpha and --beta both "
            f"(--gamma 0.3 is --alpha 0.3 --beta 0.7)."
        )


class _Dumper(yaml.SafeDumper):
    """Indents lists, as recipes usually are."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)


def recipe_text(model: str, base: str, flags: dict[str, Any]) -> str:
    """Return the recipe that an edit stands for, with only what was given."""
    flagged = {**flags, "allow_nonfinite": flags.get("allow_nonfinite") or None}
    parameters = {word: flagged[word] for word in WORDS if flagged.get(word) is not None}
    recipe = {
        "merge_method": "lines_postprocess",
        "base_model": base,
        "models": [{"model": model}],
        "parameters": parameters,
        **{key: flags[key] for key in ("dtype", "out_dtype") if flags.get(key)},
    }
    text = yaml.dump(
        recipe, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return str(text)


def _edit_file(files: tuple[Path, Path], out: Path, recipe: str, flags: dict[str, Any]) -> None:
    from mergekit_lines.merges.single_file import edit_file

    if flags["out_shard_size"] is not None:
        raise LinesError(
            f"--out-shard-size: {files[0]} is one file, and so is what is made of it. Leave it out."
        )
    target = out if out.suffix == ".safetensors" else out / files[0].name
    edit_file(files[0], files[1], target, _config(recipe), _options(flags), recipe)


def _options(flags: dict[str, Any]) -> MergeOptions:
    from mergekit.options import MergeOptions

    keys = ("device", "trust_remote_code", "quiet", "out_shard_size")
    options = MergeOptions(**{key: flags[key] for key in keys if flags[key] is not None})
    options.apply_global_options()
    if options.quiet:
        # mergekit's flag does not reach the bars of transformers, which merges adapters.
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    return options


def _config(recipe: str) -> Any:
    from mergekit.config import MergeConfiguration

    try:
        return MergeConfiguration.model_validate(yaml.safe_load(recipe))
    except (ValueError, RuntimeError) as error:  # "a+b+c" for a model
        raise LinesError(
            f"MODEL or --base is not a model's name ({reason(error)}). Write a folder or Hub id, "
            f"with +ADAPTER for an adapter."
        ) from error


def _files(model: str, base: str) -> tuple[Path, Path] | None:
    """Return the two files where MODEL and BASE are one safetensors file each.

    Raises:
        LinesError: only one of them is, or a file that is named does not exist.
    """
    files = (_file(model), _file(base))
    if files[0] is not None and files[1] is not None:
        return files[0], files[1]
    if files == (None, None):
        return None
    one, other = (model, base) if files[0] else (base, model)
    flag = "--base" if files[0] else "MODEL"
    raise LinesError(
        f"{flag} {other}: found {_kind(Path(other))}, and {one} is one safetensors file, wanted "
        f"the same kind for MODEL and --base. Name the .safetensors file for {flag}, or folders "
        f"with a config.json for both."
    )


def _kind(path: Path) -> str:
    if not path.is_dir():
        return "another file" if path.exists() else "no file or folder of this name (a Hub id?)"
    if (path / "config.json").exists():
        return "a folder with a config.json"
    return f"a folder with {len(list(path.glob('*.safetensors')))} safetensors files"


def _file(place: str) -> Path | None:
    path = Path(place)
    if path.suffix == ".safetensors" and not path.is_dir():
        if not path.exists():
            raise LinesError(f"{place}: there is no such file. Check the path.")
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    held = sorted(path.glob("*.safetensors"))
    # An adapter is no model: mergekit's own way tells what to write.
    return held[0] if len(held) == 1 and not (path / "adapter_config.json").exists() else None
