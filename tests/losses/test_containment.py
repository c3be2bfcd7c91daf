from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnguide.losses import containment
from tests.reference import containment as reference

NAMES = ("mass_outside", "mask_cross_entropy", "soft_iou_distance", "inner_box", "outer_box")
LEFT = torch.tensor([[1.0, 1, 0, 0]] * 4, dtype=torch.float64)


def _loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    found: Callable[[Tensor, Tensor], Tensor] = getattr(containment, name)
    return found


def _random_maps(seed: int, *leading: int) -> Tensor:
    return torch.rand(*leading, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Map 1..16 row by row: 136 in all, the two left columns hold 1+2+5+6+9+10+13+14 = 60.
        ("mass_outside", (1 - 60 / 136) ** 2),
        # Eight cells inside, a fifth of them is one cell: the largest, 14.
        ("inner_box", 1 - 14.0),
        # Likewise outside: 16.
        ("outer_box", 16.0),
        # Scaled to (v - 1) / 15: overlap 52 / 15, union 8 + the right columns' 68 / 15.
        ("soft_iou_distance", 1 - (52 / 15) / (8 + 68 / 15)),
    ],
)
def test_counted_by_hand(name: str, expected: float) -> None:
    amap = torch.arange(1.0, 17, dtype=torch.float64).view(4, 4)
    assert _loss(name)(amap, LEFT).item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_of_a_map_that_is_its_mask() -> None:
    assert containment.mask_cross_entropy(0.1 + 0.3 * LEFT, LEFT).item() == pytest.approx(-np.log(1 - 1e-4), rel=1e-9)
    assert containment.mask_cross_entropy(1 - LEFT, LEFT).item() == pytest.approx(-np.log(1e-4), rel=1e-9)


@pytest.mark.parametrize(("wanted", "expected"), [(0.9, (1 - 60 / 136 / 0.9) ** 2), (60 / 136, 0.0), (0.2, 0.0)])
def test_missing_share_by_hand(wanted: float, expected: float) -> None:
    amap = torch.arange(1.0, 17, dtype=torch.float64).view(4, 4).requires_grad_(True)
    loss = containment.missing_share(amap, LEFT, torch.tensor(wanted, dtype=torch.float64))
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, amap)
    assert bool(gradient.abs().max() < 1e-9) == (expected == 0)


def test_missing_share_passes_gradcheck() -> None:
    maps, masks = _random_maps(0, 2, 3).requires_grad_(True), _random_maps(1, 2, 3)
    assert torch.autograd.gradcheck(lambda m: containment.missing_share(m, masks, torch.full((2, 3), 0.9)), (maps,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_against_reference(name: str, seed: int) -> None:
    maps, masks = _random_maps(seed, 2, 3), (_random_maps(seed + 100, 2, 3) > 0.6).double()
    masks[..., 0, 0], masks[..., 3, 3] = 1, 0
    got = _loss(name)(maps, masks)
    assert got.shape == (2, 3)
    for row in range(2):
        for region in range(3):
            expected = getattr(reference, name)(maps[row, region].numpy(), masks[row, region].numpy())
            assert got[row, region].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["mass_outside", "mask_cross_entropy", "soft_iou_distance"])
def test_soft_masks_against_reference(name: str) -> None:
    amap, mask = _random_maps(1), _random_maps(2)
    assert _loss(name)(amap, mask).item() == pytest.approx(getattr(reference, name)(amap.numpy(), mask.numpy()), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name: str) -> None:
    maps = (_random_maps(5, 2) + torch.linspace(0, 0.5, 16, dtype=torch.float64).view(4, 4)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: _loss(name)(x, LEFT.expand_as(x)), (maps,))


@pytest.mark.parametrize("name", NAMES)
def test_has_a_gradient(name: str) -> None:
    maps = _random_maps(6).requires_grad_(True)
    _loss(name)(maps, LEFT).backward()
    assert maps.grad is not None and maps.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_flat_map_gives_finite_losses_and_gradients(name: str, value: float) -> None:
    maps = torch.full((4, 4), value, dtype=torch.float64, requires_grad=True)
    loss = _loss(name)(maps, LEFT)
    loss.backward()
    assert torch.isfinite(loss) and maps.grad is not None and torch.isfinite(maps.grad).all()
    assert value == 0 or maps.grad.abs().max() <= 1


cells = st.lists(st.floats(0.01, 1), min_size=16, max_size=16)


@given(cells, st.integers(0, 7), st.floats(0.05, 0.95))
def test_mass_that_moves_into_the_mask_lowers_mass_outside(values: list[float], cell: int, part: float) -> None:
    before = torch.tensor(values, dtype=torch.float64).view(4, 4)
    row, column = divmod(cell, 2)
    moved = before.clone()
    taken = part * moved[row, 2 + column]
    moved[row, 2 + column] -= taken
    moved[row, column] += taken
    assert containment.mass_outside(moved, LEFT) < containment.mass_outside(before, LEFT)


@given(cells, st.floats(0.1, 10))
def test_scale_of_the_map_does_not_matter(values: list[float], factor: float) -> None:
    amap = torch.tensor(values, dtype=torch.float64).view(4, 4)
    for name in ("mass_outside", "soft_iou_distance"):
        assert _loss(name)(factor * amap, LEFT).item() == pytest.approx(_loss(name)(amap, LEFT).item(), abs=1e-9)


@given(cells)
def test_ranges(values: list[float]) -> None:
    amap = torch.tensor(values, dtype=torch.float64).view(4, 4)
    for name in ("mass_outside", "soft_iou_distance", "inner_box", "outer_box"):
        assert -1e-12 <= _loss(name)(amap, LEFT).item() <= 1 + 1e-12


@given(cells, st.floats(0.01, 0.5))
def test_more_attention_inside_lowers_the_inner_term_only(values: list[float], gain: float) -> None:
    before = torch.tensor(values, dtype=torch.float64).view(4, 4)
    after = before + gain * LEFT
    assert containment.inner_box(after, LEFT) < containment.inner_box(before, LEFT)
    assert containment.outer_box(after, LEFT) == containment.outer_box(before, LEFT)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 1.0])
def test_fraction_of_the_box_terms(fraction: float) -> None:
    amap = _random_maps(9)
    assert containment.inner_box(amap, LEFT, fraction).item() == pytest.approx(
        reference.inner_box(amap.numpy(), LEFT.numpy(), fraction)
    )
    assert containment.outer_box(amap, LEFT, fraction).item() == pytest.approx(
        reference.outer_box(amap.numpy(), LEFT.numpy(), fraction)
    )
