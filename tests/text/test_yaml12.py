"""YAML means what it says, within bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attnguide.text.yaml12 import YamlError, dump_yaml, parse_yaml, read_yaml, yaml_value


@pytest.mark.parametrize("text", ["1:30", "yes", "no", "on", "off", "y", "1_000", "2024-01-01", "0b11", "=", "1e", "e5", "0o8"])
def test_texts_stay_texts(text: str) -> None:
    assert yaml_value(f"key: {text}") == {"key": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e5", 1e5),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("+1", 1),
        ("~", None),
        ("", None),
        ("True", True),
        ("FALSE", False),
        ("-.inf", float("-inf")),
        ("'1'", "1"),
        ('"1e5"', "1e5"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
    ],
)
def test_core_schema(text: str, value: Any) -> None:
    found = yaml_value(f"- {text}")[0]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\na: 2", 2, "key 'a' stands twice"),
        ("1: a\n01: b", 2, "key '01' stands twice"),
        ("? [a]\n: b", 1, "expected a name as key"),
        ("- &a [*a]", 1, "an alias stands inside what it stands for"),
        ("- *a", 1, "alias 'a' stands for nothing"),
        ("- 1\n- !!set {a}", 2, "expected a plain mapping; got the tag"),
        ("!!binary aaaa", 1, "expected a plain value"),
        ("!!python/object:os.system x", 1, "expected a plain value"),
        ("!!int 1:30", 1, "expected a plain value"),
        ("a\n---\nb", 2, "expected one document"),
        ("- x\n- [a", 2, "not valid YAML"),
        ("\0", 1, "not valid YAML"),
        ("\ud800", 1, "valid Unicode"),
        ("- " + "9" * 41, 1, "at most 40 digits; got 41"),
        ("[" * 1_000_000, 1, "nested more than 40 deep"),
        ("\n".join(" " * depth + "a:" for depth in range(60)), 41, "nested more than 40 deep"),
        ("<<: 1", 1, "'<<' takes over a mapping"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_refused_is_named_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(YamlError, match=message) as refused:
        parse_yaml(text)
    assert refused.value.line == line


def test_aliases_that_make_too_much_are_refused_before_it_is_made() -> None:
    levels = [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 12)]
    with pytest.raises(YamlError, match="aliases must add at most 100,000 entries"):
        parse_yaml("\n".join(["l0: &l0 [x, x, x, x, x, x, x, x, x]", *levels]))


def test_merge_keys() -> None:
    text = "one: &one {a: 1, b: 2}\ntwo: &two {b: 3, c: 4}\nboth: {<<: [*one, *two], a: 5}\nquoted: {'<<': 6}"
    found = yaml_value(text)
    assert found["both"] == {"a": 5, "b": 2, "c": 4} and found["quoted"] == {"<<": 6}


def test_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\nb: [")
    with pytest.raises(ValueError, match=r"a\.yaml, line 2: not valid YAML"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match=r"File '.*gone\.yaml' does not exist"):
        read_yaml(tmp_path / "gone.yaml")


_TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.from_regex(r"[-+.0-9eExo_:~a-f]{1,6}", fullmatch=True)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(_VALUES)
def test_what_is_written_is_read_again(value: Any) -> None:
    found = yaml_value(dump_yaml(value))
    assert found == value and repr(found) == repr(value)


@given(_TEXTS)
def test_readers_of_the_older_yaml_read_the_same_texts(text: str) -> None:
    if text != "=":  # of which PyYAML itself makes nothing
        assert yaml.safe_load(dump_yaml({"key": text})) == {"key": text}


@given(st.text(max_size=40) | st.text("[]{}&*!<>:-?#|\n '\"ab1,", max_size=30))
def test_any_text_is_yaml_or_refused(text: str) -> None:
    try:
        node, value = parse_yaml(text)
        assert node is not None or value is None
    except YamlError as error:
        assert error.line >= 1
