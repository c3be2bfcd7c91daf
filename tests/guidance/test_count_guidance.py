import math
from typing import Any

import numpy as np
import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.guidance.update import Refinement
from attnguide.sampling.cfg import pass_context
from attnguide.types import MethodConfig, Region
from tests import tiny
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
    assert edit.sites.matches(SELF) and edit.active(context)
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
