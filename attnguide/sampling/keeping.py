"""Inpainting by latents: after every step of a pipeline's call, the kept area is replaced by the noised init image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnguide.inputs import Kind
from attnguide.models.base import ModelAdapter
from attnguide.models.kinds import KEEPING
from attnguide.types import Sample


def way_of(model: ModelAdapter, sample: Sample) -> Kind | None:
    """Pipeline kind that makes a row; where :class:`Keeping` does the inpainting, one without ``inpaint``.

    Args:
        model: The adapter.
        sample: A row with input pictures.
    """
    known = KEEPING.get(type(model.pipeline).__name__)
    if sample.inpaint_mask is None or known in (None, model.latent_shape(*model.default_size)[0]):
        return sample.kind
    if sample.noised == 1:  # full strength begins with noise alone
        return "controlnet" if sample.control else None
    return "controlnet_img2img" if sample.control else "img2img"


class Keeping:
    """A ``callback_on_step_end`` of diffusers that sets latents outside the mask to the init image's, noised to the step.

    Args:
        model: The adapter.
        pictures: Init images of the rows, of one size.
        masks: Masks of the rows, white where a pixel is drawn anew.
        noise: Unit noise of the rows, ``batch channels height width``.
    """

    def __init__(
        self, model: ModelAdapter, pictures: Sequence[Image.Image], masks: Sequence[Image.Image], noise: Tensor
    ) -> None:
        self._kept, self._noise = model.encode_image(pictures).to(noise), noise
        rows, columns = noise.shape[-2:]
        small = np.stack([np.asarray(mask.resize((columns, rows), Image.Resampling.NEAREST)) for mask in masks])
        self._anew = torch.from_numpy(small >= 128).unsqueeze(1).to(noise.device)

    def __call__(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Restore the kept latents after step ``index`` of the call."""
        scheduler = pipeline.scheduler
        left = pipeline.num_timesteps - index - 1
        kept = self._kept
        if left > 0:
            time = scheduler.timesteps[-left].reshape(1)
            flow = hasattr(scheduler, "scale_noise")
            kept = scheduler.scale_noise(kept, time, self._noise) if flow else scheduler.add_noise(kept, self._noise, time)
        latents = tensors["latents"]
        return {"latents": torch.where(self._anew, latents, kept.to(latents))}
