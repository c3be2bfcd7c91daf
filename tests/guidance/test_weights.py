"""A region's weight means the same to every guidance that reads regions: a factor on its part of the loss."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.guidance.base import Guidance
from attnguide.methods import METHODS, method_class
from attnguide.prompt.targets import Targets
from attnguide.types import Region
from tests import tiny
from tests.guidance import cases

BY_REGION = [
    name for name, info in METHODS.items() if info.family == "guidance" and method_class(name).needs_regions is not None
]
OPTIONS: dict[str, dict[str, Any]] = {"a_star": {"retain": "places"}}
OTHER = Region("blue ball", box=(0.5, 0.0, 1.0, 0.5))


def _sites(name: str) -> list[Any]:
    crosses = cases.cross_sites(("mid", 0, 8, 12), ("up", 0, 8, 12))
    both = name in ("initno", "bounded_attention", "self_cross")
    return [*crosses, *cases.self_sites(("mid", 0, 8, 12), ("up", 0, 8, 12))] if both else crosses


def _targets(first: float, second: float) -> Targets:
    regions = (replace(tiny.CAT, weight=first), replace(OTHER, weight=second))
    return cases.targets_of({"prompt": tiny.PROMPT, "regions": regions})


def _losses(name: str, targets: Targets) -> list[Tensor]:
    """Loss, what refinements descend, and the indicator."""
    method: Guidance = cases.guidance(name, **OPTIONS.get(name, {}))
    method.start(targets)
    output = method.loss(cases.random_maps(_sites(name), 1), targets, cases.FLAT)
    return [output.loss.detach(), (output.loss if output.refining is None else output.refining).detach(), output.indicator]


@pytest.mark.parametrize("name", BY_REGION)
def test_twice_the_weights_are_twice_the_loss(name: str) -> None:
    once, twice = _losses(name, _targets(0.5, 1.5)), _losses(name, _targets(1.0, 3.0))
    assert float(once[0]) > 0
    for half, whole in zip(once[:2], twice[:2], strict=True):
        torch.testing.assert_close(2 * half, whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", BY_REGION)
def test_a_region_without_weight_has_no_part_in_the_loss(name: str) -> None:
    """Weights of 0 and 1 add up, but for pairs of words."""
    both, first, second = (_losses(name, _targets(*weights))[0] for weights in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)))
    nothing = _losses(name, _targets(0.0, 0.0))
    assert float(nothing[0]) == float(nothing[1]) == 0
    if name in ("attend_and_excite",):
        torch.testing.assert_close(torch.maximum(first, second), both)
    elif name not in ("a_star", "focus", "initno", "saga", "self_cross"):
        torch.testing.assert_close(first + second, both)
    assert float(first) != float(both) or name == "attend_and_excite"


@pytest.mark.parametrize("name", ["attend_and_excite", "box_diff", "count_guidance", "mask_guidance", "stable"])
def test_limits_are_for_attention_as_it_is_and_for_regions_that_count(name: str) -> None:
    first, second = (float(_losses(name, _targets(*weights))[2]) for weights in ((1.0, 0.0), (0.0, 1.0)))
    assert float(_losses(name, _targets(0.5, 3.0))[2]) == pytest.approx(max(first, second))
    assert first != second
