import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.losses.properties import ROUNDING, Properties, apart, appearances

WEIGHTS = {"centre": 1.0, "size": 10.0, "shape": 100.0}


def _half(left: bool) -> torch.Tensor:
    mask = torch.zeros(1, 1, 2, 4)
    mask[..., : 2 if left else 4] = 1
    return mask


def test_distance_by_hand() -> None:
    """Left half against everything: centres 1/4 and 1/2 across, sizes 1/2 and 1, outlines apart in half of the cells."""
    distance = Properties.of_masks(_half(True)).distance(Properties.of_masks(_half(False)), WEIGHTS)
    assert distance.item() == pytest.approx(0.25 + 10 * 0.5 + 100 * 0.5)


def test_a_sharp_map_has_the_properties_of_its_mask() -> None:
    mask = _half(True)
    seen = Properties.of_words(0.01 + 0.3 * mask, sharpness=50.0)
    wanted = Properties.of_masks(mask)
    torch.testing.assert_close(seen.shape, wanted.shape)
    torch.testing.assert_close(seen.size, wanted.size)
    assert seen.centre[0, 0, 0].item() == pytest.approx(0.25, abs=0.02)


def test_rounding_has_neither_value_nor_slope() -> None:
    first = torch.tensor([1.0 + 0.5 * ROUNDING, 1.5], dtype=torch.float64, requires_grad=True)
    difference = apart(first, torch.ones(2, dtype=torch.float64))
    difference.sum().backward()  # type: ignore[no-untyped-call]
    assert difference.tolist() == [0.0, 0.5] and first.grad is not None and first.grad.tolist() == [0.0, 1.0]


def test_appearance_is_read_under_the_shape_stretched_to_the_features() -> None:
    """Features are 3 on the left half and 7 on the right, at twice the size of the map."""
    features = torch.full((1, 2, 4, 8), 3.0)
    features[..., 4:] = 7.0
    site = Site("up.0", "feature", 4, 8, 1, "up", 0)
    (left,) = appearances(AttentionMaps({}, {site: features}), [Properties.of_masks(_half(True))])
    (both,) = appearances(AttentionMaps({}, {site: features}), [Properties.of_masks(_half(False))])
    assert left.shape == (1, 1, 2) and both[0, 0].tolist() == [5.0, 5.0]
    assert 3.0 <= left[0, 0, 0].item() < 3.5  # the shape's edge is soft where it is stretched
