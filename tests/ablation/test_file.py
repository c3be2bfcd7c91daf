"""A file to axes, and what is wrong with it by line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attnguide.ablation.axes import Axis
from attnguide.ablation.file import METRICS
from attnguide.metrics.functional import QUESTIONS

from .conftest import Read

GRID = """\
base:
  prompt: a red cat
  steps: 4
method: grid
parameters:
  method: {values: [inject1, inject5]}
  method.scale:
    values:
      - 1
      - 2.5
  cfg_scale: {value: 3}
  seed: {values: [4, 7]}
command: [attnguide, ablate, trial.yaml, "${args}"]
program: ignored.py
"""


def test_a_sweep_file_is_read_as_it_is(read: Read) -> None:
    found = read(GRID)
    assert found.name == "trial" and found.seeds == (4, 7)
    assert found.base == {"prompt": "a red cat", "steps": 4, "cfg_scale": 3.0}
    assert [axis.name for axis in found.axes] == ["method", "method.scale"]
    assert [axis.is_numeric for axis in found.axes] == [False, True]
    assert [cell.name for cell in found.cells] == ["inject1, 1", "inject1, 2.5", "inject5, 1", "inject5, 2.5"]
    last = found.cells[-1]
    assert last.values == {"method": "inject5", "method.scale": 2.5}
    assert last.line_of("method.scale") == 10 and last.line_of("method") == 6


def test_lists_and_pairs_are_axes_of_several_settings(read: Read) -> None:
    found = read(
        "paired:\n  function:\n    method: [inject1, inject3]\n    method.scale: [3, 30]\n"
        "list:\n  words:\n    both: {steps: 2}\n    first:\n      steps: 3\n      cfg_scale: 1\n"
    )
    assert {axis.name: [point.label for point in axis.points] for axis in found.axes} == {
        "words": ["both", "first"],
        "function": ["inject1", "inject3"],
    }
    assert found.cells[-1].changes == {"steps": 3, "cfg_scale": 1.0, "method": "inject3", "method.scale": 30}


def test_a_parameter_picks_from_a_list_and_gives_its_place(read: Read) -> None:
    found = read(
        "parameters:\n  steps: {values: [2, 3]}\n  words: {values: [b, c]}\n  cfg_scale: {values: [1, 2]}\n"
        "list:\n  words:\n    a: {height: 8}\n    b: {height: 16}\n    c: {height: 24}\n"
    )
    assert [axis.name for axis in found.axes] == ["steps", "words", "cfg_scale"]
    assert [point.label for point in found.axes[1].points] == ["b", "c"]


def test_base_may_be_a_file(read: Read, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("prompt: a dog\nsteps: 3\n")
    found = read("base: base.yaml\nparameters:\n  steps: {values: [1]}\n")
    assert found.base == {"prompt": "a dog", "steps": 3}


def _parameters(body: str) -> str:
    return f"base:\n  prompt: a cat\nparameters:\n{body}"


WRONG = [
    ("- a\n", 1, ["base and parameters"]),
    ("base: {prompt: a cat}\n", 1, ["at least one axis"]),
    ("base:\n  promt: a cat\n", 2, ["'promt'", "did you mean 'prompt'"]),
    ("base:\n  prompt: a cat\n  steps: ten\n", 3, ["steps", "whole number", "'ten'"]),
    ("base: gone.yaml\n", 1, ["gone.yaml", "does not exist"]),
    ("prompt: a cat\n", 1, ["unknown key 'prompt'", "base"]),
    ("base: {prompt: a cat}\nmethod: bayes\n", 2, ["grid", "'bayes'"]),
    (_parameters("  stepz: {values: [1]}\n"), 4, ["'stepz'", "did you mean 'steps'"]),
    (_parameters("  method.scale:\n    values: []\n"), 5, ["method.scale", "at least one value", "[]"]),
    (_parameters("  steps:\n    values: 3\n"), 5, ["steps", "at least one value", "3"]),
    (_parameters("  steps: {min: 1, max: 4}\n"), 4, ["steps", "values: [...]", "'min'"]),
    (_parameters("  steps:\n    values:\n    - 2\n    - many\n"), 7, ["steps", "whole number", "'many'"]),
    (_parameters("  steps:\n    values:\n    - 2\n    - 2\n"), 7, ["steps", "2 stands twice"]),
    (_parameters("  cfg_scale:\n    values:\n    - 2\n    - 2.0\n"), 7, ["cfg_scale", "2.0 stands twice, or reads like"]),
    (_parameters("  method:\n    values: [inject1, injekt2]\n"), 5, ["'injekt2'", "did you mean"]),
    (_parameters("  method: {values: [3]}\n"), 4, ["name of a method", "3"]),
    (_parameters("  mask_guidance.stepsize: {values: [3]}\n"), 4, ["'stepsize'", "did you mean 'step_size'"]),
    (_parameters("  mask_guidance.step_size: {values: [3, big]}\n"), 4, ["step_size", "finite number", "'big'"]),
    (_parameters("  model: {values: [shapes, other]}\n"), 4, ["model", "common to a run", "base"]),
    (_parameters("  seed: {values: ['0..3']}\n"), 4, ["seed", "whole number", "'0..3'"]),
    (_parameters("  steps: {values: [1]}\n  steps: {values: [2]}\n"), 5, ["'steps' stands twice"]),
    (_parameters("  steps: {values: [1]}\nlist:\n  a:\n    x: {steps: 2}\n"), 7, ["steps", "'steps'", "line 4 as well"]),
    (_parameters("  method.start: {value: 0.5}\nlist:\n  a:\n    x: {method.start: 2}\n"), 7, ["method.start", "line 4"]),
    (_parameters("  method: {values: [inject1]}\nlist:\n  a:\n    x: {methods: [inject1]}\n"), 7, ["methods", "line 4"]),
    ("list:\n  steps:\n    x: {steps: 2}\n", 2, ["no setting's", "'steps'"]),
    ("list:\n  a: {}\n", 2, ["at least one name"]),
    ("list:\n  a:\n    x: 3\n", 3, ["names and values", "3"]),
    ("list:\n  a:\n    x: {stps: 2}\n", 3, ["'stps'", "steps"]),
    ("list:\n  a: {x: {steps: 2}}\npaired:\n  a: {cfg_scale: [2]}\n", 4, ["no other axis"]),
    ("paired:\n  a:\n    steps: [1, 2]\n    cfg_scale: [1]\n", 2, ["2 of steps, 1 of cfg_scale"]),
    ("paired:\n  a:\n    steps: []\n", 3, ["steps", "at least one value"]),
    ("parameters:\n  a: {values: [y]}\nlist:\n  a: {x: {steps: 2}}\n", 2, ["one of x", "'y'"]),
]


@pytest.mark.parametrize(("text", "line", "said"), WRONG, ids=[said[0] for _, _, said in WRONG])
def test_mistakes_are_told_by_line(read: Read, text: str, line: int, said: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        read(text)
    message = str(caught.value)
    if "gone.yaml" not in message:
        assert f"trial.yaml, line {line}: " in message
    for part in said:
        assert part in message
    assert "\n" not in message


# ----------------------------------------------------------------------------------------------------------------- curves

CURVES = """\
base: {prompt: a red cat}
parameters: {way: {values: [moved, added]}}
curves:
  way:
    added: {method: inject5, method.start: 0.5, method.scale: {values: [4, 1]}}
    moved:
      method: stable
      method.levels: [0, 1]
      stable.scale:
        values:
          - 0.5
          - 1
    left: {method: inject1, method.scale: {values: [64]}}
quality: presence
"""


def test_curves_have_strengths_of_their_own(read: Read) -> None:
    found = read(CURVES)
    assert [(axis.name, [point.value for point in axis.points]) for axis in found.axes] == [
        ("way", ["added", "moved"]),
        ("strength", [0.5, 1, 4]),
    ]
    assert [cell.name for cell in found.cells] == ["added, 1", "added, 4", "moved, 0.5", "moved, 1"]
    assert found.cells[0].changes == {"method": "inject5", "method.start": 0.5, "method.scale": 1}
    assert found.cells[2].changes == {"method": "stable", "method.levels": [0, 1], "stable.scale": 0.5}
    assert found.cells[2].line_of("stable.scale") == 11
    assert found.tradeoff is not None
    assert (found.tradeoff.strength, found.tradeoff.control, found.tradeoff.quality) == ("strength", "region_hit", "presence")


def test_an_axis_may_be_the_strength(read: Read) -> None:
    found = read(f"{GRID}strength: method.scale\ncontrol: count\n")
    assert found.tradeoff is not None
    assert (found.tradeoff.strength, found.tradeoff.control, found.tradeoff.curves) == ("method.scale", "count", None)
    assert len(found.cells) == 4 and read(GRID).tradeoff is None


def test_values_that_no_cell_has_are_dropped(read: Read) -> None:
    found = read(CURVES)
    narrow = replace(found, axes=(Axis("way", found.axes[0].points[:1]), found.axes[1])).pruned()
    assert [[point.value for point in axis.points] for axis in narrow.axes] == [["added"], [1, 4]]


def _curves(body: str) -> str:
    return f"curves:\n  way:\n{body}"


ONE = "    a: {method: inject1, method.scale: {values: [1, 2]}}\n"
WRONG_CURVES = [
    (_curves(f"{ONE}  other:\n    b: {{}}\n"), 1, ["one axis", "way, other"]),
    (_curves("    a: {method: inject1}\n"), 3, ["one setting with its strengths", "none"]),
    (_curves("    a: {method.start: {values: [1]}, method.scale: {values: [1]}}\n"), 3, ["method.start, method.scale"]),
    (_curves("    a:\n      method.scale:\n        values: [1, x]\n"), 5, ["a number", "'x'"]),
    (_curves("    a:\n      method.scale: {values: []}\n"), 4, ["at least one value"]),
    (_curves("    a: {method: injekt1, method.scale: {values: [1]}}\n"), 3, ["'injekt1'"]),
    (_curves("    a: {method: inject1, inject1.scal: {values: [1]}}\n"), 3, ["'scal'"]),
    (_curves("    a: {method: inject1, method.scale: {values: [1, 1]}}\n"), 3, ["1 stands twice"]),
    ("curves: {way: 3}\n", 1, ["names and values"]),
    ("curves:\n  way: {}\n", 2, ["at least one name"]),
    ("curves:\n  strength:\n" + ONE, 2, ["no setting's", "'strength'"]),
    (_curves(ONE) + "strength: method.scale\n", 4, ["none beside curves"]),
    (_curves(ONE) + "control: hits\n", 4, ["region_hit", "'hits'"]),
    (_curves(ONE) + "parameters:\n  method.scale: {values: [1]}\n", 5, ["method.scale", "'strength'"]),
    (_parameters("  method: {values: [inject1, inject3]}\nstrength: method\n"), 5, ["axis of numbers", "none", "'method'"]),
    (_parameters("  steps: {values: [1, 2]}\nstrength: stpes\n"), 5, ["axis of numbers", "steps"]),
    (_parameters("  steps: {values: [1, 2]}\nquality: presence\n"), 5, ["quality", "curves or a strength"]),
]


@pytest.mark.parametrize(("text", "line", "said"), WRONG_CURVES, ids=[" ".join(said) for _, _, said in WRONG_CURVES])
def test_mistakes_in_curves_are_told_by_line(read: Read, text: str, line: int, said: list[str]) -> None:
    test_mistakes_are_told_by_line(read, text, line, said)


def test_metrics_that_can_be_drawn_are_those_that_rows_get() -> None:
    assert set(METRICS) == {*QUESTIONS, "count_found", "inside"}
