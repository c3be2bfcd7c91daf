import math
from typing import Any

import pytest
import torch

from attnguide.guidance.update import Refinement, Update, refinements_at
from attnguide.schedules import constant, linear, noise_variance
from attnguide.types import Step
from tests.guidance import cases

STEP = Step.at_sigma(5, 10, 500.0, 1.0)


def _at(index: int, count: int = 10) -> Step:
    return Step.at_sigma(index, count, 999.0 - index, 1.0)


def test_move_is_step_size_times_scale_times_gradient() -> None:
    gradient = torch.randn(2, 4, 3, 3)
    update = Update(linear(10.0, 0.0), scale=[1.0, 5.0, 3.0])
    torch.testing.assert_close(
        update.move(gradient, gradient, STEP, [0, 2]), gradient * torch.tensor([5.0, 15.0]).view(2, 1, 1, 1)
    )


def test_move_of_half_precision_is_float32() -> None:
    """A small gradient times a large step size must not pass through half precision."""
    gradient = torch.full((1, 1, 1, 1), 1e-4, dtype=torch.float16)
    move = Update(constant(1e6)).move(gradient, gradient, STEP, [0])
    assert move.dtype == torch.float32
    torch.testing.assert_close(move, gradient.float() * 1e6)


def test_the_step_size_follows_the_schedule() -> None:
    ones = torch.ones(1, 1, 1, 1)
    assert Update(noise_variance(4.0)).move(ones, ones, STEP, [0]).item() == pytest.approx(2.0)


def test_max_norm_is_a_share_of_the_latents_norm() -> None:
    latents = torch.stack([torch.full((4, 2, 2), 1.0), torch.full((4, 2, 2), 10.0), torch.zeros(4, 2, 2)])
    gradient = torch.ones(3, 4, 2, 2)
    update = Update(constant(1.0), max_norm=0.5)
    norms = update.move(gradient, latents, STEP, [0, 1, 2]).flatten(1).norm(dim=1)
    # The gradient's norm is 4; the latents' are 4, 40 and 0.
    torch.testing.assert_close(norms, torch.tensor([2.0, 4.0, 0.0]))
    still = update.move(torch.zeros(3, 4, 2, 2), latents, STEP, [0, 1, 2])
    assert torch.equal(still, torch.zeros_like(still))


def test_max_norm_keeps_the_direction() -> None:
    gradient, latents = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    free, held = (Update(constant(9.0), max_norm=limit).move(gradient, latents, STEP, [0]) for limit in (None, 0.1))
    assert torch.cosine_similarity(free.flatten(), held.flatten(), dim=0) > 0.99999
    assert held.norm() == pytest.approx(0.1 * float(latents.norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("count", "at", "expected"),
    [
        (50, (0.0, 0.2, 0.4), {0, 10, 20}),
        (4, (0.0, 0.2, 0.4), {0, 1, 2}),
        (30, (0.5,), {15}),
        (10, (), set()),
        (3, None, {0, 1, 2}),
    ],
)
def test_where_a_refinement_applies(count: int, at: tuple[float, ...] | None, expected: set[int]) -> None:
    refinement = Refinement(0.5, at=at)
    assert {index for index in range(count) if refinement.applies(_at(index, count))} == expected


def test_a_refinement_within_a_step_of_several_evaluations_happens_where_the_step_begins() -> None:
    refinement = Refinement(0.5, at=(0.5,))
    assert not refinement.applies(_at(2), span=3)
    assert refinement.applies(_at(3), span=3)
    assert refinement.applies(_at(5), span=3) and not refinement.applies(_at(6), span=3)


def test_the_last_refinement_that_applies_counts() -> None:
    first, second = Refinement(0.5, at=(0.0, 0.5)), Refinement(0.2, at=(0.5,))
    update = Update(refinements=(first, second))
    assert update.refinement(_at(0)) is first
    assert update.refinement(_at(5)) is second
    assert update.refinement(_at(1)) is None
    assert Update().refinement(_at(0)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, "iterations must be at least 0; got -1"),
        ({"space": "pixels"}, "space must be 'latents' or 'noise'; got 'pixels'"),
        ({"space": "noise", "iterations": 2}, "space 'noise' leaves the latents where they are"),
        ({"space": "noise", "refinements": (Refinement(0.1),)}, "space 'noise' leaves the latents where they are"),
        ({"scale": math.nan}, "scale must be finite; got nan"),
        ({"scale": [1.0, math.inf]}, r"scale must be finite; got \[1.0, inf\]"),
        ({"max_norm": 0.0}, "max_norm must be above 0; got 0.0"),
        ({"max_norm": math.nan}, "max_norm must be above 0; got nan"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Update(**options)


def test_refusals_of_a_refinement() -> None:
    with pytest.raises(ValueError, match="iterations must be at least 1; got 0"):
        Refinement(0.1, 0)
    with pytest.raises(ValueError, match="until must be a number; got nan"):
        Refinement(math.nan)
    with pytest.raises(ValueError, match="until must be a number"):
        Refinement([0.1, math.nan])


def test_thresholds_must_be_tables() -> None:
    with pytest.raises(ValueError, match=r"thresholds must map progress to a value, like \{0.2: 0.5\}; got 'high'"):
        refinements_at("high", float, 1)  # type: ignore[arg-type]


def test_points_of_different_rows_may_meet_in_one_step() -> None:
    tables = [{0.2: 0.5}, {0.21: 0.6}]
    update = Update(iterations=0, refinements=refinements_at(tables, lambda value: value, 3))
    found = update.refinement(_at(6, 30))
    assert found is not None and found.until == [0.5, 0.6]
    assert update.refinement(_at(7, 30)) is None


@pytest.mark.parametrize("point", [-0.1, 1.0, 10.0])
def test_a_refinement_s_point_is_progress(point: float) -> None:
    with pytest.raises(ValueError, match=r"a refinement's point is progress in \[0, 1\), 0.2 for step 10 of 50; got"):
        Refinement(0.1, at=(point,))


@pytest.mark.parametrize(("space", "acts"), [("latents", [True, False]), ("noise", [True, True])])
def test_noise_is_shifted_at_every_evaluation_and_latents_where_a_step_begins(space: Any, acts: list[bool]) -> None:
    method = cases.guidance("stable", guide=True, space=space, guide_until=0.5)
    steps = [Step.at_sigma(0, 2, 900.0, 9.0), Step.at_sigma(1, 2, 800.0, 5.0, begins=False, number=0)]
    assert [method.acts(step) for step in steps] == acts
