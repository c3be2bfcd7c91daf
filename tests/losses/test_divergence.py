import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnguide.losses.divergence import jensen_shannon_of_groups
from tests.reference import focus as reference


def _group(*maps: list[list[float]]) -> float:
    stacked = torch.tensor(maps, dtype=torch.float64)[None]
    members = torch.ones(1, 1, len(maps), dtype=torch.float64)
    return float(jensen_shannon_of_groups(stacked, members)[0, 0])


def test_by_hand() -> None:
    left, right = [[1.0, 0.0]], [[0.0, 1.0]]
    assert _group(left, left) == pytest.approx(0, abs=1e-12)
    assert _group(left, right) == pytest.approx(1)
    assert _group(left) == 0
    # [1, 1] stays even, [2, 1] becomes [8, 1] / 9; their mean is [25, 11] / 36.
    even = 0.5 * math.log(0.5 / (25 / 36)) + 0.5 * math.log(0.5 / (11 / 36))
    steep = 8 / 9 * math.log(8 / 9 / (25 / 36)) + 1 / 9 * math.log(1 / 9 / (11 / 36))
    assert _group([[1.0, 1.0]], [[2.0, 1.0]]) == pytest.approx((even + steep) / 2 / math.log(2))


@given(st.integers(0, 10_000), st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_bounds_scale_and_reference(seed: int, count: int) -> None:
    maps = np.random.default_rng(seed).random((count, 3, 5)) ** 4 + 1e-9
    found = _group(*maps.tolist())
    assert -1e-9 <= found <= 1 + 1e-9
    assert found == pytest.approx(reference.divergence(list(maps)), abs=1e-9)
    assert _group(*(maps * 1e-6).tolist()) == pytest.approx(found, rel=1e-6, abs=1e-9)


def test_groups_share_maps_and_padding_counts_as_none() -> None:
    maps = torch.rand(1, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    members = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.5, 0.5, 1.0]]], dtype=torch.float64)
    found = jensen_shannon_of_groups(maps, members)[0]
    assert found[0].item() == pytest.approx(reference.divergence(list(maps[0, :2].numpy())))
    assert found[1].item() == pytest.approx(reference.divergence(list(maps[0, 1:].numpy())))
    assert found[2].item() == 0
    same = torch.stack([maps[0, 0], maps[0, 0], maps[0, 2]])[None]  # one word twice, each for half
    assert jensen_shannon_of_groups(same, members)[0, 3].item() == pytest.approx(
        reference.divergence([maps[0, 0].numpy(), maps[0, 2].numpy()])
    )


def test_gradients() -> None:
    members = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    maps = torch.rand(1, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda found: jensen_shannon_of_groups(found, members), (maps,))
    empty = torch.zeros(1, 3, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(jensen_shannon_of_groups(empty, members.float()).sum(), [empty])
    assert torch.isfinite(gradient).all()
