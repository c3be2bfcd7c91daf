"""Kernel distance between the distributions of generated and real pictures, without any downloaded network."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.kid import KernelInceptionDistance

SIDE = 128


class FixedFeatures(nn.Module):
    """Untrained features of a picture: random convolutions from a fixed seed, and colour statistics.

    Three strided 3x3 convolutions with random weights see edges, corners and textures at three sizes; each gives the mean and
    the spread of its channels. Beside them stand the colours: a histogram of 4x4x4 soft bins, and mean and spread of each
    channel over the four quarters. This tells blurred, noisy, faded or scrambled pictures from real ones. It knows nothing of
    what pictures mean, and its distances compare only with each other, never with published KID values, which use Inception.

    Args:
        channels: Width of the three convolutions.
        seed: Seed of the weights.
    """

    num_features: int

    def __init__(self, channels: tuple[int, int, int] = (24, 48, 96), seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self._depth = len(channels)
        for index, (inputs, outputs) in enumerate(zip((3, *channels), channels, strict=False)):
            weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
            # Filters without a constant part answer to structure, not to how bright the picture is.
            if index == 0:
                weight = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
            self.register_buffer(f"weight{index}", weight)
        self.num_features = 2 * sum(channels) + 64 + 24

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Float[Tensor, "batch features"]:
        """Features of ``batch 3 height width``: uint8, or floats in [0, 1].

        Raises:
            ValueError: If the pictures have another shape.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(f"pictures must be batch 3 height width; got shape {tuple(pictures.shape)}.")
        pictures = pictures.float() / (1 if pictures.is_floating_point() else 255)
        pictures = F.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        return torch.cat([self._structure(pictures), self._histogram(pictures), self._quarters(pictures)], dim=1)

    def _structure(self, pictures: Tensor) -> Tensor:
        features, hidden = [], pictures * 2 - 1
        for index in range(self._depth):
            hidden = F.conv2d(hidden, self.get_buffer(f"weight{index}"), stride=2, padding=1).relu()
            features += [hidden.mean((2, 3)), hidden.std((2, 3))]
        return 4 * torch.cat(features, dim=1)

    def _histogram(self, pictures: Tensor) -> Tensor:
        levels = torch.linspace(0, 1, 4, device=pictures.device)
        soft = (1 - 3 * (pictures.unsqueeze(2) - levels.view(1, 1, 4, 1, 1)).abs()).clamp(min=0)
        red, green, blue = soft.flatten(3).unbind(1)
        return 4 * torch.einsum("brp,bgp,bup->brgu", red, green, blue).flatten(1) / red.shape[-1]

    def _quarters(self, pictures: Tensor) -> Tensor:
        mean = F.adaptive_avg_pool2d(pictures, 2)
        spread = (F.adaptive_avg_pool2d(pictures**2, 2) - mean**2).clamp(min=0).sqrt()
        return torch.cat([mean, spread], dim=1).flatten(1)


class PictureDistance(KernelInceptionDistance):
    """Kernel distance between real and generated pictures: 0 where they look alike, larger where they do not.

    The estimator of KID (https://arxiv.org/abs/1801.01401), a squared maximum mean discrepancy with a cubic kernel, over
    :class:`FixedFeatures` in place of Inception; unbiased, hence slightly below 0 now and then. ``update(pictures, real=True)``
    takes uint8 or floats in [0, 1], ``batch 3 height width``; ``compute()`` returns mean and standard deviation over subsets.

    Args:
        subsets: Random subsets to average over.
        subset_size: Pictures in each, at most the number of real and of generated ones.
        **kwargs: Arguments of ``KernelInceptionDistance``.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    def __init__(self, subsets: int = 20, subset_size: int = 50, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # The base class warns that it keeps features; these are a few hundred numbers a picture.
            warnings.simplefilter("ignore", UserWarning)
            super().__init__(feature=FixedFeatures(), subsets=subsets, subset_size=subset_size, **kwargs)
