"""Syntax of web UIs is named once a run; ordinary text is not taken for it."""

import warnings

import pytest

from attnguide.prompt.syntax import find_syntax, warn_of_syntax
from attnguide.rows.samples import check_samples
from attnguide.types import Sample


@pytest.mark.parametrize(
    ("prompt", "piece"),
    [
        ("a (red cat:1.3) on grass", "(red cat:1.3)"),
        ("a (cat: .8)", "(cat: .8)"),
        ("a ((red)) cat", "((red))"),
        ("a (red cat)1.3", "(red cat)1.3"),
        ("a (red cat)++", "(red cat)++"),
        ("a [dog] and a cat", "[dog]"),
        ("a [cat:dog:0.5]", "[cat:dog:0.5]"),
        ("a cat <lora:x:0.8>", "<lora:x:0.8>"),
        ("a cat BREAK a dog", "BREAK"),
        ("a cat AND a dog", "AND"),
        ("a {red|blue} cat", "{red|blue}"),
        ("a [red|blue] cat", "[red|blue]"),
        ("a {red} cat", "{red}"),
        ("a __colour__ cat", "__colour__"),
    ],
)
def test_syntax_is_found(prompt: str, piece: str) -> None:
    assert [found for found, _ in find_syntax(prompt)] == [piece]


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat (black) and a dog",
        "a photo (2019), sharp",
        "two cats (one black, one white)",
        "a clock at 1:30",
        "a <thing> on grass",
        "A RED CAT AND A BLUE DOG",
        "a sign that says ROCK AND ROLL",
        "band and brand, a sandbreak",
        "a snake_case name",
        "a smiley :) and 3 < 4",
    ],
)
def test_ordinary_text_is_left_alone(prompt: str) -> None:
    assert find_syntax(prompt) == []


def test_one_warning_names_each_kind_and_what_to_do() -> None:
    with pytest.warns(UserWarning, match="read as letters") as told:
        warn_of_syntax(["a (cat:1.3)", "a (dog:1.2) <lora:x:1>", "a cat"])
    assert len(told) == 1
    text = str(told[0].message)
    assert "'(cat:1.3)': set prompt_syntax to 'weights' (--prompt-syntax weights)" in text
    assert "load_lora_weights" in text and "dog" not in text


def test_a_run_warns_of_its_prompts_and_negative_prompts() -> None:
    with pytest.warns(UserWarning, match=r"'\(blurry:1\.2\)'"):
        check_samples([Sample("0", "a cat", negative_prompt="(blurry:1.2)")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_samples([Sample("0", "a cat (black)")])
