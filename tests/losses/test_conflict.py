import pytest
import torch

from attnguide.losses.conflict import aggregated_self_maps, foreground, self_cross_overlap
from attnguide.losses.presence import mean_peak_absence
from tests.reference import self_cross as reference


def _random(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.rand(1, 3, 3, 5, dtype=torch.float64, generator=generator) ** 3
    return words, (4 * torch.randn(1, 15, 15, dtype=torch.float64, generator=generator)).softmax(-1)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_against_reference(seed: int, published: bool) -> None:
    words, own = _random(seed)
    seen = aggregated_self_maps(words, own, published)
    expected = [reference.aggregated(word.numpy(), own[0].numpy(), published) for word in words[0]]
    for found, wanted in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(found, torch.from_numpy(wanted))
    overlaps = self_cross_overlap(words, seen, 1e-4 if published else 0.0)[0]
    for i, word in enumerate(words[0]):
        for j, one in enumerate(expected):
            assert overlaps[i, j].item() == pytest.approx(reference.shared(word.numpy(), one, published))


def test_by_hand() -> None:
    word = torch.tensor([[[[0.8, 0.1], [0.1, 0.6]]]])
    own = torch.eye(4)[None].flip(-1)  # every cell looks at the opposite one
    assert foreground(word).squeeze().tolist() == [[True, False], [False, True]]
    torch.testing.assert_close(aggregated_self_maps(word, own).squeeze(), torch.tensor([[0.6, 0.0], [0.0, 0.8]]))
    maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])
    assert self_cross_overlap(maps, maps)[0].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert mean_peak_absence(word, 2).item() == pytest.approx(1 - 0.7)
    assert mean_peak_absence(word, 99).item() == pytest.approx(1 - 0.4)


def test_gradients_and_flat_maps() -> None:
    words, own = (tensor.requires_grad_(True) for tensor in _random(7))

    def overlaps(word: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
        return self_cross_overlap(word, aggregated_self_maps(word, looks))

    assert torch.autograd.gradcheck(overlaps, (words, own))
    flat = torch.full((1, 2, 3, 5), 0.5, requires_grad=True)
    gradient = torch.autograd.grad(overlaps(flat, own.detach().float()).sum(), flat)[0]
    assert torch.isfinite(gradient).all()
