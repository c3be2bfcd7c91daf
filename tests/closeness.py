"""What "equal" means for pictures made in another batch, or by other code: to the bit on no two processors."""

import torch
from torch import Tensor

SINGLE = 1e-4
"""What guided steps make of single precision's rounding, as a share of the latents' size; kernels round by the processor."""


def assert_close(found: Tensor, expected: Tensor, share: float = SINGLE) -> None:
    """Latents differ by at most ``share`` of the largest of the expected ones."""
    torch.testing.assert_close(found, expected, rtol=0, atol=share * float(expected.abs().max()))
