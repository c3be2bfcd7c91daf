import torch

from attnguide.losses.presence import peak_absence


def test_counted_by_hand() -> None:
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, 1, 2] = 0.75
    maps[0, 1] = 0.125
    assert peak_absence(maps).tolist() == [[0.25, 0.875]]


def test_only_the_peak_has_a_gradient() -> None:
    maps = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    peak_absence(maps).sum().backward()
    assert maps.grad is not None
    assert maps.grad.count_nonzero() == 1
    assert maps.grad.flatten()[maps.argmax()] == -1


def test_gradcheck() -> None:
    maps = (torch.randperm(32, generator=torch.Generator().manual_seed(0)).double() / 40).view(1, 2, 4, 4).requires_grad_(True)
    assert torch.autograd.gradcheck(peak_absence, (maps,))


def test_never_below_zero() -> None:
    assert peak_absence(torch.full((1, 1, 2, 2), 1.5)).item() == 0
