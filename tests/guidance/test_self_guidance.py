from typing import Any

import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.types import MethodConfig, Region
from tests import tiny
from tests.guidance import cases
from tests.reference import self_guidance as reference

SITES = cases.cross_sites(("down", 0, 8, 12), ("up", 0, 8, 12))
TARGETS = cases.targets_of({"prompt": tiny.PROMPT, "regions": (tiny.CAT, tiny.BALL)})


@pytest.mark.parametrize("seed", [0, 1])
def test_against_reference(seed: int) -> None:
    maps = cases.random_maps(SITES, 1, seed)
    output = cases.guidance("self_guidance").loss(maps, TARGETS, cases.FLAT)
    masks = [mask.double().numpy() for mask in TARGETS.masks(8, 12)[0]]
    expected = reference.loss(cases.layers_of(maps), [(2, 3), (6, 7)], masks)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert output.indicator.item() == output.loss.item()


def test_by_hand() -> None:
    """A map that fills the right half, wanted in the left: centres half a picture apart, sizes equal, every cell wrong."""
    site = cases.cross_sites(("up", 0, 4, 4), heads=1)[0]
    probs = torch.zeros(1, 1, 4, 4, tiny.LENGTH, dtype=torch.float64)
    probs[..., 2:, 2] = 0.3
    maps = AttentionMaps({site: probs.flatten(2, 3)})

    def loss(box: Any, **options: Any) -> float:
        targets = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=box),)})
        return cases.guidance("self_guidance", **options).loss(maps, targets, cases.FLAT).loss.item()

    assert loss((0.5, 0, 1, 1)) == pytest.approx(0, abs=1e-6)
    assert loss((0, 0, 0.5, 1)) == pytest.approx(0.5 + 4)
    assert loss((0, 0, 0.5, 1), shape_weight=0) == pytest.approx(0.5)
    # A quarter of the picture in the corner: a quarter away along y, size 1/2 against 1/4, a quarter of the cells wrong.
    assert loss((0.5, 0, 1, 0.5)) == pytest.approx(0.25 + 3 * 0.25 + 4 * 0.25)


def test_gradcheck() -> None:
    assert cases.gradient_is_right(cases.guidance("self_guidance"), SITES, TARGETS)


def test_flat_maps_give_finite_losses_and_gradients() -> None:
    maps = cases.random_maps(SITES, 1, sharpness=0.0)
    loss = cases.guidance("self_guidance").loss(maps, TARGETS, cases.FLAT).loss
    gradients = torch.autograd.grad(loss.sum(), list(maps.probs.values()))
    assert torch.isfinite(loss).all() and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_it_acts_always_and_then_at_every_second_step() -> None:
    window = cases.guidance("self_guidance").window
    assert [index for index in range(16) if window.active(cases.at(index, 16))] == [0, 1, 2, 4, 6, 8, 10]


def test_latents_stay_where_they_are_and_the_prediction_moves() -> None:
    config = MethodConfig("self_guidance", {"step_size": 5.0, "alternate": 1.0})
    (guided,), events = cases.run([tiny.row(steps=4, methods=(config,))])
    (plain,), _ = cases.run([tiny.row(steps=4)])
    assert [event.step.index for event in events] == [0, 1, 2]
    assert guided.latents is not None and plain.latents is not None
    assert (guided.latents - plain.latents).abs().max() > 1e-4
    (still,), _ = cases.run([tiny.row(steps=4, methods=(MethodConfig("self_guidance", {"step_size": 0.0}),))])
    assert still.latents is not None and torch.equal(still.latents, plain.latents)


def test_guidance_lowers_the_loss_of_the_following_steps() -> None:
    def last(size: float) -> float:
        options = {"step_size": size, "alternate": 1.0, "stop": 1.0}
        _, events = cases.run([tiny.row(steps=4, methods=(MethodConfig("self_guidance", options),))])
        return events[-1].losses[0]

    assert last(20.0) < last(0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_weight": -1.0}, "size_weight must be at least 0; got -1.0"),
        ({"sharpness": 0.0}, "sharpness must be above 0; got 0.0"),
        ({"quirks": "both"}, "quirks must be one of"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cases.guidance("self_guidance", **options)


def test_a_batch_equals_its_rows() -> None:
    options: list[dict[str, Any]] = [{"scale": scale, "step_size": 5.0} for scale in (1.0, 0.5, 2.0, 1.0)]
    cases.batch_equals_rows("self_guidance", options)
