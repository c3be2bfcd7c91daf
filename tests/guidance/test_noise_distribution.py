import numpy as np
import torch

from attnguide.guidance.noise_distribution import NoiseDistribution
from tests.reference import initno as reference


def test_noise_moves_as_in_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(24, dtype=torch.float64, generator=generator)
    gradients = [torch.randn(24, dtype=torch.float64, generator=generator) * size for size in (0.1, 1.0, 5.0, 0.01) * 6]
    noise = NoiseDistribution(start, 0.01, 1e-3)
    for gradient in gradients:
        noise.move(gradient)
    expected = reference.optimised(start.numpy(), [gradient.numpy() for gradient in gradients])
    np.testing.assert_allclose(noise.sample().numpy(), expected, rtol=1e-6)
    assert np.abs(expected - start.numpy()).max() > 1e-3
