"""How well an inverted picture comes back when it is denoised again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from torch import Tensor

from attnguide.models.base import ModelAdapter
from attnguide.sampling.inversion import Trajectory, fitted
from attnguide.sampling.observer import Observer
from attnguide.sampling.sampler import Sampler
from attnguide.types import Sample, SampleResult


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What denoising an inverted picture gives back.

    Attributes:
        result: The row as sampled from the inverted noise.
        mse: Mean squared error of the picture's values in [0, 1]; 0 is best. It includes what the autoencoder loses.
        psnr: ``-10 log10(mse)`` in decibels; infinite for equal pictures.
        latents_mse: Mean squared error of the latents.
    """

    result: SampleResult
    mse: float
    psnr: float
    latents_mse: float


def reconstruct(
    model: ModelAdapter,
    trajectory: Trajectory,
    samples: Sequence[Sample],
    pictures: Sequence[Image.Image],
    observer: Observer | None = None,
) -> list[Reconstruction]:
    """Denoise inverted latents again and compare the pictures with those they were made of.

    Args:
        model: The adapter.
        trajectory: As :func:`invert` gives it.
        samples: A row for each picture, with the prompt, cfg scale and steps it was inverted with; the scheduler is set here.
        pictures: What was inverted; stretched to the size of the result.
        observer: Told of the denoising.

    Raises:
        ValueError: If rows and pictures do not match the latents in number, or steps differ.
    """
    if not len(samples) == len(pictures) == trajectory.clean.shape[0]:
        raise ValueError(
            f"samples and pictures must be as many as inverted; got {len(samples)} and {len(pictures)} for "
            f"{trajectory.clean.shape[0]}."
        )
    rows = [replace(sample, scheduler=model.inversion_scheduler, methods=()) for sample in samples]
    if any(row.steps != len(trajectory.steps) for row in rows):
        raise ValueError(f"steps of samples must be the {len(trajectory.steps)} of the inversion; got {rows[0].steps}.")
    results = Sampler(model, observer=observer or Observer()).run(rows, trajectory.noise)
    return [
        _compared(result, picture, clean.cpu())
        for result, picture, clean in zip(results, pictures, trajectory.clean, strict=True)
    ]


def picture_error(picture: Image.Image, other: Image.Image) -> tuple[float, float]:
    """Mean squared error of two pictures' values in [0, 1], and their peak signal-to-noise ratio in decibels.

    Raises:
        ValueError: If their sizes differ.
    """
    if picture.size != other.size:
        raise ValueError(f"pictures must have one size; got {picture.size} and {other.size}.")
    values, others = (np.asarray(one.convert("RGB"), dtype=np.float64) / 255 for one in (picture, other))
    mse = float(np.square(values - others).mean())
    return mse, -10 * math.log10(mse) if mse > 0 else math.inf


def _compared(result: SampleResult, picture: Image.Image, clean: Tensor) -> Reconstruction:
    if result.image is None or result.latents is None:
        return Reconstruction(result, math.nan, math.nan, math.nan)
    mse, psnr = picture_error(result.image, fitted(picture, result.image.height, result.image.width))
    return Reconstruction(result, mse, psnr, float((result.latents - clean).square().mean()))
