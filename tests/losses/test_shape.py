import pytest
import torch
from torch import Tensor

from attnguide.losses import shape
from tests.reference import box_diff, r_and_b


def _random(seed: int, *size: int) -> Tensor:
    return torch.rand(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _box(height: int, width: int, x0: int, y0: int, x1: int, y1: int) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.float64)
    mask[y0:y1, x0:x1] = 1
    return mask


BOXES = [(0, 0, 3, 5), (1, 2, 4, 3), (0, 0, 7, 5), (6, 4, 7, 5)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("reach", [0, 1, 2])
def test_corners_against_reference(box: tuple[int, int, int, int], reach: int) -> None:
    amap = _random(1, 5, 7)
    expected = box_diff.corners(amap.numpy(), box, reach)
    assert shape.corner_distance(amap, _box(5, 7, *box), reach).item() == pytest.approx(expected, rel=1e-9)


def test_corners_by_hand() -> None:
    """Map 0.5 on all of a 4x4 field, box in the first column: |0.5 - 1| at 0, |0.5 - 0| at 1 and 2, and 0.5 at rows 0, 1, 3."""
    value = shape.corner_distance(torch.full((4, 4), 0.5), _box(4, 4, 0, 0, 1, 4))
    assert value.item() == pytest.approx((3 * 0.5 + 3 * 0.5) / 4)


def test_corners_gradcheck() -> None:
    maps = _random(2, 2, 4, 5).requires_grad_(True)
    masks = torch.stack([_box(4, 5, 0, 1, 2, 3), _box(4, 5, 2, 0, 5, 4)])
    assert torch.autograd.gradcheck(lambda x: shape.corner_distance(x, masks), (maps,))


def test_rectangles() -> None:
    cells = torch.zeros(2, 4, 5, dtype=torch.bool)
    cells[0, 1, 1] = cells[0, 2, 3] = True
    assert torch.equal(shape.bounding_rectangle(cells)[0].double(), _box(4, 5, 1, 1, 4, 3))
    assert torch.equal(shape.bounding_rectangle(cells, exclusive=True)[0].double(), _box(4, 5, 1, 1, 3, 2))
    assert not shape.bounding_rectangle(cells)[1].any()


def test_threshold_by_hand() -> None:
    amap = torch.tensor([[1.0, 0.5], [0.25, 0.25]])
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert shape.adaptive_threshold(amap, mask).item() == pytest.approx(0.4 * 0.75 + 0.6 * 0.25)
    assert shape.adaptive_threshold(amap, torch.ones(2, 2)).item() == pytest.approx(0.4 * 0.5)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("exclusive", [False, True])
def test_region_misfit_against_reference(box: tuple[int, int, int, int], exclusive: bool) -> None:
    amap, mask = _random(3, 5, 7) ** 3, _box(5, 7, *box)
    threshold = shape.adaptive_threshold(amap, mask)
    value, iou = shape.region_misfit(amap, mask, threshold, exclusive)
    expected = r_and_b.region(amap.numpy(), mask.numpy(), threshold.item(), exclusive)
    assert (value.item(), iou.item()) == (pytest.approx(expected[0], rel=1e-9), pytest.approx(expected[1], rel=1e-9))


def test_the_rectangle_passes_the_map_s_gradient() -> None:
    """Straight through, so not the derivative of the value: checked against the formula written out."""
    amap, mask = (_random(4, 5, 7) ** 3).requires_grad_(True), _box(5, 7, 1, 1, 4, 4)
    threshold = torch.tensor(0.4, dtype=torch.float64)
    value, iou = shape.region_misfit(amap, mask, threshold)
    (got,) = torch.autograd.grad(value, amap)
    box = shape.bounding_rectangle(amap.detach() > threshold).double()
    whole, part = box.sum(), (box * mask).sum()
    expected = (1 - iou) * (part / whole**2 - mask / whole)
    soft = torch.sigmoid(20 * (amap.detach() - threshold))
    slope = 20 * soft * (1 - soft)
    expected += 0.5 * (1 - iou) * slope * ((soft * mask).sum() / soft.sum() ** 2 - mask / soft.sum())
    torch.testing.assert_close(got, expected)


def test_a_flat_map_has_no_rectangle_and_finite_gradients() -> None:
    flat = torch.zeros(5, 7, dtype=torch.float64, requires_grad=True)
    value, iou = shape.region_misfit(flat, _box(5, 7, 1, 1, 4, 4), shape.adaptive_threshold(flat, _box(5, 7, 1, 1, 4, 4)))
    edges = shape.edge_misfit(flat, _box(5, 7, 1, 1, 4, 4), iou)
    (value + edges).backward()
    assert iou.item() == 0 and torch.isfinite(value) and torch.isfinite(edges)
    assert flat.grad is not None and torch.isfinite(flat.grad).all()


def test_edges_against_reference_and_by_hand() -> None:
    amap, mask = _random(5, 5, 7), _box(5, 7, 1, 1, 4, 4)
    expected = r_and_b.edges(amap.numpy(), mask.numpy(), 0.25)
    assert shape.edge_misfit(amap, mask, torch.tensor(0.25)).item() == pytest.approx(expected, rel=1e-9)
    step = _box(6, 6, 0, 0, 3, 6)  # one upright edge, between columns 2 and 3
    assert shape.edge_misfit(step, _box(6, 6, 2, 0, 4, 6), torch.tensor(0.0)).item() == pytest.approx(0, abs=1e-8)
    assert shape.edge_misfit(step, _box(6, 6, 4, 0, 6, 6), torch.tensor(0.0)).item() == pytest.approx(1, abs=1e-8)


def test_edges_gradcheck() -> None:
    maps = _random(6, 2, 5, 6).requires_grad_(True)
    iou = torch.tensor([0.1, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: shape.edge_misfit(x, _box(5, 6, 1, 1, 4, 4).expand_as(x), iou), (maps,))
