import math
from typing import Any

import numpy as np
import pytest
import torch

from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.cfg import pass_context
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.guidance.base import Trials
from attnguide.guidance.count_guidance import CountGuidance
from attnguide.guidance.update import Refinement
from attnguide.methods import check_methods
from attnguide.sampling.sampler import Sampler
from attnguide.types import MethodConfig, Region, Step
from tests import tiny
from tests.closeness import assert_close
from tests.guidance import cases
from tests.reference import count_guidance as reference
from tests.reference import words

SITES = cases.cross_sites(("down", 0, 8, 12), ("up", 0, 8, 12))
CATS = (Region("red cat", box=(0, 0, 0.25, 0.5)), Region("red cat", box=(0.5, 0.5, 1.0, 1.0)))
TARGETS = cases.targets_of({"prompt": tiny.PROMPT, "regions": (*CATS, tiny.BALL)})
OUTER = np.zeros((8, 12))
OUTER[:4, :3] = OUTER[4:, 6:] = 1
SELF = Site("up.attn1", "self", 4, 6, 2, "up", 0)


def _both() -> np.ndarray:
    ball = np.zeros((8, 12))
    ball[2:, 6:] = 1
    return ball


@pytest.mark.parametrize("seed", [0, 1])
def test_against_reference(seed: int) -> None:
    maps = cases.random_maps(SITES, 1, seed)
    output = cases.guidance("count_guidance").loss(maps, TARGETS, cases.FLAT)
    mean = words.mean_map(cases.layers_of(maps))
    terms = [reference.loss(mean[:, :, 3], OUTER), reference.loss(mean[:, :, 7], _both())]
    assert output.loss.item() == pytest.approx(sum(terms), rel=1e-6)
    assert output.indicator.item() == pytest.approx(max(terms), rel=1e-6)


def test_by_hand() -> None:
    """Full attention on the mask and none beside it: half the cells 10 softplus(-1), half softplus(0)."""
    site = cases.cross_sites(("up", 0, 4, 4), heads=1)[0]
    targets = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0, 0, 0.5, 1)),)})

    def loss(columns: slice, **options: Any) -> float:
        probs = torch.zeros(1, 1, 4, 4, tiny.LENGTH, dtype=torch.float64)
        probs[..., columns, 2] = 0.7
        maps = AttentionMaps({site: probs.flatten(2, 3)})
        return cases.guidance("count_guidance", **options).loss(maps, targets, cases.FLAT).loss.item()

    on, off = math.log1p(math.exp(-1)), math.log(2)
    assert loss(slice(0, 2)) == pytest.approx((10 * on + off) / 2, abs=1e-6)
    assert loss(slice(0, 2), positive_weight=1.0) == pytest.approx((on + off) / 2, abs=1e-6)
    assert loss(slice(2, 4)) == pytest.approx((10 * off + 1 + on) / 2, abs=1e-6)


def test_gradcheck() -> None:
    assert cases.gradient_is_right(cases.guidance("count_guidance"), SITES[:1], TARGETS)


@pytest.mark.parametrize("quirks", ["none", "reference"])
def test_background_gets_nothing_from_instances(quirks: str) -> None:
    method = cases.guidance("count_guidance", quirks=quirks, scale=[1.0, 0.0], stop=0.5)
    targets = cases.targets_of({"prompt": tiny.PROMPT, "regions": CATS}, {"prompt": "a dog", "regions": (Region("dog"),)})
    (edit,) = method.edits(targets, 0)
    context = pass_context(cases.at(3), "denoise", range(2), ("uncond", "cond"))
    probs = torch.rand(4, 2, 24, 24, dtype=torch.float64).softmax(-1)
    edited = edit.probs(probs, SELF, context)
    assert edit.sites.chosen([SELF]) and edit.active(context)
    inside = np.zeros((4, 6))
    inside[:2, :2] = inside[2:, 3:] = 1  # a quarter of six columns is one and a half: covered by half or more
    for position in (0, 2):
        for head in range(2):
            expected = reference.without_background(probs[position, head].numpy(), inside.ravel(), quirks == "reference")
            np.testing.assert_allclose(edited[position, head].numpy(), expected, atol=1e-12)
    assert torch.equal(edited[[1, 3]], probs[[1, 3]])
    assert not edit.active(pass_context(cases.at(11), "denoise", range(2), ("cond",)))
    assert not edit.active(pass_context(cases.at(3), "guide", range(2), ("cond",)))


def test_self_attention_is_left_alone_without_the_option() -> None:
    assert cases.guidance("count_guidance", self_mask=False).edits(TARGETS, 0) == []


def test_the_edit_alone_changes_the_picture() -> None:
    def latents(**options: Any) -> torch.Tensor:
        settings: dict[str, Any] = {"stop": 0.0, "levels": [0], **options}
        (result,), events = cases.run([tiny.row(steps=3, methods=(MethodConfig("count_guidance", settings),))])
        assert not events and result.latents is not None
        return result.latents

    plain = cases.run([tiny.row(steps=3)])[0][0].latents
    assert plain is not None
    assert torch.equal(latents(self_mask=False), plain) and torch.equal(latents(scale=0.0), plain)
    assert (latents() - plain).abs().max() > 1e-3


def test_published_thresholds_and_one_table_a_row() -> None:
    update = cases.guidance("count_guidance").update
    assert update.refinements == tuple(Refinement(t, 20, (at,)) for at, t in ((0.0, 1.3), (0.2, 1.2), (0.4, 1.15)))
    assert cases.guidance("count_guidance", quirks="reference").update.refinements[0].lagging
    both = cases.guidance("count_guidance", thresholds=[{0.0: 1.1}, {}]).update.refinements
    assert both == (Refinement([1.1, math.inf], 20, (0.0,)),)


def test_flat_maps_give_finite_losses_and_gradients() -> None:
    maps = cases.random_maps(SITES, 1, sharpness=0.0)
    loss = cases.guidance("count_guidance").loss(maps, TARGETS, cases.FLAT).loss
    gradients = torch.autograd.grad(loss.sum(), list(maps.probs.values()))
    assert torch.isfinite(loss).all() and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="positive_weight must be above 0; got 0"):
        cases.guidance("count_guidance", positive_weight=0)
    dot = tiny.row(regions=(Region("cat", box=(0, 0, 0.01, 0.01)),), methods=(MethodConfig("count_guidance"),))
    with pytest.raises(ValueError, match="Row '0': Region 'cat' covers no cell"):
        cases.run([dot])


def test_a_batch_equals_its_rows() -> None:
    tables = [{0.0: 1.3}, {0.0: 4.5}, {0.5: 1.0}, {}]
    options = [{"thresholds": table, "max_refinements": 2, "step_size": 10.0, "levels": [0]} for table in tables]
    cases.batch_equals_rows("count_guidance", options)


def test_the_first_pass_is_the_plain_picture() -> None:
    """Also under a scheduler that adds noise, and for one row of two."""
    sites = SiteSelector(kind="cross", levels=(0,))
    shown: list[tuple[Step, AttentionMaps]] = []
    plain = Recorder()

    class Looks(CountGuidance):
        def optimise(self, latents: torch.Tensor, trials: Trials) -> torch.Tensor:
            trials.preview(latents[[1]], [1], sites, 1.0, lambda step, maps: shown.append((step, maps)))
            return latents

    class Watches(Observer):
        def probes(self, info: BatchInfo) -> list[Probe]:
            return [Probe("probs", plain, sites)]

    rows = [tiny.row("0", scheduler="ddpm"), tiny.row("1", "a dog", regions=(Region("dog"),), seed=4, scheduler="ddpm")]
    guided = Sampler(tiny.model(), [Looks(count=2, stop=0.0, self_mask=False)], observer=Watches()).run(rows)
    assert [step.index for step, _ in shown] == [0, 1, 2, 3]
    for site, probs in shown[-1][1].probs.items():
        torch.testing.assert_close(probs[0], plain.tensors[site][3], atol=1e-5, rtol=0)  # uncond, uncond, cond, cond
    assert [result.cost.unet_forwards for result in guided] == [8, 16]
    for result, row in zip(guided, rows, strict=True):
        (alone,), _ = cases.run([row])
        assert result.latents is not None and alone.latents is not None
        assert_close(result.latents, alone.latents)


def test_masks_that_were_found_guide_like_masks_that_were_given() -> None:
    method = cases.guidance("count_guidance", count=2)
    assert isinstance(method, CountGuidance)
    found = torch.zeros(2, 4, 6, dtype=torch.bool)
    found[0, :2, :2] = found[0, 2:, 3:] = True
    method._found[0] = found
    free = cases.targets_of({"prompt": tiny.PROMPT, "regions": (Region("red cat", weight=0.5), tiny.BALL)})
    given = cases.targets_of(
        {"prompt": tiny.PROMPT, "regions": (*(Region("red cat", box=c, weight=0.5) for c in BOXES), tiny.BALL)}
    )
    maps = cases.random_maps(SITES, 1)
    outputs = [method.loss(maps, free, cases.FLAT), cases.guidance("count_guidance").loss(maps, given, cases.FLAT)]
    assert outputs[0].loss.item() == pytest.approx(outputs[1].loss.item(), rel=1e-9)
    assert outputs[0].indicator.item() == pytest.approx(outputs[1].indicator.item(), rel=1e-9)
    assert method.masks(free, 4, 6)[0, 0].tolist() == found[0].tolist()


BOXES = ((0, 0, 2 / 6, 0.5), (0.5, 0.5, 1.0, 1.0))


def test_a_count_makes_places_needless() -> None:
    options: dict[str, Any] = {"count": 2, "thresholds": {}, "levels": [0]}
    row = tiny.row(regions=(Region("red cat"),), methods=(MethodConfig("count_guidance", options),))
    check_methods(row)
    with pytest.raises(ValueError, match="'count_guidance' needs a region with a place; row '0' names phrases only"):
        check_methods(tiny.row(regions=(Region("red cat"),), methods=(MethodConfig("count_guidance"),)))
    with pytest.raises(ValueError, match="count must be at least 1; got 0"):
        cases.guidance("count_guidance", count=[1, 0])
    (result,), events = cases.run([row])
    assert result.status == "ok" and events[0].moved == (True,)
    (still,), _ = cases.run([tiny.row(methods=(MethodConfig("count_guidance", {**options, "scale": 0.0}),))])
    (plain,), _ = cases.run([tiny.row()])
    assert still.latents is not None and plain.latents is not None and torch.equal(still.latents, plain.latents)
    assert still.cost.unet_forwards == plain.cost.unet_forwards + 2  # the guide passes of its two steps; no first pass


def test_a_batch_with_first_passes_equals_its_rows() -> None:
    counts = [2, 3, None, 1]
    options = [{"count": count, "max_refinements": 2, "step_size": 10.0, "levels": [0]} for count in counts]
    rows: list[dict[str, Any]] = [
        {"prompt": "a red cat and a blue ball", "regions": (Region("red cat"), tiny.BALL)},
        {"prompt": "a blue dog", "regions": (Region("dog"),)},
        cases.ROWS[2],
        {"prompt": "a blue zebra and a red cat", "regions": (Region("cat"), Region("zebra"))},
    ]
    cases.batch_equals_rows("count_guidance", options, rows)
