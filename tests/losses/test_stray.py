import numpy as np
import pytest
import torch

from attnguide.losses.stray import connected, otsu_level, stray_peak
from tests.reference import initno as reference


@pytest.mark.parametrize("seed", range(6))
def test_against_reference(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(3, 5, 7, dtype=torch.float64, generator=generator) ** (1 + seed)
    assert otsu_level(maps).tolist() == [reference.otsu(amap.numpy()) for amap in maps]
    for published in (False, True):
        expected = [reference.clean(amap.numpy(), published) for amap in maps]
        assert stray_peak(maps, at_threshold=published).tolist() == pytest.approx(expected)


def test_two_blobs_and_one() -> None:
    maps = torch.zeros(2, 3, 5)
    maps[:, 0, 0], maps[0, 2, 4] = 0.9, 0.8
    maps[1, 0, 1] = 0.8
    assert stray_peak(maps).tolist() == [0.0, 0.0]  # weaker than the blob's weakest cell; and no second blob
    maps[0, 0, 1] = 0.7  # now the main blob has a cell below the stray one
    assert stray_peak(maps)[0].item() == pytest.approx(0.8)
    assert stray_peak(maps, at_threshold=True)[0].item() == 0  # the background is at the threshold and joins everything


def test_only_edges_connect() -> None:
    cells = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 1]], dtype=torch.bool)
    seeds = torch.zeros(3, 3, dtype=torch.bool)
    seeds[1, 1] = seeds[2, 0] = True
    np.testing.assert_array_equal(connected(cells, seeds).numpy(), [[0, 0, 0], [0, 1, 1], [0, 0, 1]])


def test_flat_maps_and_gradients() -> None:
    assert otsu_level(torch.full((2, 4, 4), 0.5)).tolist() == [0, 0]
    assert stray_peak(torch.full((4, 4), 0.5)).item() == 0
    maps = (torch.rand(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) ** 3).requires_grad_(True)
    assert torch.autograd.gradcheck(stray_peak, (maps,))
