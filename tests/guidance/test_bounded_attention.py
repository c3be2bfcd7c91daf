from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.types import MethodConfig, Region
from tests import tiny
from tests.guidance import cases
from tests.reference import bounded_attention as reference

SITES = cases.cross_sites(("mid", 1, 4, 6), ("up", 1, 4, 6)) + cases.self_sites(("mid", 1, 4, 6), ("up", 1, 4, 6))
TARGETS = cases.targets_of({"prompt": tiny.PROMPT, "regions": (tiny.CAT, Region("blue ball", box=(0.5, 0.5, 1.0, 1.0)))})
CAT = [x < 3 for y in range(4) for x in range(6)]
BALL = [x >= 3 and y >= 2 for y in range(4) for x in range(6)]
WORDS = [(2, 3), (6, 7)]
END = 8


@pytest.mark.parametrize("seed", [0, 1])
def test_against_reference(seed: int) -> None:
    maps = cases.random_maps(SITES, 1, seed)
    output = cases.guidance("bounded_attention").loss(maps, TARGETS, cases.FLAT)
    layers = [probs[0].detach().numpy() for probs in maps.probs.values()]
    expected = reference.loss(layers[:2], layers[2:], [CAT, BALL], WORDS, END)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert output.indicator.item() == pytest.approx(expected / 2, rel=1e-6)


def test_by_hand() -> None:
    """Box and background look at the word alike: F = 8, B = 8, one subject, so u = 1/2 in both kinds."""
    sites = cases.cross_sites(("mid", 0, 4, 4), heads=1) + cases.self_sites(("mid", 0, 4, 4), heads=1)
    targets = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0, 0, 0.5, 1)),)})
    word = torch.zeros(1, 1, 16, tiny.LENGTH)
    word[..., 2] = 1
    maps = AttentionMaps({sites[0]: word, sites[1]: torch.full((1, 1, 16, 16), 1 / 16)})
    assert cases.guidance("bounded_attention").loss(maps, targets, cases.FLAT).loss.item() == pytest.approx((1.5 + 0.5) / 4)
    assert cases.guidance("bounded_attention", self_weight=0.0).loss(maps, targets, cases.FLAT).loss.item() == 1.5 / 4


def test_gradcheck() -> None:
    assert cases.gradient_is_right(cases.guidance("bounded_attention"), SITES, TARGETS)


def test_what_it_reads_and_how_far_it_steps() -> None:
    method = cases.guidance("bounded_attention")
    kinds = (("down", 2), ("mid", 3), ("up", 2), ("up", 1))
    sites = [
        Site(f"{place}{kind}", kind, 64 >> level, 64 >> level, 8, place, level)
        for place, level in kinds
        for kind in ("cross", "self")
    ]
    chosen = {site.name for site in method.sites_at(1).chosen(sites)}
    assert chosen == {"midcross", "midself", "upcross", "upself"}
    assert [round(method.update.step_size(cases.at(index)), 3) for index in (0, 5, 14)] == [8.0, 6.0, 2.4]


def test_reference_quirk_looks_at_the_loss_before() -> None:
    assert cases.guidance("bounded_attention", quirks="reference").update.refinements[0].lagging
    assert not cases.guidance("bounded_attention").update.refinements[0].lagging


def test_the_mask_alone_changes_the_picture_and_no_scale_changes_nothing() -> None:
    def latents(**options: Any) -> Tensor:
        config = MethodConfig("bounded_attention", {"stop": 0.0, **options})
        (result,), _ = cases.run([tiny.row(steps=3, methods=(config,))])
        assert result.latents is not None
        return result.latents

    plain = cases.run([tiny.row(steps=3)])[0][0].latents
    assert plain is not None
    assert torch.equal(latents(mask=False), plain) and torch.equal(latents(scale=0.0), plain)
    assert (latents() - plain).abs().max() > 1e-3


def test_flat_maps_give_finite_losses_and_gradients() -> None:
    maps = cases.random_maps(SITES, 1, sharpness=0.0)
    loss = cases.guidance("bounded_attention").loss(maps, TARGETS, cases.FLAT).loss
    gradients = torch.autograd.grad(loss.sum(), list(maps.probs.values()))
    assert torch.isfinite(loss).all() and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="clusters must be at least 1; got 0"):
        cases.guidance("bounded_attention", clusters=0)
    with pytest.raises(ValueError, match="refine_every must be above 0; got 0"):
        cases.guidance("bounded_attention", refine_every=0)
    dot = tiny.row(regions=(Region("cat", box=(0, 0, 0.01, 0.01)),), methods=(MethodConfig("bounded_attention"),))
    with pytest.raises(ValueError, match="Row '0': Region 'cat' covers no cell"):
        cases.run([dot])


def test_a_batch_equals_its_rows() -> None:
    limits = [0.2, 0.1, 0.0, 0.3]
    cases.batch_equals_rows("bounded_attention", [{"until": u, "iterations": 2, "stop": 0.5} for u in limits])


def test_published_boxes_are_rounded_and_ordinary_ones_are_never_refused() -> None:
    """On 4x6 cells the first box has columns 1.5 to 3.5 (rounded to 2 and 4) and rows 0.6 to 2.4 (1 to 2)."""
    quarter = Region("red cat", box=(0.25, 0.15, 7 / 12, 0.6))
    targets = cases.targets_of({"prompt": tiny.PROMPT, "regions": (quarter, Region("blue ball", box=(0.75, 0.5, 1.0, 1.0)))})
    maps = cases.random_maps(SITES, 1)
    layers = [probs[0].detach().numpy() for probs in maps.probs.values()]
    cat = [2 <= x < 4 and y == 1 for y in range(4) for x in range(6)]
    ball = [x >= 4 and y >= 2 for y in range(4) for x in range(6)]  # columns 4.5 to 6: the even edge is 4
    output = cases.guidance("bounded_attention", quirks="reference").loss(maps, targets, cases.FLAT)
    expected = reference.loss(layers[:2], layers[2:], [cat, ball], WORDS, END)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    lost = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0.375, 0.25, 0.625, 0.75)),)})
    small = cases.self_sites(("mid", 1, 4, 4))
    cases.guidance("bounded_attention").check(lost, small)
    with pytest.raises(ValueError, match="no cell of the 4x4 map with its edges rounded, as the published code draws it"):
        cases.guidance("bounded_attention", quirks="reference").check(lost, small)
