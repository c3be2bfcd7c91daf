from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.prompt.targets import Targets
from attnguide.types import MethodConfig, Region, Sample, verdict
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


FEATURE = Site("up.resnets.0.conv2", "feature", 16, 24, 0, "up", 0)
PIN: dict[str, Any] = {"pin": True, "pinned_weights": {"centre": 0.5, "size": 0.9, "shape": 0.9, "appearance": 0.3}}


def _beside_source(seed: int = 0) -> tuple[AttentionMaps, Targets]:
    """Maps and features of one row and of its source."""
    first, second = cases.random_maps(SITES, 1, seed), cases.random_maps(SITES, 1, seed + 10)
    looks = torch.randn(2, 1, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    source = AttentionMaps({site: probs.detach() for site, probs in second.probs.items()}, {FEATURE: looks[1]})
    regions = (tiny.CAT, Region("blue ball", weight=2.0))
    sample = Sample("0", tiny.PROMPT, regions=regions)
    model = tiny.model()
    targets = Targets.build([sample], [model.tokenize(tiny.PROMPT)], "cpu", [model.tokenize("a blue ball and a red cat")])
    return AttentionMaps(first.probs, {FEATURE: looks[0].requires_grad_(True)}, source), targets


@pytest.mark.parametrize("seed", [0, 1])
def test_appearance_and_pinned_words_against_reference(seed: int) -> None:
    maps, targets = _beside_source(seed)
    assert maps.source is not None
    plain = cases.guidance("self_guidance").loss(maps, targets, cases.FLAT).loss.item()
    found = cases.guidance("self_guidance", appearance_weight=0.2, **PIN).loss(maps, targets, cases.FLAT).loss.item()

    def changed(own: list[int], other: list[int], weights: dict[str, float]) -> float:
        assert maps.source is not None
        looks = [maps.features[FEATURE][0].detach().numpy()], [maps.source.features[FEATURE][0].numpy()]
        return reference.changed(cases.layers_of(maps), cases.layers_of(maps.source), *looks, own, other, weights)

    nothing = {"centre": 0.0, "size": 0.0, "shape": 0.0}
    expected = changed([2, 3], [6, 7], {**nothing, "appearance": 0.2}) + 2 * changed([6, 7], [2, 3], PIN["pinned_weights"])
    assert found - plain == pytest.approx(expected, rel=1e-6)


def test_gradcheck_beside_a_source() -> None:
    maps, targets = _beside_source()
    method = cases.guidance("self_guidance", appearance_weight=0.2, **PIN)

    def judge(first: Tensor, second: Tensor, looks: Tensor) -> Tensor:
        seen = AttentionMaps(dict(zip(SITES, (first, second), strict=True)), {FEATURE: looks}, maps.source)
        return method.loss(seen, targets, cases.FLAT).loss

    # Without the shapes' part of appearance, which is taken as a constant.
    own = cases.guidance("self_guidance", **{**PIN, "pinned_weights": {"centre": 0.5, "size": 0.9, "shape": 0.9}})
    pure = AttentionMaps(maps.probs, {}, maps.source)
    loss = own.loss(pure, targets, cases.FLAT).loss
    assert torch.isfinite(torch.autograd.grad(loss.sum(), list(maps.probs.values()))[0]).all()
    fixed = [probs.detach() for probs in maps.probs.values()]
    looks = maps.features[FEATURE]
    assert torch.autograd.gradcheck(lambda value: judge(*fixed, value), (looks,), fast_mode=True)

    def places(*probs: Tensor) -> Tensor:
        seen = AttentionMaps(dict(zip(SITES, probs, strict=True)), {}, maps.source)
        return own.loss(seen, targets, cases.FLAT).loss

    assert torch.autograd.gradcheck(places, tuple(maps.probs.values()), fast_mode=True)


def test_a_row_equal_to_its_source_keeps_everything() -> None:
    """At the first step, under the same prompt, nothing has changed; under another prompt it has."""
    regions = (Region("red cat", box=(0, 0, 1, 1)), Region("blue ball"))
    options = {"centre_weight": 0, "size_weight": 0, "shape_weight": 0, "appearance_weight": 1.0, **PIN}

    def first_loss(**more: Any) -> float:
        row = tiny.row(regions=regions, steps=2, methods=(MethodConfig("self_guidance", {**options, **more}),))
        (result,), events = cases.run([row])
        assert verdict(result.status) == "ok"
        return events[0].losses[0]

    assert first_loss() == pytest.approx(0, abs=1e-6)
    assert first_loss(source_prompt="a red cat and a blue ball and a dog") > 1e-3


def test_pinning_brings_the_picture_nearer_to_its_source() -> None:
    def last(scale: float) -> float:
        options = {"source_prompt": "a blue ball and a dog and a red cat", "alternate": 1.0, "stop": 1.0, "step_size": 20.0}
        regions = (Region("red cat", box=(0, 0, 1, 1), weight=0.0), Region("blue ball"))
        config = MethodConfig("self_guidance", {**options, "scale": scale, **PIN})
        _, events = cases.run([tiny.row(regions=regions, methods=(config,))])
        return events[-1].losses[0]

    assert last(1.0) < last(1e-9)


def test_the_cost_of_a_source() -> None:
    """Two halves of row and source, and one guide pass of each, per step; without the option there is no source."""
    counts = []
    for options in ({}, {"appearance_weight": 0.2}):
        config = MethodConfig("self_guidance", {"alternate": 1.0, "stop": 1.0, **options})
        (result,), _ = cases.run([tiny.row(steps=2, methods=(config,))])
        counts.append((result.cost.unet_forwards, result.cost.unet_backwards))
    assert counts == [(6, 2), (12, 2)]


def test_refusals_of_sources() -> None:
    with pytest.raises(ValueError, match=r"pinned_weights must name properties among centre, .*; got \['colour'\]"):
        cases.guidance("self_guidance", pinned_weights={"colour": 1.0})
    row = tiny.row(methods=(MethodConfig("self_guidance", {"appearance_weight": 0.2, "source_prompt": "a dog"}),))
    with pytest.raises(ValueError, match="Row '0': Phrase 'red cat' does not occur in the prompt 'a dog'"):
        cases.run([row])
    both = tiny.row(methods=(MethodConfig("self_guidance", {"pin": True}), MethodConfig("masactrl")))
    with pytest.raises(ValueError, match="Only one method of a row can read another prompt's pass"):
        cases.run([both])


def test_a_batch_with_sources_equals_its_rows() -> None:
    words = [
        "a red cat and a blue ball",
        "a blue dog and a ball",
        "a red ball left of a cat and a dog",
        "a zebra and a red cat",
    ]
    options: list[dict[str, Any]] = [
        {"source_prompt": prompt, "appearance_weight": 0.5, "step_size": 5.0, **PIN} for prompt in (None, *words[1:])
    ]
    cases.batch_equals_rows("self_guidance", options)
