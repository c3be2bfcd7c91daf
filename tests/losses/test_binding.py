import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.losses import binding
from tests.reference import conform, divide_and_bind, syngen


def _random(seed: int, *size: int) -> Tensor:
    return torch.rand(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01


def test_pairwise_divergence_against_reference() -> None:
    maps = _random(0, 2, 3, 4, 5)
    found = binding.pairwise_symmetric_kl(maps)
    for row in range(2):
        for first in range(3):
            for second in range(3):
                expected = syngen.distance(maps[row, first].numpy(), maps[row, second].numpy())
                assert found[row, first, second].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_divergence_where_a_map_is_zero() -> None:
    maps = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]], [[0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    loose = binding.pairwise_symmetric_kl(maps)
    loose.sum().backward()
    assert torch.isfinite(loose).all() and maps.grad is not None and torch.isfinite(maps.grad).all()
    strict = binding.pairwise_symmetric_kl(maps.detach(), strict=True)
    assert strict[0, 1].item() == pytest.approx(math.log(2) / 4)  # log(2) of one way, log(1/2) / 2 of the other
    assert strict.diagonal().abs().max() == 0
    assert torch.equal(binding.infinite_kl(maps.detach()), ~torch.eye(3, dtype=torch.bool))


def test_without_the_infinite_cells_the_gradient_is_that_of_torch() -> None:
    maps = _random(1, 2, 3, 4)
    maps[0, 1, 1:3] = maps[1, 2, 0] = 0
    maps.requires_grad_(True)
    first, second = (torch.distributions.Categorical(probs=one.flatten()) for one in maps)
    divergence = torch.distributions.kl_divergence
    infinite = (divergence(first, second) + divergence(second, first)) / 2
    (expected,) = torch.autograd.grad(infinite, maps)
    (found,) = torch.autograd.grad(binding.pairwise_symmetric_kl(maps, strict=True)[0, 1], maps)
    assert infinite.isinf() and expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_jensen_shannon_by_hand() -> None:
    apart = torch.tensor([[1.0, 1e-300]], dtype=torch.float64)
    assert binding.jensen_shannon(apart, apart.flip(1)).item() == pytest.approx(math.log(2))
    assert binding.jensen_shannon(torch.tensor([[0.3, 0.7]]), torch.tensor([[0.3, 0.7]])).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("normalise", [True, False])
def test_attribute_divergence_against_reference(normalise: bool) -> None:
    nouns, attributes = _random(1, 2, 4, 5), _random(2, 2, 4, 5)
    quantile = torch.tensor([0.2, 0.3], dtype=torch.float64)
    found = binding.attribute_divergence(nouns, attributes, quantile, normalise)
    for row in range(2):
        expected = divide_and_bind.apart(nouns[row].numpy(), attributes[row].numpy(), quantile[row].item(), normalise)
        assert found[row].item() == pytest.approx(expected, rel=1e-9)


def test_contrast_against_reference() -> None:
    items = _random(3, 5, 6)
    classes = [0, 0, 1, 1, 1]
    related = torch.tensor([[a == b for a in classes] for b in classes])
    assert binding.nt_xent(items, related, 0.5).item() == pytest.approx(conform.contrast(items.numpy(), classes, 0.5), rel=1e-9)


def test_contrast_by_hand() -> None:
    """Two equal items and one at a right angle, temperature 1: log(1 + e^0 / e^1)."""
    items = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    related = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    assert binding.nt_xent(items, related, 1.0).item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_nothing_to_contrast() -> None:
    items = _random(4, 3, 4).requires_grad_(True)
    for related in (torch.eye(3, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool)):
        loss = binding.nt_xent(items, related)
        loss.backward()
        assert loss.item() == 0
    assert items.grad is not None and items.grad.abs().max() == 0


def test_gradcheck() -> None:
    maps, others = _random(5, 3, 2, 4).requires_grad_(True), _random(6, 3, 2, 4).requires_grad_(True)
    related = torch.tensor(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=bool))
    quantile = torch.full((3,), 0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(binding.pairwise_symmetric_kl, (maps,))
    assert torch.autograd.gradcheck(lambda a, b: binding.attribute_divergence(a, b, quantile), (maps, others))
    assert torch.autograd.gradcheck(lambda a: binding.nt_xent(a.flatten(1), related), (maps,))
