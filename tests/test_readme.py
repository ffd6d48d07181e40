"""What the READMEs say is so: recipes and commands run, words, errors and links are real."""

from __future__ import annotations

import ast
import json
import posixpath
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

import mergekit_lines
from mergekit_lines.cli import COMMANDS, main
from mergekit_lines.errors import LinesError
from mergekit_lines.lines.schedule import EXPONENTS
from mergekit_lines.methods.consensus import CONSENSUS
from mergekit_lines.methods.words import FOR_WRAP, LINES_WORDS, POSTPROCESS_WORDS
from tests import models, shaped
from tests.e2e import runner
from tests.e2e.runner import in_process
from tests.readmes import EXAMPLES, PAGES, PYTHON, README, RECIPES, anchors, blocks, file, section


def localised(text: str, base: Path, *others: Path) -> dict[str, Any]:
    """A recipe of the README with its models replaced by local ones."""
    recipe = yaml.safe_load(text)
    recipe["base_model"] = str(base)
    for entry, path in zip(recipe["models"], others, strict=False):
        entry["model"] = str(path)
    return recipe


def test_recipes_run(llama_base: Path, llama_a: Path, llama_b: Path, tmp_path: Path) -> None:
    """Every recipe shown merges, and gives the coefficients its comments name."""
    lines, postprocess = blocks(README, "yaml")
    assert lines.startswith("merge_method: lines\n")
    in_process(localised(lines, llama_base, llama_a, llama_b), tmp_path / "lines")
    edit = localised(postprocess, llama_base, llama_a)
    edit["out_dtype"] = "float32"
    out = models.read(in_process(edit, tmp_path / "edit"))
    zero, tuned = models.read(llama_base), models.read(llama_a)
    for block, kept in ((0, 0.3), (3, 1.0)):
        name = f"model.layers.{block}.self_attn.v_proj.weight"
        want = zero[name].double() + kept * (tuned[name].double() - zero[name].double())
        assert models.max_error_ratio(out[name], want) <= 1e-6


@pytest.mark.parametrize("number", range(8))
def test_python_examples(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python example runs, and what it asserts holds."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = blocks(PYTHON, "python")[number]
    assert "assert " in code
    exec(compile(code, f"README example {number}", "exec"), {"__name__": "readme"})


def test_there_are_eight_python_examples() -> None:
    """One example for every public name; sweep's stands for soup's, greedy's and learn's."""
    assert [len(blocks(page, "python")) for page in (README, RECIPES, EXAMPLES)] == [0, 0, 0]
    assert len(blocks(PYTHON, "python")) == 8


def test_table_of_a_wraps_own_words() -> None:
    """What we add to mergekit's methods, and the masks' words, with the defaults they have."""
    rows = re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", section(RECIPES, "The merges"), re.MULTILINE)
    told = {name: default.strip(" `") for name, default in rows}
    words = [word for more in FOR_WRAP.values() for word in more]
    words += [word for one in CONSENSUS for word in one.spec.parameters]
    known = {word.name: str(word.default) for word in words}
    assert {name: told.get(name) for name in known} | {
        name: known[name] for name in ("weight", "lambda", "density")
    } == known


def test_table_of_words() -> None:
    """The table names every word with its default, and says which method lacks it."""
    words = section(RECIPES, "The words")
    # Of three columns: the words of some wraps stand below in four.
    rows = re.findall(r"^\| `(\w+)` \|([^|\n]*)\|([^|\n]*)\|$", words, re.MULTILINE)
    ours = {word.name: word for word in (*POSTPROCESS_WORDS, *LINES_WORDS)}
    in_lines = {word.name for word in LINES_WORDS}
    in_postprocess = {word.name for word in POSTPROCESS_WORDS}
    assert {name for name, _, _ in rows} == set(ours)
    defaults = {
        "alpha": "`auto`",
        "beta": "to be given, but where `schedule` has values or is `larv`",
        "gamma": "",
        "blocks": "all found",
        "num_blocks": "from the names",
        "seed": "0",
        "allow_nonfinite": "`false`",
    }
    for name, meaning, default in rows:
        assert ("`lines` only" in meaning) == (name not in in_postprocess), name
        assert ("`lines_postprocess` only" in meaning) == (name not in in_lines), name
        assert default.strip() == defaults.get(name, f"`{ours[name].default}`"), name
    for word in EXPONENTS:
        assert f"`{word}`" in words


def test_what_inspect_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing is the recipe's true output, but for the lines that it leaves out."""
    monkeypatch.chdir(tmp_path)
    recipe = blocks(README, "yaml")[0]
    Path("recipe.yml").write_text(recipe, encoding="utf-8")
    for name in re.findall(r"model: (\S+)", recipe):
        shaped.write(tmp_path / name, shaped.LLAMA_7B, shaped.LLAMA.shapes, shaped.LLAMA.dtype)
    (listing,) = blocks(RECIPES, "console")
    prompt, *shown = listing.splitlines()
    assert prompt == "$ mergekit-lines inspect recipe.yml"
    result = CliRunner().invoke(main, ["inspect", "recipe.yml"])
    assert (result.exit_code, result.stderr) == (0, "")
    told = result.stdout.splitlines()
    for part in "\n".join(shown).split("\n…"):
        lines = part.strip("\n").splitlines()
        if lines:
            place = told.index(lines[0])
            assert told[place : place + len(lines)] == lines
            told = told[place + len(lines) :]
    Path("recipe.yml").write_text(recipe.replace("beta:", "bta:"), encoding="utf-8")
    result = CliRunner().invoke(main, ["inspect", "recipe.yml"])
    assert (result.exit_code, result.stderr.strip()) == (
        1,
        blocks(README, "text")[0].splitlines()[0],
    )


def test_inspect_commands_shown(
    llama_base: Path, llama_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other command line of that section runs, and makes its file."""
    monkeypatch.chdir(tmp_path)
    text = runner.recipe_text(localised(blocks(README, "yaml")[1], llama_base, llama_a))
    Path("recipe.yml").write_text(text, encoding="utf-8")
    lines = re.findall(r"^mergekit-lines (inspect recipe\.yml --.*)$", RECIPES, re.MULTILINE)
    commands = [line.partition("#")[0].strip() for line in lines]
    assert len(commands) == 4
    for command in commands:
        flags, _, target = command.partition(" > ")
        result = CliRunner().invoke(main, flags.split())
        assert result.exit_code == 0
        if target:
            Path(target).write_text(result.stdout, encoding="utf-8")
    assert json.loads(Path("plan.json").read_text())["documents"][0]["totals"]["read"] > 0
    for picture in ("depth.png", "look.png"):
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert "<table>" in Path("look.html").read_text(encoding="utf-8")


SHOWN = {
    "parameters.bta": {"bta": 0.5, "beta": 0.5},
    "parameters.wrap": {"wrap": "dare", "beta": 0.5},
    "parameters.beta": {"wrap": "ties"},
}


@pytest.mark.parametrize("place", SHOWN)
def test_errors_shown(place: str, llama_base: Path, llama_a: Path, tmp_path: Path) -> None:
    """Each message in the README is the one the recipe gets."""
    (listing,) = blocks(README, "text")
    (shown,) = [line for line in listing.splitlines() if f" {place}:" in line]
    recipe = {
        "merge_method": "lines",
        "base_model": llama_base,
        "models": [{"model": llama_a}],
        "parameters": SHOWN[place],
    }
    with pytest.raises(LinesError) as caught:
        in_process(recipe, tmp_path / "out")
    assert f"Error: {caught.value.format_message()}" == shown


def texts_of_the_package() -> str:
    """Every text in the package's source, with {} where a value goes."""
    found = []
    for path in Path(mergekit_lines.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "{}" for v in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_errors_explained_are_errors_of_the_package() -> None:
    """Each message that the README explains is one of the package, or mergekit's own."""
    texts = texts_of_the_package()
    explained = re.findall(
        r"^- \*(.*?)\*", section(README, "Errors you may meet"), re.MULTILINE | re.DOTALL
    )
    assert len(explained) == 4
    for message in explained:
        for part in message.split("…"):
            assert part.strip().replace("\n  ", " ") in texts + "Unimplemented merge method lines"


def linked(page: str) -> list[tuple[str, str]]:
    """Every relative link of a page: the repository's file that it names, and the fragment."""
    links = []
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if not target.startswith("http"):
            name, _, fragment = target.partition("#")
            place = posixpath.normpath(posixpath.join(posixpath.dirname(page), name))
            links.append((place if name else page, fragment))
    return links


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link is a file of the repository, and a fragment one of its headings."""
    for name, fragment in linked(page):
        assert file(name).exists(), name
        assert not fragment or fragment in anchors(PAGES[name]), fragment


def test_every_page_is_reached_from_the_first() -> None:
    """README.md links all the other pages."""
    assert {name for name, _ in linked("README.md")} >= set(PAGES) - {"README.md"}


def test_readme_is_an_entrance() -> None:
    """README.md is under 200 lines; what is more stands beside what it explains."""
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize("page", PAGES)
def test_scripts_exist(page: str) -> None:
    """The scripts that a page calls are there."""
    for script in re.findall(r"(?:bash|python) ((?:examples|tests)/[\w.]+)", PAGES[page]):
        assert file(script).is_file(), script


def test_every_example_has_a_row() -> None:
    """The table of examples names every script that is started by itself, with its time."""
    rows = re.findall(r"^\| `\w+ (examples/[\w.]+)[^`]*` \|.+\| .+ \|$", EXAMPLES, re.MULTILINE)
    scripts = {path.name for path in file("examples").iterdir() if path.suffix in (".py", ".sh")}
    started = {name for name in scripts if not name.startswith("_")}
    by_shell = {name.replace(".sh", ".py") for name in started if name.endswith(".sh")}
    assert {Path(row).name for row in rows} == started - by_shell


def test_every_recipe_has_a_row() -> None:
    """The table of recipes names every file, with the method and the numbers that it has."""
    rows = re.findall(
        r"^\| \[(.+)\]\(\1\.yml\) \|.*\| `(\w+)` \| (`.*`) \|.*\|$", RECIPES, re.MULTILINE
    )
    assert sorted(row[0] for row in rows) == sorted(
        path.stem for path in file("recipes").glob("*.yml")
    )
    for name, method, numbers in rows:
        *_, recipe = yaml.safe_load_all(file(f"recipes/{name}.yml").read_text(encoding="utf-8"))
        assert method == recipe["parameters"].get("wrap", recipe["merge_method"]), name
        for number in re.findall(r"`(.*?)`", numbers):
            assert yaml.safe_load(number).items() <= recipe["parameters"].items(), name


def test_table_of_commands() -> None:
    """The table names every command of mergekit-lines, and no other."""
    rows = re.findall(r"^\| `mergekit-lines (\w+)", section(README, "The commands"), re.MULTILINE)
    assert sorted(rows) == sorted(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page: str) -> None:
    """Every flag of a command line shown is one that the command takes."""
    text = PAGES[page].replace("\\\n", " ")
    lines = re.findall(r"(?:^|`)mergekit-lines (\w+)([^`\n#>]*)", text, re.MULTILINE)
    for name, rest in lines:
        command = main.get_command(click.Context(main), name)
        assert command is not None, name
        options = {flag for parameter in command.params for flag in parameter.opts}
        assert set(re.findall(r"(?<=\s)--[\w-]+", rest)) <= options, rest


@pytest.mark.parametrize("page", ["mergekit_lines/README.md", "CONTRIBUTING.md"])
def test_files_named_are_there(page: str) -> None:
    """Every file or folder of the package that a page names, as `plan/fit.py`, is one."""
    for name in re.findall(r"`([a-z_]+/[\w/.]*)`", PAGES[page]):
        assert file(name).exists() or file(f"mergekit_lines/{name}").exists(), name
