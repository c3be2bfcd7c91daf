"""Initial noise that depends on the row's seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per row, so that a seed gives the same noise alone, in a batch and on any device."""
    return [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]


def initial_noise(
    sources: Sequence[torch.Generator], shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Unit noise, ``batch channels height width``, drawn on the CPU row by row in ``dtype`` as diffusers draws it."""
    return torch.cat([torch.randn((1, *shape), generator=source, dtype=dtype) for source in sources]).to(device)
