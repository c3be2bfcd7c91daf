"""Autoencoders that read and return pictures as videos of one frame: Qwen-Image and relatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attnguide.models.pictures import Autoencoding


class FrameAutoencoding(Autoencoding):
    """Latents are normalised per channel by mean and standard deviation; the autoencoder's tensors have a time axis of 1."""

    def _pixels(self, vae: Any, latents: Tensor) -> Tensor:
        frames = self._unscaled(latents).to(vae.dtype).unsqueeze(2)
        pixels: Tensor = vae.decode(frames, return_dict=False)[0][:, :, 0]
        return pixels

    def _encoded(self, vae: Any, pixels: Tensor) -> Tensor:
        mode: Tensor = vae.encode(pixels.unsqueeze(2)).latent_dist.mode()
        return self._scaled(mode[:, :, 0])

    def _unscaled(self, latents: Tensor) -> Tensor:
        mean, spread = self._channels(latents)
        return latents * spread + mean

    def _scaled(self, latents: Tensor) -> Tensor:
        mean, spread = self._channels(latents)
        return (latents - mean) / spread

    def _channels(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the channels, each ``1 channels 1 1``."""
        config = self.vae.config
        first, second = (
            torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return first, second


def frame_problems(vae: Any, kind: str) -> Iterator[str]:
    """Problem where the autoencoder is not of class ``kind``."""
    if type(vae).__name__ != kind:
        yield f"vae must be {kind}; got {type(vae).__name__}."
