import numpy as np
import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.types import MethodConfig, Region
from tests import tiny
from tests.guidance import cases
from tests.reference import r_and_b as reference

SITES = cases.cross_sites(("down", 2, 2, 3), ("mid", 3, 2, 2), ("up", 2, 2, 3), ("up", 1, 4, 6))
SIZE = (8, 12)  # of the latent
TARGETS = cases.targets_of({"prompt": tiny.PROMPT, "regions": (tiny.CAT, tiny.BALL)})


def _expected(maps: AttentionMaps, masks: list[np.ndarray], exclusive: bool) -> float:
    layers = cases.layers_of(maps)
    return reference.loss(layers, layers[1:], [(2, 3), (6, 7)][: len(masks)], masks, exclusive)


@pytest.mark.parametrize("quirks", ["none", "reference"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_reference(quirks: str, seed: int) -> None:
    maps = cases.random_maps(SITES, 1, seed)
    output = cases.guidance("r_and_b", quirks=quirks).loss(maps, TARGETS, cases.FLAT)
    masks = [mask.double().numpy() for mask in TARGETS.binary_masks(*SIZE)[0]]
    assert output.loss.item() == pytest.approx(_expected(maps, masks, quirks == "reference"), rel=1e-6)
    assert output.indicator.item() == output.loss.item()


@pytest.mark.parametrize("quirks", ["none", "reference"])
def test_a_box_of_the_whole_picture(quirks: str) -> None:
    targets = cases.targets_of({"prompt": tiny.PROMPT, "regions": (Region("red cat", box=(0, 0, 1, 1)),)})
    maps = cases.random_maps(SITES, 1, 5, sharpness=6.0)
    got = cases.guidance("r_and_b", quirks=quirks).loss(maps, targets, cases.FLAT).loss.item()
    assert got == pytest.approx(_expected(maps, [np.ones(SIZE)], quirks == "reference"), rel=1e-6)


def test_a_word_that_fills_its_box_is_left_alone() -> None:
    """One map in which the cat's attention is exactly its half: intersection over union 1, so no loss."""
    site = cases.cross_sites(("up", 0, 8, 8), heads=1)[0]
    probs = torch.full((1, 1, 8, 8, tiny.LENGTH), 0.01, dtype=torch.float64)
    probs[..., :4, 2] = 0.5
    targets = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0, 0, 0.5, 1)),)})
    maps = AttentionMaps({site: probs.flatten(2, 3)})
    assert cases.guidance("r_and_b").loss(maps, targets, cases.FLAT).loss.item() == 0
    # The published rectangle lacks its last row and column: 21 of 32 cells.
    assert cases.guidance("r_and_b", quirks="reference").loss(maps, targets, cases.FLAT).loss.item() > 0
    far = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0.5, 0, 1, 1)),)})
    # Nothing in the box: 2 for the region, 2 for the appearance less what the soft edge leaks.
    assert cases.guidance("r_and_b").loss(maps, far, cases.FLAT).loss.item() == pytest.approx(4, abs=0.02)


def test_flat_maps_give_finite_losses_and_gradients() -> None:
    maps = cases.random_maps(SITES, 1, sharpness=0.0)
    for quirks in ("none", "reference"):
        loss = cases.guidance("r_and_b", quirks=quirks).loss(maps, TARGETS, cases.FLAT).loss
        gradients = torch.autograd.grad(loss.sum(), list(maps.probs.values()))
        assert torch.isfinite(loss).all() and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_finished_row_is_guided_again_unless_published() -> None:
    """Maps that fit their box at step 6, and do not at step 7."""
    site = cases.cross_sites(("up", 0, 8, 8), heads=1)[0]
    targets = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0, 0, 0.5, 1)),)})

    def asks(quirks: str, first: int) -> bool:
        method = cases.guidance("r_and_b", quirks=quirks)
        method.start(targets)
        for index, columns in ((first, slice(0, 5) if quirks == "reference" else slice(0, 4)), (first + 1, slice(4, 8))):
            probs = torch.full((1, 1, 8, 8, tiny.LENGTH), 0.01, dtype=torch.float64)
            probs[..., columns, 2] = 0.5
            output = method.loss(AttentionMaps({site: probs.flatten(2, 3)}), targets, cases.at(index))
        return bool(output.indicator.item() > 3e-5)

    assert asks("none", 6)
    assert not asks("reference", 6)
    assert asks("reference", 3)


@pytest.mark.parametrize("quirks", ["none", "reference"])
@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-6])
def test_maps_that_are_flat_up_to_rounding_move_nothing(quirks: str, noise: float) -> None:
    """One of the two words is flat; the other's gradient is what it would be beside any map that cannot be told."""
    maps = cases.random_maps(SITES, 1)
    leaves = []
    for seed, probs in enumerate(maps.probs.values()):
        flat = probs.detach().clone()
        jitter = torch.rand(flat.shape[:-1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for token in (2, 3):
            flat[..., token] = 0.013 + noise * jitter
        leaves.append(flat.requires_grad_(True))
    method = cases.guidance("r_and_b", quirks=quirks)
    loss = method.loss(AttentionMaps(dict(zip(maps.probs, leaves, strict=True))), TARGETS, cases.FLAT).loss
    gradients = torch.autograd.grad(loss.sum(), leaves)
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(gradient).all() and not gradient[..., 2:4].any() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("seed", [0, 1])
def test_groundit_judges_edges_on_the_maps_as_they_are(seed: int) -> None:
    """Its boxes are truncated and its rectangle is open at the end; its blur is as wide as it says."""
    method = cases.guidance("groundit_global")
    options = method.update.refinements[0]
    assert (options.iterations, options.until, method.update.step_size(cases.FLAT), method.window.stop) == (3, 1e-6, 50.0, 0.5)
    maps = cases.random_maps(SITES, 1, seed)
    masks = [mask.double().numpy() for mask in TARGETS.binary_masks(*SIZE)[0]]
    layers = cases.layers_of(maps)
    expected = reference.loss(layers, layers, [(2, 3), (6, 7)], masks, exclusive=False, sharpness=0.0)
    assert method.loss(maps, TARGETS, cases.FLAT).loss.item() == pytest.approx(expected, rel=1e-6)


def test_sites_that_are_read() -> None:
    method = cases.guidance("r_and_b")
    kinds = (("down", 0), ("down", 1), ("down", 2), ("mid", 3), ("up", 2), ("up", 1), ("up", 0))
    sites = cases.cross_sites(*[(place, level, 64 >> level, 64 >> level) for place, level in kinds])
    chosen = {(site.place, site.level) for site in method.sites_at(2).chosen(sites)}
    assert chosen == {("down", 2), ("mid", 3), ("up", 2), ("up", 1)}


def test_refusals() -> None:
    dot = tiny.row(regions=(Region("cat", box=(0, 0, 0.01, 0.01)),), methods=(MethodConfig("r_and_b"),))
    with pytest.raises(ValueError, match="Row '0': Region 'cat' covers no cell of the 16x16 map"):
        cases.run([dot])


def test_a_batch_equals_its_rows() -> None:
    limits = [3e-5, 0.5, 1e-3, 0.0]
    cases.batch_equals_rows("r_and_b", [{"until": limit, "iterations": 2, "step_size": 20.0} for limit in limits])
