"""Texts of others: read whole within the bounds, refused by a sentence beyond them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergekit_lines.checkpoint.bounded import (
    DEPTH,
    MIB,
    NODES,
    check_regular,
    parse_documents,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    special_files,
)
from mergekit_lines.errors import TextError, reason


def refusal(function: Any, *arguments: Any) -> str:
    with pytest.raises(TextError) as caught:
        function(*arguments)
    return str(caught.value)


def bomb(levels: int, width: int = 9) -> str:
    """Return YAML of a few lines that comes to ``width ** levels`` texts."""
    lines = ["a0: &a0 [lol]"]
    for level in range(1, levels + 1):
        aliases = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines)


def test_a_pipe_a_socket_and_a_folder_are_not_opened(tmp_path: Path) -> None:
    """What is no regular file is named as what it is; a pipe without a writer does not wait."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("pipe", "socket"):
            expected = f"it is a {name}, wanted a regular file"
            assert refusal(read_text, tmp_path / name) == expected
    assert refusal(read_text, tmp_path) == "it is a folder, wanted a regular file"
    assert refusal(check_regular, Path(os.devnull)) == "it is a device, wanted a regular file"
    assert refusal(read_text, Path("/dev/zero")) == "it is a device, wanted a regular file"


def test_a_folder_is_searched_for_what_is_no_file(tmp_path: Path) -> None:
    """A pipe is named; folders, files and links to nothing are as they are anywhere."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert list(special_files(tmp_path)) == []
    os.mkfifo(tmp_path / "pipe")
    (problem,) = special_files(tmp_path)
    assert problem.startswith(f"{tmp_path / 'pipe'}: it is a pipe, wanted a regular file.")


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    """The Hub's cache is made of links."""
    (tmp_path / "blob").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "blob")
    assert read_text(tmp_path / "link") == "text"
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "gone")


def test_a_text_is_read_up_to_its_bound(tmp_path: Path) -> None:
    """A byte more than the bound is refused."""
    path = tmp_path / "text"
    path.write_bytes(b"x" * MIB)
    assert len(read_text(path, MIB)) == MIB
    path.write_bytes(b"x" * (MIB + 1))
    assert refusal(read_text, path, MIB) == "it holds more than 1 MiB"


def test_what_is_not_utf8_is_said_with_its_place(tmp_path: Path) -> None:
    """Text in another encoding is no text; line ends are Python's."""
    path = tmp_path / "text"
    path.write_bytes(b"ab\xff")
    assert refusal(read_text, path) == "it is not UTF-8 text: byte 0xff at position 2"
    path.write_bytes("α\r\nβ\rγ".encode())
    assert read_text(path) == path.read_text(encoding="utf-8") == "α\nβ\nγ"


@pytest.mark.parametrize("depth", [DEPTH + 1, 5_000, 400_000])
@pytest.mark.parametrize("ends", [("[", "]"), ('{"a":', "}")])
def test_json_is_nested_at_most_64_deep(depth: int, ends: tuple[str, str]) -> None:
    """Deeper ones are refused, also those that Python's own parser gives up."""
    left, right = ends
    inner = "1" if left != "[" else ""
    assert parse_json(left * DEPTH + inner + right * DEPTH) == json.loads(
        left * DEPTH + inner + right * DEPTH
    )
    assert refusal(parse_json, left * depth + inner + right * depth) == (
        "it is nested more than 64 deep"
    )


@pytest.mark.parametrize("text", ["", "{", "[1,]", "nul", "1" * 5_000, '"\t"'])
def test_what_is_no_json_is_refused(text: str) -> None:
    """Also a number of so many digits that Python does not read it."""
    assert refusal(parse_json, text).startswith("it is no JSON: ")


@pytest.mark.parametrize("value", [5, None, "text", [], {}, {"a": [1, {"b": "ü"}]}])
def test_json_is_what_pythons_parser_makes_of_it(tmp_path: Path, value: Any) -> None:
    """Within the bounds nothing changes."""
    path = tmp_path / "file.json"
    path.write_text(json.dumps(value))
    assert read_json(path) == value


@pytest.mark.parametrize("text", [r'["\ud800"]', r'{"\uDC00": 1}', r'{"a": [["b\ud83d"]]}'])
def test_half_a_character_is_refused(text: str) -> None:
    """A half of a surrogate pair could be written into no file; whole pairs are fine."""
    assert refusal(parse_json, text).startswith("it holds half of a character: ")
    assert parse_json(r'["\ud83d\ude00"]') == ["😀"]
    assert refusal(parse_yaml, r'a: "\ud800"')  # in libyaml's words


def test_aliases_are_counted_as_what_they_stand_for() -> None:
    """Nine levels of nine aliases are a few lines, and 435 million values."""
    expected = f"it comes to more than {NODES:,} values, aliases written out"
    assert refusal(parse_yaml, bomb(9)) == expected
    assert refusal(parse_documents, f"a: 1\n---\n{bomb(9)}") == expected
    merged = "a: &a {k: 1, l: 2}\n" + "\n".join(
        f"b{n}: &b{n}\n  <<: [{', '.join([f'*b{n - 1}' if n else '*a'] * 9)}]" for n in range(9)
    )
    assert refusal(parse_yaml, merged) == expected
    assert refusal(parse_yaml, "\n".join(f"- {n}" for n in range(NODES + 1))).startswith(
        "it comes to more than"
    )


def test_anchors_of_a_recipe_are_read() -> None:
    """Aliases as people write them, merge keys and an anchor that is used again are fine."""
    text = "a: &x {k: 1}\nb: *x\nc:\n  <<: *x\n  l: 2\nd: [*x, *x]\n---\ne: &x [1]\nf: *x\n"
    assert parse_documents(text) == list(yaml.safe_load_all(text))
    assert parse_yaml(bomb(3)) == yaml.safe_load(bomb(3))


@pytest.mark.parametrize("text", ["a: &a [*a]", "&a {k: *a}", "a: &a\n  b: [{c: *a}]"])
def test_an_alias_of_what_is_around_it_is_refused(text: str) -> None:
    """A value that holds itself has no end."""
    assert refusal(parse_yaml, text) == ("its alias *a stands for what it is itself a part of")


@pytest.mark.parametrize("text", ["[" * 900, "- " * 65 + "1", "{a: " * 65 + "1" + "}" * 65])
def test_yaml_is_nested_at_most_64_deep(text: str) -> None:
    """Deeper ones are refused before a parser that calls itself sees them."""
    assert refusal(parse_yaml, text) == "it is nested more than 64 deep"
    assert refusal(parse_yaml, "[" * 100_000)


@pytest.mark.parametrize(
    "text", ["9" * 2_000, ":".join(["59"] * 2_000), "!!int '" + "1" * 2_000 + "'", "1." * 2_000]
)
def test_a_number_without_end_is_refused(text: str) -> None:
    """Python's work on a number grows with the square of its digits."""
    assert refusal(parse_yaml, f"a: {text}") == "it holds a value of more than 1,000 digits"


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_many_coefficients_are_no_number(quote: str) -> None:
    """A text of a coefficient for each of 200 blocks is read, in quotes or plain."""
    text = ", ".join(f"{-0.123456 * n:.6f}" for n in range(200))
    assert parse_yaml(f"schedule: {quote}{text}{quote}") == {"schedule": text}


@pytest.mark.parametrize(
    "text", ["a: [", "*a", "a: !!python/object:os.system x", "? [a]\n: {[]: 1}", r'"\UFFFFFFFF"']
)
def test_what_is_no_yaml_is_refused_in_one_line(text: str) -> None:
    """Neither tags that make objects nor unhashable keys get through."""
    sentence = refusal(parse_yaml, text)
    assert sentence.startswith("it is no YAML: ") and "\n" not in sentence


def test_a_date_that_is_none_is_refused() -> None:
    """PyYAML lets errors of its values through, and those of its own under a tag."""
    for value in ("2001-13-41", "!!bool x", "!!timestamp x", "!!int x", "!!float x"):
        told = refusal(parse_yaml, f"a: {value}")
        assert told.startswith("it holds a value that YAML cannot read")


def test_a_megabyte_of_yaml_is_refused() -> None:
    """mergekit's own parser takes a megabyte in ten seconds."""
    assert refusal(parse_yaml, "#" * (MIB + 1)) == "it holds more than 1 MiB"


def test_the_words_of_a_refusal_stand_in_a_sentence() -> None:
    """Of a text that is refused no type of an exception is said."""
    assert reason(TextError("it is a pipe")) == "it is a pipe"
    assert reason(ValueError("it is\n a pipe")) == "ValueError: it is a pipe"
