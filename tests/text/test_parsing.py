"""Plain values from text, within bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnguide.text import parsing
from attnguide.text.parsing import as_real, as_whole, check_depth, parse_json, read_text, real_number, shown, whole_number


@pytest.mark.parametrize(("text", "number"), [("7", 7), (" -7 ", -7), ("+07", 7), ("1_0", None), ("٣", None), ("1.0", None)])
def test_whole_numbers_of_text(text: str, number: int | None) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 0.001), (".5", 0.5), ("-2.", -2.0), ("1_0", None), ("٣", None), ("x", None)]
)
def test_numbers_of_text(text: str, number: float | None) -> None:
    assert real_number(text) == number


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)])
def test_whole_numbers_of_any_library(value: Any) -> None:
    assert as_whole(value) == 3 and type(as_whole(value)) is int
    assert as_real(value) == 3.0


@pytest.mark.parametrize("value", [True, np.bool_(True), torch.tensor(True), "3", None, 3.5, [3], torch.tensor([3])])
def test_what_is_no_whole_number(value: Any) -> None:
    assert as_whole(value) is None


def test_numbers_of_any_library() -> None:
    assert as_real(np.float32(0.5)) == as_real(torch.tensor(0.5)) == 0.5
    assert as_real(True) is None and as_real(10**400) == float("inf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON: Expecting property name"),
        ('{"a": 1, "a": 2}', "the name 'a' stands twice"),
        ("[NaN]", "NaN is no number"),
        (f"[{'9' * 5000}]", "at most 40 digits; got 5000"),
        ("[" * 100 + "]" * 100, "nested more than 40 deep"),
        ("[" * 100_000, "not valid JSON: nested more than 40 deep"),
        (r'"\ud800"', "valid Unicode"),
    ],
)
def test_json_within_bounds(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_what_holds_itself_is_too_deep() -> None:
    own: list[Any] = []
    own.append({"own": own})
    with pytest.raises(ValueError, match="nested more than 40 deep"):
        check_depth(own)


def test_wide_values_are_checked_without_repeating_what_is_shared() -> None:
    value: Any = [1]
    for _ in range(30):
        value = [value] * 9
    check_depth(value)
    assert len(shown(value)) < 300


def test_long_values_are_shown_short() -> None:
    assert len(shown("x" * 10**6)) < 200 and len(shown(list(range(10**5)))) < 200
    assert shown(torch.zeros(64, 64)) == "Tensor of shape (64, 64)"


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large").write_text("x" * 11)
    monkeypatch.setattr(parsing, "MOST_BYTES", 10)
    names = {"gone": "does not exist", ".": "is no file", "n" * 300: "cannot be read: File name too long"}
    for name, message in {**names, "bytes": "bytes that are no text", "large": "at most 0 MiB"}.items():
        with pytest.raises(ValueError, match=f"^Table 'x' .*{message}"):
            read_text(tmp_path / name, "Table 'x'")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(_JSON | st.binary() | st.complex_numbers())
def test_everything_can_be_shown(value: Any) -> None:
    assert "\n" not in shown(value)


@given(st.text())
def test_any_text_is_json_or_refused(text: str) -> None:
    try:
        parse_json(text)
    except ValueError as error:
        assert str(error).startswith("not valid JSON: ")
