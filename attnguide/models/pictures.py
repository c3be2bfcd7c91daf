"""Decoding and encoding of pictures, repeated in float32 where half precision overflows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnguide.models.compiled import plain_module
from attnguide.models.offload import computing_device


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        image: The picture, or ``None`` if it cannot be shown.
        status: ``"ok"``, or why there is no picture.
    """

    image: Image.Image | None
    status: str = "ok"


class Autoencoding:
    """The autoencoder part of a model adapter; families override single steps.

    Attributes:
        pipeline: A diffusers pipeline with a ``vae`` and an ``image_processor``.
    """

    pipeline: Any

    @property
    def vae(self) -> Any:
        """The autoencoder, without ``torch.compile``'s wrapper."""
        return plain_module(self.pipeline.vae)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Picture]:
        """Decode latents ``batch channels height width``; rows whose pixels are not finite are decoded again in float32."""
        shown = self._finite_pictures(range(len(latents)), self._pixels(self.vae, latents))
        if again := [row for row in range(len(latents)) if row not in shown]:
            shown |= self._finite_pictures(again, self._pixels(self._wide_vae(), latents[again]))
        none = Picture(None, "the autoencoder's picture is not finite, in float32 neither")
        return [shown.get(row, none) for row in range(len(latents))]

    @torch.no_grad()
    def encode_image(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode pictures of one size to latents ``batch channels height width`` (the posterior's mean).

        Raises:
            ValueError: If the latents are not finite.
        """
        vae = self.vae
        pixels = self.pipeline.image_processor.preprocess(list(images)).to(computing_device(self.pipeline, vae), vae.dtype)
        latents = self._encoded(vae, pixels)
        if not all(_finite_rows(latents)):
            latents = self._encoded(self._wide_vae(), pixels.float())
        if not all(_finite_rows(latents)):
            raise ValueError("The autoencoder's latents of a picture are not finite, in float32 neither.")
        return latents

    def _finite_pictures(self, rows: Sequence[int], pixels: Tensor) -> dict[int, Picture]:
        """Pictures of the rows whose pixels are finite."""
        finite = [place for place, fine in enumerate(_finite_rows(pixels)) if fine]
        shown = self._pictures(pixels[finite]) if finite else []
        return {rows[place]: picture for place, picture in zip(finite, shown, strict=True)}

    def _wide_vae(self) -> Any:
        """A copy of the autoencoder in float32, for values that overflow half precision."""
        return copy.deepcopy(self.vae).float()

    def _pixels(self, vae: Any, latents: Tensor) -> Tensor:
        """Pixels ``batch 3 height width`` in [-1, 1]."""
        pixels: Tensor = vae.decode(self._unscaled(latents).to(vae.dtype), return_dict=False)[0]
        return pixels

    def _pictures(self, pixels: Tensor) -> list[Picture]:
        """Pixels ``batch 3 height width`` in [-1, 1], all finite, as pictures."""
        return [Picture(image) for image in self.pipeline.image_processor.postprocess(pixels.detach(), "pil")]

    def _encoded(self, vae: Any, pixels: Tensor) -> Tensor:
        answer = vae.encode(pixels)
        latents: Tensor = answer.latent_dist.mode() if hasattr(answer, "latent_dist") else answer.latents
        return self._scaled(latents)

    def _unscaled(self, latents: Tensor) -> Tensor:
        """Latents in the autoencoder's scale: by scaling factor and shift, or mean and standard deviation per channel."""
        mean, std = self._statistics(latents)
        if std is not None:
            latents = latents * std
        latents = latents / self.vae.config.scaling_factor
        return latents if mean is None else latents + mean

    def _scaled(self, latents: Tensor) -> Tensor:
        """The autoencoder's latents in the network's scale; inverse of :meth:`_unscaled`."""
        mean, std = self._statistics(latents)
        if mean is not None:
            latents = latents - mean
        latents = latents * self.vae.config.scaling_factor
        return latents if std is None else latents / std

    def _statistics(self, latents: Tensor) -> tuple[Tensor | float | None, Tensor | None]:
        """Mean and standard deviation per channel, ``1 channels 1 1``; without these, ``shift_factor`` and ``None``."""
        config = self.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return config.get("shift_factor"), None
        first, second = (
            torch.tensor(value, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1) for value in (mean, std)
        )
        return first, second


def _finite_rows(values: Tensor) -> list[bool]:
    finite: list[bool] = torch.isfinite(values).flatten(1).all(1).tolist()
    return finite
