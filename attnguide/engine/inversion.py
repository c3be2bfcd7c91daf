"""From a picture back to noise: deterministic inversion, or noising; and inverted pictures as sources of other rows.

Denoising an inverted picture again drifts away from it, most under classifier-free guidance. Methods that only read a source
need no denoising: plug-and-play's published code reads the latents of the inversion itself, and so do all methods here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from attnguide.engine.cfg import combine, pass_context
from attnguide.engine.noise import generators, initial_noise
from attnguide.guidance.per_row import EachRow
from attnguide.injection.base import Source
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.models.schedulers import NoiseScheduler
from attnguide.models.texts import encode_prompts
from attnguide.prompt.inputs import fitted
from attnguide.prompt.masks import open_picture
from attnguide.types import Branch, Sample, Step
from attnguide.weighted import Prompt


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Latents of pictures at every noise level of a schedule.

    Attributes:
        steps: Steps in the order of denoising, noisiest first.
        latents: ``steps batch channels height width``, float32; entry i are the latents at ``steps[i]``, before input scaling.
        clean: Clean latents, ``batch channels height width``.
        forwards: Network evaluations per row, one for each branch.
    """

    steps: tuple[Step, ...]
    latents: Float[Tensor, "steps batch channels height width"]
    clean: Float[Tensor, "batch channels height width"]
    forwards: int

    @property
    def noise(self) -> Float[Tensor, "batch channels height width"]:
        """The noisiest latents."""
        return self.latents[0]


def encode_pictures(model: ModelAdapter, pictures: Sequence[Image.Image], height: int, width: int) -> Tensor:
    """Pictures, stretched to a size in pixels, as latents ``batch channels height width``."""
    with torch.inference_mode(False), torch.no_grad(), model.evaluating():
        return model.encode_image([fitted(picture, height, width) for picture in pictures]).float()


def invert(
    model: ModelAdapter,
    latents: Float[Tensor, "batch channels height width"],
    prompts: Sequence[Prompt],
    *,
    steps: int = 30,
    cfg_scale: float = 1.0,
    negative_prompts: Sequence[Prompt | None] | None = None,
    iterations: int = 0,
) -> Trajectory:
    """Invert the deterministic sampler: from clean latents to the noise from which it would make them.

    A step of DDIM (https://arxiv.org/abs/2010.02502), or of Euler's method under flow matching, is ``x' = a x + b n(x, t)``
    with two numbers and the network's answer ``n``, whatever it predicts. Its inverse ``x = (x' - b n(x, t)) / a`` holds ``x``
    on both sides: ``n`` is asked at ``x'`` first, and then, ``iterations`` times, at the newest ``x`` (a fixed point,
    https://arxiv.org/abs/2309.04907). Where that makes a row's error larger, the row goes back and takes half the way. One or
    two iterations can give a worse picture back than none, because the errors of the plain guess partly cancel; from about five
    on it comes back. A cfg scale above 1 makes ``n`` change faster with ``x``, hence errors grow
    (https://arxiv.org/abs/2211.09794): iterate more, or stay at 1.

    Args:
        model: The adapter.
        latents: Clean latents of pictures, as ``model.encode_image`` returns them.
        prompts: Prompt of each picture.
        steps: Denoising steps of the sampler that is inverted.
        cfg_scale: Classifier-free guidance weight; at 1 or below the unconditional half is not computed.
        negative_prompts: Text of the unconditional half for each picture; ``None`` for none.
        iterations: Network evaluations per step beyond the first, at least 0.

    Raises:
        ValueError: If a number is out of range, there is not one prompt per picture, or the model's scheduler clips.
    """
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0; got {iterations}.")
    rows = len(latents)
    negative = [None] * rows if negative_prompts is None else list(negative_prompts)
    if len(prompts) != rows or len(negative) != rows:
        raise ValueError(f"prompts must be one per picture; got {len(prompts)} and {len(negative)} negative for {rows}.")
    branches = model.halves(Sample("inverted", "", cfg_scale=cfg_scale))
    with torch.inference_mode(False), torch.no_grad(), model.evaluating():
        scheduler = model.make_scheduler(model.inversion_scheduler, steps, _shape(latents))
        states = encode_prompts(model, list(prompts), negative if "uncond" in branches else None, [cfg_scale] * rows)
        clean = latents.to(model.device, torch.float32)
        now, found = clean, []
        for step in reversed(scheduler.steps):
            keeps, adds = _move(scheduler, step)

            def residual(guess: Tensor, goal: Tensor = now, step: Step = step, a: float = keeps, b: float = adds) -> Tensor:
                """Residual of the fixed point: how far the sampler's step from ``guess`` misses ``goal``, over ``a``."""
                return guess + (b * _noise(model, scheduler, states, guess, step, cfg_scale) - goal) / a

            now = _fixed_point(residual, now, iterations)
            found.append(now)
    forwards = len(found) * (iterations + 1) * len(branches)
    return Trajectory(scheduler.steps, torch.stack(found[::-1]), clean, forwards)


def noised(
    model: ModelAdapter,
    latents: Float[Tensor, "batch channels height width"],
    seeds: Sequence[int],
    *,
    steps: int = 30,
    scheduler: str | None = None,
) -> Trajectory:
    """Clean latents noised to every step with one noise, ``alpha x + sigma e``; the network is not run.

    Args:
        model: The adapter.
        latents: Clean latents of pictures.
        seeds: Seed of each picture's noise.
        steps: Denoising steps of the schedule.
        scheduler: Name of the noise scheduler; the model's own when ``None``.

    Raises:
        ValueError: If there is not one seed per picture.
    """
    if len(seeds) != len(latents):
        raise ValueError(f"seeds must be one per picture; got {len(seeds)} for {len(latents)}.")
    clean = latents.to(model.device, torch.float32)
    schedule = model.make_scheduler(scheduler, steps, _shape(clean))
    noise = initial_noise(generators(seeds), _shape(clean), torch.float32, model.device)
    levels = [schedule.add_noise(clean, noise, step) for step in schedule.steps]
    return Trajectory(schedule.steps, torch.stack(levels), clean, 0)


def _shape(latents: Tensor) -> tuple[int, int, int]:
    """``(channels, height, width)`` of a batch of latents."""
    return latents.shape[1], latents.shape[2], latents.shape[3]


def _fixed_point(residual: Callable[[Tensor], Tensor], guess: Tensor, iterations: int) -> Tensor:
    """Fixed-point iteration per row: step against the residual from the best point so far, half as far after a worse one."""
    best, miss = guess, torch.zeros_like(guess)
    size = torch.full((len(guess), 1, 1, 1), math.inf, device=guess.device)
    stride = torch.ones_like(size)
    for _ in range(iterations + 1):
        found = residual(guess)
        now = found.square().mean((1, 2, 3), keepdim=True)
        better = now < size
        best, miss, size = torch.where(better, guess, best), torch.where(better, found, miss), torch.where(better, now, size)
        stride = torch.where(better, stride, stride / 2)
        guess = best - stride * miss
    return guess


def _noise(
    model: ModelAdapter, scheduler: NoiseScheduler, states: Conditioning, latents: Tensor, step: Step, cfg_scale: float
) -> Tensor:
    """The network's prediction after classifier-free guidance, in float32."""
    halves: tuple[Branch, ...] = ("uncond", "cond") if states.uncond is not None else ("cond",)
    context = pass_context(step, "invert", range(len(latents)), halves)
    inputs = scheduler.scale_model_input(torch.cat([latents] * len(halves)), step).to(states.cond.dtype)
    answer = model.predict(inputs, step, states.for_pass(context))
    assert answer is not None
    parts = answer.float().chunk(len(halves))
    if len(halves) == 1:
        return parts[0]
    return model.after_cfg(combine(parts[0], parts[-1], [cfg_scale] * len(latents)), parts[-1])


def _move(scheduler: NoiseScheduler, step: Step) -> tuple[float, float]:
    """Coefficients ``(a, b)`` of a deterministic step ``x' = a x + b n``.

    They are probed from the scheduler itself, so that inversion undoes exactly what sampling does, also at the last step.

    Raises:
        ValueError: If the scheduler's step is not linear (it clips its predictions).
    """
    one, none = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    def after(latents: Tensor, noise_pred: Tensor) -> float:
        return float(scheduler.at(step).step(noise_pred, step, latents, generators([0])))

    keeps, adds = after(one, none), after(none, one)
    if not math.isclose(after(100 * one, none), 100 * keeps, rel_tol=1e-6):
        raise ValueError("The model's scheduler clips its predictions, which cannot be inverted.")
    return keeps, adds


@dataclass(frozen=True, eq=False)
class Replay:
    """Inverted source pictures of some rows of a batch.

    Attributes:
        rows: Rows whose source is an inverted picture.
        path: Trajectory of these pictures, noisiest first.
    """

    rows: tuple[int, ...]
    path: Trajectory

    def noise(self, noise: Tensor) -> Tensor:
        """Unit noise ``batch channels height width``, with :attr:`rows` replaced by the noise of their inverted pictures."""
        return self._put(noise, self.path.noise)

    def source(self, latents: Tensor, index: int) -> Tensor:
        """Sources' latents ``batch channels height width`` with the inverted trajectory at ``index`` (clean after the last)."""
        return self._put(latents, self.path.latents[index] if index < len(self.path.steps) else self.path.clean)

    def _put(self, values: Tensor, ours: Tensor) -> Tensor:
        changed = values.clone()
        changed[list(self.rows)] = ours.to(values)
        return changed


def pictured_rows(source: Source | None, rows: int) -> dict[int, Path]:
    """Path of each row's source picture, by row; rows without one are left out.

    Raises:
        ValueError: If there is neither one picture nor one per row.
    """
    if source is None or source.pictures is None:
        return {}
    files = EachRow[str | None](source.pictures, "source_image").over(rows)
    return {row: Path(file).expanduser() for row, file in enumerate(files) if file is not None}


def check_replay(model: ModelAdapter, scheduler: NoiseScheduler, steps: int, shape: tuple[int, int, int]) -> None:
    """Refuse a scheduler whose noise levels are not those of the inversion.

    Raises:
        ValueError: Naming the scheduler.
    """
    if scheduler.initial_sigma != 1 or model.make_scheduler(model.inversion_scheduler, steps, shape).steps != scheduler.steps:
        raise ValueError(
            f"source_image needs a scheduler with the noise levels of {model.inversion_scheduler!r}, which inversion undoes; "
            f"got {scheduler.name}."
        )


def invert_sources(
    model: ModelAdapter,
    source: Source | None,
    prompts: Sequence[Prompt],
    scheduler: NoiseScheduler,
    steps: int,
    size: tuple[int, int],
) -> Replay | None:
    """Invert the pictures that rows name as sources, at a cfg scale of 1; ``None`` if no row does.

    Args:
        model: The adapter.
        source: Source of the batch's methods.
        prompts: Source prompt of every row.
        scheduler: Noise scheduler of the batch.
        steps: Denoising steps that were asked for.
        size: Picture height and width in pixels, to which source pictures are stretched.

    Raises:
        ValueError: If the scheduler does not fit, or a file is not a picture.
    """
    files = pictured_rows(source, len(prompts))
    if source is None or not files:
        return None
    check_replay(model, scheduler, steps, model.latent_shape(*size))
    latents = encode_pictures(model, [open_picture(file, "source_image") for file in files.values()], *size)
    path = invert(model, latents, [prompts[row] for row in files], steps=steps, iterations=source.iterations)
    return Replay(tuple(files), path)


def replay_forwards(source: Source | None, steps: int) -> int:
    """Evaluations that inverting one row's picture takes."""
    return 0 if source is None or source.pictures is None else steps * (source.iterations + 1)
