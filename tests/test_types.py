import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnguide.types import MethodConfig, PassContext, PlaceError, Region, Sample, Step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box": (0, 0, 1, 1), "blob": (0.5, 0.5, 0.1, 0.1)}, "takes one place; got box and blob"),
        ({"phrase": " "}, "needs a phrase or token_indices; got neither"),
        ({"occurrence": -1}, "occurrence counts from 0; got -1"),
        ({"weight": float("nan")}, "weight must be finite; got nan"),
        ({"box": (0.5, 0, 0.5, 1)}, "0 <= x0 < x1 <= 1 .* got 0.5,0,0.5,1"),
        ({"box": (0, 0, 1.5, 1)}, "got 0,0,1.5,1"),
        ({"box": (0, 0, float("nan"), 1)}, "got 0,0,nan,1"),
        ({"polygon": ((0, 0), (1, 1))}, "at least 3 corners; got 2"),
        ({"blob": (0.5, 0.5, 0, 0.1)}, "blob must be"),
        ({"blob": (1.5, 0.5, 0.1, 0.1)}, "blob must be"),
    ],
)
def test_region_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Region(**{"phrase": "cat", **options})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"box": (0, 0, 1, 1)}, True),
        ({"polygon": ((0, 0), (1, 0), (1, 1))}, True),
        ({"blob": (0.5, 0.5, 0.1, 0.1)}, True),
        ({"mask": torch.ones(2, 2)}, True),
        ({"mask": Path("mask.png")}, True),
    ],
)
def test_region_has_place(options: dict[str, Any], expected: bool) -> None:
    assert Region("cat", **options).has_place is expected


def test_region_by_token_indices_alone() -> None:
    assert Region("", token_indices=(2,)).token_indices == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"cfg_scale": float("inf")}, "cfg_scale must be a finite number; got inf"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"height": 20}, "height must be a positive multiple of 8; got 20"),
        ({"width": 0}, "width must be a positive multiple of 8; got 0"),
    ],
)
def test_sample_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sample("0", "a cat", **options)


def test_sample_and_its_plain_twin() -> None:
    sample = Sample("7", "a cat", seed=3, methods=(MethodConfig("inject5"), MethodConfig("mask_guidance")))
    assert sample.method == "inject5+mask_guidance"
    twin = sample.plain()
    assert (twin.id, twin.method, twin.methods, twin.seed) == ("7-plain", "plain", (), 3)


def test_step() -> None:
    step = Step.at_sigma(3, 12, 701.0, 2.0)
    assert step.progress == 0.25
    assert step.alpha_bar == pytest.approx(0.2)
    assert (step.signal, step.noise, step.sigma) == pytest.approx((0.2**0.5, 0.8**0.5, 2.0))
    assert step.begins


def test_a_step_of_flow_matching() -> None:
    step = Step(0, 4, 750.0, signal=0.25, noise=0.75)
    assert (step.sigma, step.alpha_bar) == pytest.approx((3.0, 0.1))
    first = Step(0, 4, 1000.0, signal=0.0, noise=1.0)
    assert (first.sigma, first.alpha_bar) == (math.inf, 0.0)


def test_positions_of_branches() -> None:
    context = PassContext(Step.at_sigma(0, 1, 1.0, 1.0), "denoise", (0, 1, 0, 1), ("uncond", "uncond", "cond", "cond"))
    assert (context.positions("uncond"), context.positions("cond"), context.positions("perturbed")) == ([0, 1], [2, 3], [])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"weight": -1}, "weight must be at least 0; got -1"),
        ({"weight": True}, "weight must be finite; got True"),
        ({"token_indices": (-1,)}, "token_indices must be positions of at least 0; got (-1,)"),
        ({"token_indices": 3}, "token_indices must be positions"),
        ({"occurrence": -1}, "occurrence counts from 0; got -1"),
        ({"box": (0, 0, "1", 1)}, "box must be four numbers"),
        ({"polygon": ((0, 0), (1, float("nan")), (1, 1))}, "polygon corners must be finite"),
        ({"polygon": 3}, "polygon must be a list of corners"),
        ({"blob": (0.5, 0.5, float("inf"), 1)}, "blob must be"),
        ({"mask": 3}, "mask must be a path, a picture or an array; got 3"),
        ({"source": 3}, "source must be a MapSource; got 3"),
        ({"prompt": 3}, "prompt must be text; got 3"),
        ({"negative_prompt": "\0"}, "negative_prompt must be text without NUL characters"),
    ],
    ids=str,
)
def test_odd_places_are_named(place: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Region("cat", **place)


def test_numbers_of_numpy_and_torch_become_pythons() -> None:
    region = Region("cat", box=torch.tensor([0, 0, 0.5, 1]), token_indices=np.array([1, 2]), weight=np.float32(0.5))  # type: ignore[arg-type]
    assert region.box == (0, 0, 0.5, 1) and region.token_indices == (1, 2)
    assert {type(value) for value in (*region.box, region.weight)} == {float}
    row = Sample("a", "a cat", seed=np.int64(3), height=np.int32(64), steps=torch.tensor(4), cfg_scale=np.float64(2))  # type: ignore[arg-type]
    assert [(type(value), value) for value in (row.seed, row.height, row.steps)] == [(int, 3), (int, 64), (int, 4)]


def test_only_a_box_inside_the_picture_has_no_area() -> None:
    with pytest.raises(PlaceError, match=r"got 0.5,0,0.5,1, which has no area"):
        Region("cat", box=(0.5, 0, 0.5, 1))
    with pytest.raises(ValueError, match="got 0,0,2,0") as refused:
        Region("cat", box=(0, 0, 2, 0))
    assert not isinstance(refused.value, PlaceError)


def test_a_long_problem_keeps_both_ends() -> None:
    problem = Sample("a", "a cat", problem="begins " + "a" * 20_000 + " ends").problem
    assert problem is not None and len(problem) < 1010 and problem.startswith("begins") and problem.endswith(" ends")
    assert Sample("a", "a cat", problem=problem).problem == problem
