import math
from typing import Any

import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.stable import Stable, noise_fade
from attnguide.injection.transport import Transport
from attnguide.methods import build_method
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Region, Step
from tests import tiny
from tests.guidance import cases
from tests.injection import common

SITES = cases.cross_sites(("down", 2, 4, 6), ("up", 2, 4, 6))
LEFT, RIGHT = Region("cat", box=(0, 0, 0.5, 1)), Region("cat", box=(0.5, 0, 1, 1))


def _maps(left: float) -> AttentionMaps:
    """The cat's attention, token 3: this share of it in the left half of the picture."""
    probs = torch.zeros(1, 2, 4, 6, tiny.LENGTH, dtype=torch.float64)
    probs[..., :3, 3], probs[..., 3:, 3] = left / 12, (1 - left) / 12
    return AttentionMaps({SITES[0]: probs.flatten(2, 3).requires_grad_(True)})


def _loss(left: float, *regions: Region, **options: Any) -> tuple[float, float]:
    targets = cases.targets_of({"prompt": tiny.PROMPT, "regions": regions})
    output = Stable(**options).loss(_maps(left), targets, cases.FLAT)
    return float(output.loss.detach()), float(output.indicator)


@pytest.mark.parametrize(
    ("left", "regions", "expected"),
    [
        (0.2, (LEFT,), (0.75**2, 0.75**2)),  # 0.2 of the 0.8 that is enough
        (0.8, (LEFT,), (0, 0)),
        (1.0, (LEFT,), (0, 0)),
        (0.5, (LEFT, RIGHT), (0, 0)),  # 0.4 is each one's part
        (0.9, (LEFT, RIGHT), (0.75**2 / 2, 0.75**2)),  # the right one has 0.1 of its 0.4
        (0.2, (Region("cat", box=(0, 0, 0.5, 1), weight=3.0),), (3 * 0.75**2, 0.75**2)),
        (0.2, (LEFT, Region("ball")), (0.75**2, 0.75**2)),
    ],
)
def test_losses_by_hand(left: float, regions: tuple[Region, ...], expected: tuple[float, float]) -> None:
    assert _loss(left, *regions) == pytest.approx(expected, abs=1e-6)


def test_a_row_that_has_enough_has_no_gradient() -> None:
    maps = _maps(0.85)
    output = Stable().loss(maps, cases.targets_of({"prompt": tiny.PROMPT, "regions": (LEFT,)}), cases.FLAT)
    (gradient,) = torch.autograd.grad(output.loss.sum(), list(maps.probs.values()))
    assert not gradient.any()


@pytest.mark.parametrize("enough", [0.9, 1.0])
def test_gradient(enough: float) -> None:
    assert cases.gradient_is_right(Stable(enough=enough), SITES, cases.targets_of(*cases.ROWS))


def test_injection_follows_the_noise_and_ends_continuously() -> None:
    fade = noise_fade(until=1.0, power=2.0)

    def at(noise: float) -> float:
        return fade(Step.at_sigma(3, 7, 1.0, math.sqrt(noise / (1 - noise))))

    assert [at(noise) for noise in (0.75, 0.6, 0.5, 0.2)] == pytest.approx([0.25, 0.04, 0, 0])
    assert at(1 - 1e-9) == pytest.approx(1) and 0 <= at(0.5 + 1e-6) < 1e-6
    assert noise_fade(1.0, 0.0)(Step.at_sigma(0, 1, 1.0, 1.01)) == 1


def test_the_number_of_steps_does_not_matter() -> None:
    """The same noise level, found at another place of another number of steps."""
    fade, window = noise_fade(1.0, 1.0), Stable(guide=True, guide_from=8.0, guide_until=2.0).window
    few, many = Step.at_sigma(1, 10, 600.0, 2.5), Step.at_sigma(20, 50, 600.0, 2.5)
    assert fade(few) == fade(many) and window.active(few) and window.active(many)
    assert not window.active(Step.at_sigma(0, 10, 999.0, 10.0)) and not window.active(Step.at_sigma(5, 10, 1.0, 1.9))


def test_parts_can_be_left_out() -> None:
    targets = cases.targets_of(cases.ROWS[0])
    assert isinstance(Stable().edits(targets, 2)[0], Transport)
    assert Stable(inject=False, guide=True).edits(targets, 2) == []
    assert Stable(guide=True).window.active(cases.FLAT) and not Stable().window.active(cases.FLAT)


def test_a_limit_of_iterations_and_the_noise_prediction() -> None:
    update = Stable(iterations=5).update
    assert (update.iterations, update.refinements[0].until, update.refinements[0].iterations) == (0, 0.0, 5)
    assert Stable().update.refinements[0].iterations == 3
    noise = Stable(space="noise", max_norm=0.1).update
    assert (noise.space, noise.iterations, noise.refinements, noise.max_norm) == ("noise", 1, (), 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 1.5}, r"scale must lie in \[0, 1\]; got 1.5"),
        ({"scale": -0.1}, r"scale must lie in \[0, 1\]; got -0.1"),
        ({"inject": False, "guide": False}, "inject and guide cannot both be false"),
        ({"room": 0.0}, r"room must lie in \(0, 1\]; got 0.0"),
        ({"surplus": "last"}, "surplus must be.*first.*others.*got 'last'"),
        ({"later": "drop"}, "later must be.*end.*all.*keep.*got 'drop'"),
        ({"enough": 0.0}, r"enough must lie in \(0, 1\]; got 0.0"),
        ({"attempts": 0}, "attempts must be at least 1; got 0"),
        ({"restart_at": 1.0}, r"restart_at must lie in \[0, 1\); got 1.0"),
        ({"held": 1.1}, r"held must lie in \[0, 1\]; got 1.1"),
        ({"fade": -1.0}, "fade must be a number of at least 0; got -1.0"),
        ({"inject_until": math.inf}, "inject_until must be a number of at least 0; got inf"),
        ({"guide_from": 1.0, "guide_until": 2.0}, "guide_from must be at least guide_until, as noise falls; got 1.0 and 2.0"),
        ({"space": "noise", "iterations": 2}, "space 'noise' leaves the latents where they are"),
        ({"space": "pixels"}, "space must be one of latents, noise; got 'pixels'"),
        ({"max_norm": 0.0}, "max_norm must be above 0; got 0.0"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("stable", options)


# ------------------------------------------------------------------------------------------------------------ in a run


@pytest.mark.parametrize("options", [{}, {"guide": True}, {"guide": True, "space": "noise"}, {"guide": True, "inject": False}])
def test_strength_zero_is_no_method(options: dict[str, Any]) -> None:
    common.assert_no_method(common.four_rows("stable", [{"scale": 0.0, **options}]))


@pytest.mark.parametrize("space", ["latents", "noise"])
def test_four_rows_equal_rows_alone(space: str) -> None:
    options = [{"scale": scale, "guide": True, "space": space, "enough": 0.9} for scale in (1.0, 0.3, 0.6, 0.9)]
    cases.batch_equals_rows("stable", options)


def test_injection_alone_equals_rows_alone() -> None:
    common.assert_rows_equal_rows_alone(common.four_rows("stable", [{"scale": s} for s in (1.0, 0.5, 0.8)]))


def test_a_row_that_has_enough_costs_no_gradient() -> None:
    """A word whose region is the whole picture has nothing outside."""
    method = (MethodConfig("stable", {"guide": True, "iterations": 4}),)
    easy = tiny.row("0", methods=method, regions=(Region("cat", box=(0, 0, 1, 1)),))
    hard = tiny.row("1", methods=method, regions=(Region("cat", box=(0, 0, 0.3, 0.3)),))
    costs = [result.cost for result in sample_batch(tiny.model(), [easy, hard])]
    assert costs[0].unet_backwards == 0 < costs[1].unet_backwards
    assert costs[0].unet_forwards < costs[1].unet_forwards


def test_a_row_that_is_not_held_starts_again_and_one_that_is_does_not() -> None:
    """A word whose region is the whole picture has its peak inside."""
    regions = {"0": (Region("cat", box=(0, 0, 1, 1)),), "1": (Region("cat", box=(0, 0, 0.3, 0.3)),)}
    options = {"held": 1.0, "attempts": 2}

    def run(ids: str, **more: Any) -> list[Any]:
        method = (MethodConfig("stable", {**options, **more}),)
        rows = [tiny.row(one, methods=method, regions=regions[one], seed=int(one)) for one in ids]
        return sample_batch(tiny.model(), rows)

    held, again = run("01")
    once = run("01", attempts=1)
    assert held.latents is not None and again.latents is not None
    assert held.cost.unet_forwards == once[0].cost.unet_forwards + 1
    assert again.cost.unet_forwards == once[1].cost.unet_forwards + 1 + 2 * 2 + 1  # half of four steps, both halves, and a look
    torch.testing.assert_close(held.latents, once[0].latents, rtol=0, atol=1e-5)
    for together, alone in ((held, run("0")[0]), (again, run("1")[0])):
        torch.testing.assert_close(together.latents, alone.latents, rtol=0, atol=1e-4)


def test_one_update_lowers_the_loss() -> None:
    method = (MethodConfig("stable", {"inject": False, "guide": True, "iterations": 3, "step_size": 3.0}),)
    _, events = cases.run([tiny.row("0", methods=method, steps=2)])
    first = [event.losses[0] for event in events if event.step.index == 0]
    assert len(first) == 3 and first[0] > first[1] > first[2] > 0
