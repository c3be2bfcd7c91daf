from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.sampling.cfg import pass_context
from attnguide.types import MethodConfig, PassContext, Region, Step
from tests import tiny
from tests.guidance import cases
from tests.reference import bounded_attention as reference

SITES = cases.cross_sites(("mid", 1, 4, 6), ("up", 1, 4, 6)) + cases.self_sites(("mid", 1, 4, 6), ("up", 1, 4, 6))
TARGETS = cases.targets_of({"prompt": tiny.PROMPT, "regions": (tiny.CAT, Region("blue ball", box=(0.5, 0.5, 1.0, 1.0)))})
CAT = [x < 3 for y in range(4) for x in range(6)]
BALL = [x >= 3 and y >= 2 for y in range(4) for x in range(6)]
WORDS = [(2, 3), (6, 7)]
SILENT = (1, 4, 5)  # a, and, a
END = 8
CROSS, SELF = SITES[1], SITES[3]


def _bounds(**options: Any) -> Edit:
    (edit,) = cases.guidance("bounded_attention", **options).edits(TARGETS, 1)
    return edit


def _context(index: int = 0, count: int = 50, kind: Any = "denoise") -> PassContext:
    branches: tuple[Any, ...] = ("uncond", "cond") if kind == "denoise" else ("cond",)
    return pass_context(cases.at(index, count), kind, [0], branches)


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


@pytest.mark.parametrize("kind", ["denoise", "guide"])
def test_words_are_hidden_as_in_the_reference(kind: str) -> None:
    context = _context(kind=kind)
    scores = torch.randn(len(context.rows), 2, 24, tiny.LENGTH, dtype=torch.float64)
    probs = _bounds().scores(scores, CROSS, context).softmax(-1)
    background = [not a and not b for a, b in zip(CAT, BALL, strict=True)]

    def sees(query: int, token: int) -> bool:
        if kind == "guide":
            around = [[inside or b for inside, b in zip(mask, background, strict=True)] for mask in (CAT, BALL)]
            return reference.sees_word(query, token, around, WORDS, SILENT)
        return reference.sees_word(query, token, [CAT, BALL], WORDS, SILENT) and not (background[query] and token == END)

    expected = reference.masked_softmax(scores[-1, 0].numpy(), sees)
    np.testing.assert_allclose(probs[-1, 0].numpy(), expected, atol=1e-9)
    if kind == "denoise":
        assert torch.equal(probs[0], scores[0].softmax(-1))


def test_subjects_are_hidden_from_one_another_as_in_the_reference() -> None:
    scores = torch.randn(2, 2, 24, 24, dtype=torch.float64)
    probs = _bounds().scores(scores, SELF, _context()).softmax(-1)
    for half in range(2):
        expected = reference.masked_softmax(scores[half, 1].numpy(), lambda q, k: reference.sees_cell(q, k, [CAT, BALL]))
        np.testing.assert_allclose(probs[half, 1].numpy(), expected, atol=1e-9)


def _show(edit: Edit, step: Step, cells: Tensor) -> None:
    """One pass in which the cat's word, and the cells of each picture half, are looked at as given."""
    context = pass_context(step, "denoise", [0], ("uncond", "cond"))
    words = torch.full((2, 1, 24, tiny.LENGTH), 0.01)
    words[..., 3] = cells
    words[..., 7] = 1 - cells
    alike = (cells[:, None] == cells[None]).float().expand(2, 1, 24, 24) / 12
    for site, probs in ((CROSS, words), (SELF, alike)):
        edit.scores(probs.log(), site, context)
        edit.probs(probs, site, context)


def test_masks_follow_the_clusters_of_self_attention() -> None:
    """The upper left of the cat's box attends to itself: from refinement on that is the cat, and the rest of its box nobody."""
    cells = torch.tensor([float(x < 3 and y < 2) for y in range(4) for x in range(6)])
    context = _context(16)

    def seen(edit: Edit) -> Tensor:
        for index in range(15):
            _show(edit, cases.at(index), cells)
        _show(edit, cases.at(15), cells)
        return edit.scores(torch.zeros(2, 1, 24, tiny.LENGTH), CROSS, context)[1, 0, :, 3] == 0

    assert seen(_bounds(clusters=1)).tolist() == [bool(cell) for cell in cells]
    assert seen(_bounds(clusters=1, refine=False)).tolist() == CAT
    assert seen(_bounds(clusters=1, refine_start=0.5)).tolist() == CAT


def test_what_it_reads_and_how_far_it_steps() -> None:
    method = cases.guidance("bounded_attention")
    kinds = (("down", 2), ("mid", 3), ("up", 2), ("up", 1))
    sites = [
        Site(f"{place}{kind}", kind, 64 >> level, 64 >> level, 8, place, level)
        for place, level in kinds
        for kind in ("cross", "self")
    ]
    chosen = {site.name for site in sites if method.sites_at(2).matches(site)}
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
