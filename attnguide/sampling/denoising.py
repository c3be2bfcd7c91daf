"""How well the network denoises a finished picture that is noised again a little: a score that needs no judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attnguide.engine.batch import Batch, make_batch
from attnguide.engine.cfg import pass_context
from attnguide.engine.noise import generators, initial_noise
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.models.base import ModelAdapter
from attnguide.types import Cost, Sample, SampleResult, Step

LEVELS = (0.35, 0.5, 0.7)
"""Noise over signal of the levels that pictures are noised to: outlines are in doubt, what is where is not."""

_SEED = 0
"""Seed of the noise, the same for all pictures, so that differences are the pictures'."""

_TINY = 1e-12


class Denoising(Observer):
    """Observer of one batch that afterwards scores its pictures by :func:`denoising_errors`.

    What a network draws badly it also denoises badly: bent outlines and objects run into one another are not what it has
    learned. Reconstruction errors tell pictures of another kind apart in the same way
    (`Graham et al., 2023 <https://arxiv.org/abs/2211.07740>`_, who noise to many levels).
    """

    _model: ModelAdapter

    def on_sample_start(self, info: BatchInfo) -> None:
        self._model = info.model

    def scored(self, results: Sequence[SampleResult]) -> tuple[list[float | None], list[SampleResult]]:
        """Score of every result, higher for a smaller error and ``None`` without a picture; results with its cost added.

        Args:
            results: Results of the batch that was observed.
        """
        made = [place for place, result in enumerate(results) if result.image is not None]
        scores: list[float | None] = [None] * len(results)
        costed = list(results)
        if not made:
            return scores, costed
        errors, costs = denoising_errors(self._model, [results[place] for place in made])
        for place, error, cost in zip(made, errors, costs, strict=True):
            scores[place] = -error if math.isfinite(error) else None
            costed[place] = replace(results[place], cost=results[place].cost + cost)
        return scores, costed


def denoising_errors(model: ModelAdapter, results: Sequence[SampleResult]) -> tuple[list[float], list[Cost]]:
    """Log of the mean squared error of the predicted noise, averaged over :data:`LEVELS`, and what it cost, by row.

    The picture is encoded (its final latents hold traces of the last steps that nobody sees, and tell less), noised to the
    evaluations of the rows' own schedule that are nearest to each level, and the network predicts under the prompt alone,
    without classifier-free guidance and without methods: one forward a level.

    Args:
        model: The adapter.
        results: Results of one batch, with pictures.
    """
    rows = [_plain(model, result.sample) for result in results]
    with torch.inference_mode(False), torch.no_grad(), model.evaluating():
        batch = make_batch(model, rows, (), (), Observer())
        latents = model.encode_image([result.image for result in results if result.image is not None]).to(batch.latents)
        steps = nearest_steps(batch.scheduler.steps)
        errors = torch.stack([_log_error(batch, latents, step) for step in steps]).mean(0)
        return errors.tolist(), batch.ledger.close()


def nearest_steps(steps: Sequence[Step]) -> list[Step]:
    """The evaluations whose noise over signal is nearest to each of :data:`LEVELS`, in octaves; fewer on short schedules.

    Raises:
        ValueError: If no evaluation has both noise and signal, as in flow matching with a single step.
    """
    noisy = [step for step in steps if step.noise > 0 and step.signal > 0]
    if not noisy:
        raise ValueError(f"judge 'denoising' needs an evaluation between noise and picture; got {len(steps)} of pure noise.")
    found = (min(noisy, key=lambda step: abs(math.log(step.noise / step.signal / level))) for level in LEVELS)
    return list({step.index: step for step in found}.values())


def _plain(model: ModelAdapter, sample: Sample) -> Sample:
    """The row's text alone: no methods, no second half, no input pictures."""
    alone = replace(sample, methods=(), regions=(), groups=(), negative_prompt=None, true_cfg_scale=1.0)
    alone = replace(alone, init_image=None, strength=None, inpaint_mask=None, control=())
    return alone if model.guidance_distilled else replace(alone, cfg_scale=1.0)


def _log_error(batch: Batch, latents: Tensor, step: Step) -> Tensor:
    """Log of each row's mean squared error of the predicted noise at a step."""
    count, shape = len(latents), latents.shape[1:]
    noise = initial_noise(generators([_SEED] * count), (shape[0], shape[1], shape[2]), latents.dtype, latents.device)
    scheduler = batch.scheduler.at(step)
    inputs = scheduler.scale_model_input(scheduler.add_noise(latents, noise, step), step)
    answer = batch.answer(inputs, pass_context(step, "denoise", range(count), ("cond",)))
    wrong = (scheduler.denoised(answer, inputs, step) - latents).float() * (step.signal / step.noise)
    return wrong.square().flatten(1).mean(1).clamp_min(_TINY).log()
