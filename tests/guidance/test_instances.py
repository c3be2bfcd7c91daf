import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.guidance.instances import density_clusters, find_instances, silhouette, with_count
from tests.reference import instances as reference


def _heaps(seed: int) -> Tensor:
    """Distances of points in three heaps of different width, and of some between them."""
    source = torch.Generator().manual_seed(seed)
    middles = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.5]], dtype=torch.float64).repeat_interleave(12, 0)
    heaps = middles + 0.15 * torch.randn(36, 2, dtype=torch.float64, generator=source)
    points = torch.cat([heaps, 2 * torch.rand(8, 2, dtype=torch.float64, generator=source) - 0.3])
    return torch.cdist(points, points)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("reach", "neighbours"), [(0.2, 4), (0.3, 6), (0.05, 3), (5.0, 2)])
def test_clusters_and_silhouette_equal_the_slow_reference(seed: int, reach: float, neighbours: int) -> None:
    distances = _heaps(seed)
    found = density_clusters(distances, reach, neighbours)
    expected = reference.density_clusters(distances.numpy(), reach, neighbours)
    assert found.tolist() == expected
    if len(set(expected)) > 1:
        assert silhouette(distances, found) == pytest.approx(reference.silhouette(distances.numpy(), expected), abs=1e-6)


def test_one_cluster_has_no_silhouette() -> None:
    assert silhouette(_heaps(0), torch.zeros(44, dtype=torch.int64)) == 0


def _picture(*boxes: tuple[int, int, int, int], side: int = 16) -> tuple[Tensor, Tensor]:
    """Self-attention in which the cells of a box see their own box, and a map of the word that covers all of them."""
    owner = torch.zeros(side, side, dtype=torch.int64)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        owner[y0:y1, x0:x1] = number + 1
    same = (owner.flatten()[:, None] == owner.flatten()).double()
    noise = torch.rand(side**2, side**2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    attention = same + 0.05 * noise
    return attention / attention.sum(1, keepdim=True), 0.1 + (owner > 0).double()


def _cells(mask: Tensor) -> set[tuple[int, int]]:
    return {(x, y) for y, x in mask.nonzero().tolist()}


BOXES = (1, 1, 6, 6), (9, 2, 14, 6), (4, 9, 11, 14)


def test_instances_are_found_even_where_they_touch() -> None:
    for boxes in (BOXES, ((1, 1, 6, 6), (6, 1, 11, 6))):
        found = find_instances(*_picture(*boxes))
        expected = [{(x, y) for x in range(x0, x1) for y in range(y0, y1)} for x0, y0, x1, y1 in boxes]
        assert sorted(map(sorted, map(_cells, found))) == sorted(map(sorted, expected))


def test_heaps_that_are_too_small_are_no_instances() -> None:
    found = find_instances(*_picture((1, 1, 6, 6), (9, 9, 10, 11)))
    assert len(found) == 1 and _cells(found[0]) == {(x, y) for x in range(1, 6) for y in range(1, 6)}


def test_a_flat_word_has_no_instances() -> None:
    assert find_instances(torch.full((64, 64), 1 / 64), torch.full((8, 8), 0.2)).shape == (0, 8, 8)


def test_the_smallest_instances_go() -> None:
    masks = torch.zeros(3, 6, 6, dtype=torch.bool)
    masks[0, :2, :2], masks[1, 4, 4], masks[2, :3, 3:] = True, True, True
    assert torch.equal(with_count(masks, 2), masks[[0, 2]])
    assert torch.equal(with_count(masks, 3), masks)


def test_nothing_found_is_a_square_in_the_middle() -> None:
    (middle,) = with_count(torch.zeros(0, 32, 32, dtype=torch.bool), 1)
    assert _cells(middle) == {(x, y) for x in range(13, 19) for y in range(13, 19)}
    assert with_count(torch.zeros(0, 3, 5, dtype=torch.bool), 1).sum() == 1


def test_added_instances_lie_where_there_is_room() -> None:
    """One square of 4x4 in the left of an 8x16 map: a disc of the same area goes to the right half, far from all edges."""
    masks = torch.zeros(1, 8, 16, dtype=torch.bool)
    masks[0, 2:6, 1:5] = True
    first, second, third = with_count(masks, 3)
    assert torch.equal(first, masks[0])
    assert not (first & second).any() and not (second & third).any() and not (first & third).any()
    centre = np.mean(sorted(_cells(second)), axis=0)
    assert 8 <= centre[0] <= 12 and 3 <= centre[1] <= 4.5
    assert 12 <= int(second.sum()) <= 24 and int(third.sum()) >= 1
    assert with_count(torch.ones(1, 4, 4, dtype=torch.bool), 2)[1].sum() == 1  # where there is no room, one cell
