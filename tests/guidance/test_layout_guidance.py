import numpy as np
import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.types import MethodConfig, Region
from tests import tiny
from tests.guidance import cases
from tests.reference import layout_guidance as reference

SITES = cases.cross_sites(("mid", 1, 4, 6), ("up", 0, 8, 12), ("up", 0, 8, 12))
TARGETS = cases.targets_of({"prompt": tiny.PROMPT, "regions": (tiny.CAT, tiny.BALL)})


@pytest.mark.parametrize("seed", [0, 1])
def test_against_reference(seed: int) -> None:
    maps = cases.random_maps(SITES, 1, seed)
    output = cases.guidance("layout_guidance").loss(maps, TARGETS, cases.FLAT)
    masks = [TARGETS.masks(site.height, site.width)[0].double().numpy() for site in SITES]
    expected = reference.loss(cases.layers_of(maps), [(2, 3), (6, 7)], masks)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert output.indicator.item() == output.loss.item()


def test_the_published_masks_are_cut_to_whole_cells() -> None:
    targets = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0.1, 0.2, 0.7, 0.9)),)})
    maps = cases.random_maps(SITES, 1)
    masks = []
    for site in SITES:
        mask = np.zeros((site.height, site.width))
        mask[int(0.2 * site.height) : int(0.9 * site.height), int(0.1 * site.width) : int(0.7 * site.width)] = 1
        masks.append([mask])
    got = cases.guidance("layout_guidance", quirks="reference").loss(maps, targets, cases.FLAT).loss.item()
    assert got == pytest.approx(reference.loss(cases.layers_of(maps), [(2,)], masks), rel=1e-6)
    assert got != pytest.approx(cases.guidance("layout_guidance").loss(maps, targets, cases.FLAT).loss.item(), rel=1e-3)


def test_a_box_without_a_cell_adds_a_constant_in_the_published_code_only() -> None:
    targets = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0.02, 0.02, 0.1, 0.1)),)})
    maps = cases.random_maps(SITES, 1)
    assert cases.guidance("layout_guidance", quirks="reference").loss(maps, targets, cases.FLAT).loss.item() == 1
    assert 0 < cases.guidance("layout_guidance").loss(maps, targets, cases.FLAT).loss.item() < 1


def test_by_hand() -> None:
    """Two heads, 2x2 cells, box on the left: shares inside 3/4 and 1/4, so (1/16 + 9/16) / 2."""
    site = cases.cross_sites(("up", 0, 2, 2))[0]
    probs = torch.zeros(1, 2, 4, tiny.LENGTH, dtype=torch.float64)
    probs[0, 0, :, 2] = torch.tensor([0.2, 0.05, 0.1, 0.05])
    probs[0, 1, :, 2] = torch.tensor([0.05, 0.3, 0.05, 0.0])
    targets = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0, 0, 0.5, 1)),)})
    loss = cases.guidance("layout_guidance").loss(AttentionMaps({site: probs}), targets, cases.FLAT).loss
    assert loss.item() == pytest.approx((1 / 16 + 9 / 16) / 2)


def test_gradcheck() -> None:
    assert cases.gradient_is_right(cases.guidance("layout_guidance"), SITES[:2], TARGETS)


def test_regions_of_one_phrase_are_their_union_and_weights_count() -> None:
    maps = cases.random_maps(SITES, 1)
    method = cases.guidance("layout_guidance")

    def loss(*regions: Region) -> float:
        return method.loss(maps, cases.targets_of({"prompt": tiny.PROMPT, "regions": regions}), cases.FLAT).loss.item()

    halves = Region("cat", box=(0, 0, 0.5, 0.5)), Region("cat", box=(0, 0.5, 0.5, 1))
    assert loss(*halves, tiny.BALL) == pytest.approx(loss(Region("cat", box=(0, 0, 0.5, 1)), tiny.BALL), rel=1e-9)
    assert loss(Region("cat", box=(0, 0, 0.5, 1), weight=3.0)) == pytest.approx(3 * loss(*halves), rel=1e-9)


def test_middle_block_and_upward_sites_of_the_guidance_level() -> None:
    sites = tiny.model().attention_sites(32, 32)
    chosen = cases.guidance("layout_guidance").sites_at(0).chosen(sites)
    assert {(site.place, site.level) for site in chosen} == {("mid", 1), ("up", 0)}
    assert {site.level for site in cases.guidance("layout_guidance", levels=(1,)).sites_at(0).chosen(sites)} == {1}


class _Judge:
    """Losses of a made-up landscape, one after the other, through the method's own stopping rule."""

    def __init__(self, quirks: str, losses: list[float]) -> None:
        self.method = cases.guidance("layout_guidance", quirks=quirks)
        self.losses = losses
        self.method.start(TARGETS)

    def moves(self, passes: list[int]) -> list[bool]:
        """Whether each pass moves; ``passes`` gives the landscape's index of each."""
        stale = []
        for index in passes:
            loss = torch.tensor([self.losses[index]])
            indicator = self.method._stale(loss, TARGETS) if self.method.reference else loss  # type: ignore[attr-defined]
            stale.append(bool(indicator.item() > 0.2))
        return stale


def test_the_published_stopping_rule_is_stale_and_final() -> None:
    """Losses 0.5, 0.1, 0.6, 0.6: the code moves at 0.1, too, because 0.5 stood before it, and never again."""
    assert _Judge("reference", [0.5, 0.1, 0.6, 0.6]).moves([0, 1, 2, 3]) == [True, True, False, False]
    assert _Judge("none", [0.5, 0.1, 0.6, 0.6]).moves([0, 1, 2, 3]) == [True, False, True, True]


@pytest.mark.parametrize("until", [0.0, 0.3, 0.9])
def test_the_published_loop(until: float) -> None:
    """On the tiny model: as many updates as the code's loop would make on the losses that were found."""
    options = {"until": until, "iterations": 3, "stop": 1.0, "quirks": "reference", "step_size": 100.0}
    sample = tiny.row(steps=3, methods=(MethodConfig("layout_guidance", options),))
    _, events = cases.run([sample])
    losses = iter([event.losses[0] for event in events if event.moved[0]])
    visited = reference.published_run(lambda _: next(losses), lambda position: position + 1, 3, until, 3)
    assert len(visited) == sum(event.moved[0] for event in events)
    assert next(losses, None) is None


def test_a_batch_equals_its_rows() -> None:
    limits = [0.0, 0.2, 0.1, 0.05]
    cases.batch_equals_rows("layout_guidance", [{"until": limit, "iterations": 2} for limit in limits])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="'layout_guidance' needs a region with a place"):
        from attnguide.methods import check_methods

        check_methods(tiny.row(regions=(Region("cat"),), methods=(MethodConfig("layout_guidance"),)))
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        cases.guidance("layout_guidance", iterations=0)
