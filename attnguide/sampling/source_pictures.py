"""Source pictures of rows' places: sampled, inverted or noised, with attention maps of words in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnguide.attention.attach import attach
from attnguide.attention.capture import Probe
from attnguide.attention.sites import select
from attnguide.engine.branches import negative_of
from attnguide.engine.cfg import pass_context
from attnguide.engine.inversion import Trajectory, encode_pictures, invert, noised
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.models.base import ModelAdapter
from attnguide.models.texts import encode_prompts, read_prompt
from attnguide.prompt.inputs import fitted
from attnguide.prompt.masks import open_picture
from attnguide.prompt.targets import Targets
from attnguide.sampling.sampler import Sampler
from attnguide.sources.recording import MapRecording, target_mask
from attnguide.types import MapSource, Sample, SampleResult, Step
from attnguide.weighted import written


@dataclass(frozen=True, eq=False)
class SourcePicture:
    """A source picture and the attention maps of words in it.

    Attributes:
        maps: Map of each region's words at each step, ``regions steps height width``, float32 on the CPU.
        progress: Progress of each step.
        forwards: Network evaluations that making the picture took.
        result: The picture as sampled; ``None`` where it was only noised.
        measured: See :class:`PlacedRow`.
    """

    maps: Tensor
    progress: tuple[float, ...]
    forwards: int
    result: SampleResult | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


def record_pictures(
    model: ModelAdapter, rows: Sequence[Sample], source: MapSource, images: Sequence[Path | None]
) -> list[SourcePicture]:
    """Make source pictures and record attention maps of their regions' words.

    Args:
        model: The adapter.
        rows: Row of each picture, with its prompt and seed, and the words as regions.
        source: Source with the kind, cfg scale and iterations that all pictures share.
        images: Path of the picture to invert or noise for each row; ``None`` for other kinds.

    Raises:
        ValueError: As for :func:`record_sources`.
    """
    if source.kind in ("seed", "prompt"):
        watching = _Watching()
        results = Sampler(model, observer=watching).run(rows)
        return _pictures(watching.words, results, [result.cost.unet_forwards for result in results])
    pictures = [open_picture(image) for image in images if image is not None]
    height, width = rows[0].height or model.default_size[0], rows[0].width or model.default_size[1]
    latents = encode_pictures(model, pictures, height, width)
    return (_inverted if source.kind == "invert" else _noised)(model, rows, source, pictures, latents)


def mask_of(picture: SourcePicture, index: int, source: MapSource) -> Tensor:
    """Mask ``height width`` in [0, 1] from the maps of one region's words, by the source's window and threshold.

    Raises:
        ValueError: If a map is not finite.
    """
    maps = picture.maps[index]
    return target_mask(maps, picture.progress, start=source.start, stop=source.stop, threshold=source.threshold)


class _Watching(Observer):
    """Records attention maps of the rows' regions while they are sampled."""

    def __init__(self) -> None:
        self.words: MapRecording

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        self.words = MapRecording(info.targets, info.model.guidance_level)
        return (self.words.probe(),)

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        self.words.end_step(step)


def _inverted(
    model: ModelAdapter, rows: Sequence[Sample], source: MapSource, pictures: Sequence[Image.Image], latents: Tensor
) -> list[SourcePicture]:
    prompts, negative = [written(row.prompt, row.prompt_syntax) for row in rows], [negative_of(row) for row in rows]
    path = invert(
        model,
        latents,
        prompts,
        steps=rows[0].steps,
        cfg_scale=source.cfg_scale,
        negative_prompts=negative,
        iterations=source.iterations,
    )
    watching = _Watching()
    found = reconstruct(model, path, rows, pictures, watching)
    results = [one.result for one in found]
    measured = [
        {
            "reconstruction_mse": one.mse,
            "reconstruction_psnr": one.psnr,
            "reconstruction_latents_mse": one.latents_mse,
        }
        for one in found
    ]
    forwards = [path.forwards + result.cost.unet_forwards for result in results]
    return _pictures(watching.words, results, forwards, measured)


def _noised(
    model: ModelAdapter, rows: Sequence[Sample], source: MapSource, pictures: Sequence[Image.Image], latents: Tensor
) -> list[SourcePicture]:
    first = rows[0]
    height, width = first.height or model.default_size[0], first.width or model.default_size[1]
    with torch.inference_mode(False), torch.no_grad(), model.evaluating():
        scheduler = model.make_scheduler(first.scheduler, first.steps, model.latent_shape(height, width))
        path = noised(model, latents, [row.seed for row in rows], steps=first.steps, scheduler=first.scheduler)
        asked = [written(row.prompt, row.prompt_syntax) for row in rows]
        states = encode_prompts(model, asked, None, [row.cfg_scale for row in rows])
        prompts = [read_prompt(model, prompt) for prompt in asked]
        targets = Targets.build(rows, prompts, model.device, cuts_padding=model.cuts_padding)
        words = MapRecording(targets, model.guidance_level)
        last = select(model.attention_sites(height, width), words.sites)
        with attach(
            model.attention_modules(height, width), [words.probe("source")], [], model.network, targets.columns
        ) as attention:
            for step, noisy in zip(path.steps, path.latents, strict=True):
                context = pass_context(step, "source", range(len(rows)), ("cond",))
                inputs = (noisy / scheduler.own_scale(step)).to(states.cond.dtype)
                with attention.during(context, last):
                    model.predict(inputs, step, states.for_pass(context), until=last)
                words.end_step(step)
    return _pictures(words, [None] * len(rows), [len(path.steps)] * len(rows))


def _pictures(
    words: MapRecording,
    results: Sequence[SampleResult | None],
    forwards: Sequence[int],
    measured: Sequence[Mapping[str, float]] | None = None,
) -> list[SourcePicture]:
    for result in results:
        if result is not None and result.image is None:
            raise ValueError(f"The picture that a map should be taken from could not be made: {result.status}.")
    numbers = measured or [{}] * len(results)
    return [
        SourcePicture(maps, words.progress, count, result, known)
        for maps, result, count, known in zip(words.maps, results, forwards, numbers, strict=True)
    ]


# ---------------------------------------------------------------------------------------- how well inversion goes back


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A picture denoised again from its inverted noise, with its errors.

    Attributes:
        result: The row as sampled from the inverted noise.
        mse: Mean squared error of the picture's values in [0, 1]; 0 is best. It includes the autoencoder's error.
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
    """Denoise inverted latents again and compare the results with the original pictures.

    Args:
        model: The adapter.
        trajectory: Inverted trajectory, as :func:`invert` returns it.
        samples: Row of each picture, with the prompt, cfg scale and steps of its inversion; the scheduler is set here.
        pictures: Original pictures, stretched to the size of the results.
        observer: Observer of the denoising.

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
