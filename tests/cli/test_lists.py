"""``attnguide methods``, ``attnguide models`` and the top-level help."""

from __future__ import annotations

import inspect

import pytest

from attnguide.cli.signatures import options_of
from attnguide.methods import METHODS, method_class, method_options

from .conftest import Command


def test_methods_are_listed_a_name_first_on_each_line(attnguide: Command) -> None:
    lines = attnguide("methods").out.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert [line.split()[1] for line in lines] == [f"{info.family}:" for info in METHODS.values()]


def test_models_are_listed_a_name_first_on_each_line(attnguide: Command) -> None:
    lines = attnguide("models").out.splitlines()
    assert lines[0].split()[0] == "shapes" and len(lines) >= 4
    assert all(line.split()[0] not in ("", "-") for line in lines)


@pytest.mark.parametrize("name", METHODS)
def test_options_read_from_source_are_those_of_the_class(name: str) -> None:
    read = options_of(name)
    assert list(read) == list(method_options(name))
    for option, parameter in inspect.signature(method_class(name)).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and read[option].annotation:
            assert parameter.annotation == read[option].annotation


def test_one_methods_options(attnguide: Command) -> None:
    said = attnguide("methods", "inject3").out
    assert said.startswith("inject3  injection: add to scores, largest maps; needs a region with a place")
    assert "\n  scale" in said and "30.0" in said
    assert "'probs'" not in said.split("stage")[1].split()[0]


def test_a_method_that_reads_groups_says_so(attnguide: Command) -> None:
    assert "--group" in attnguide("methods", "syngen").out and "--group" not in attnguide("methods", "mask_guidance").out


def test_help_names_every_command(attnguide: Command) -> None:
    for words in ([], ["--help"], ["help"]):
        ended = attnguide(*words)
        assert ended.status == 0
        assert all(f"\n  {name} " in ended.out for name in ("sample", "methods", "models"))
    assert attnguide("--version").out.startswith("attnguide ")


@pytest.mark.parametrize("command", ["sample", "methods", "models"])
def test_every_command_has_help_with_an_example(attnguide: Command, command: str) -> None:
    ended = attnguide(command, "--help")
    assert ended.status == 0 and f"attnguide {command}" in ended.out and "example" in ended.out
