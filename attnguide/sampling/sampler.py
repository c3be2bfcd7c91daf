"""The sampling loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnguide.engine.batch import Batch, make_batch
from attnguide.engine.observer import Observer
from attnguide.engine.steering import Steering
from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection
from attnguide.models.base import ModelAdapter
from attnguide.sampling.arguments import check_model, check_observer, instances
from attnguide.types import Sample, SampleResult


@dataclass(eq=False)
class Sampler:
    """Samples rows that share a picture size, a scheduler and a number of steps, as one batch.

    Args:
        model: The adapter.
        guidances: Guidances, applied one after the other at each step.
        injections: Injections, which act in denoising passes; :class:`~attnguide.injection.by_row.ForRows` limits one to rows.
        observer: Observer of the batch.

    Example::

        result = Sampler(load_model()).run([Sample("0", "a red circle")])[0]
        result.image.save("circle.png")
    """

    model: ModelAdapter
    guidances: Sequence[Guidance] = ()
    injections: Sequence[Injection] = ()
    observer: Observer = field(default_factory=Observer)

    def __post_init__(self) -> None:
        check_model(self.model)
        check_observer(self.observer)
        self.guidances = instances("guidances", self.guidances, Guidance)
        self.injections = instances("injections", self.injections, Injection)

    def run(self, samples: Sequence[Sample], initial_latents: Tensor | None = None) -> list[SampleResult]:
        """Sample one batch.

        Args:
            samples: Rows that can share a batch.
            initial_latents: Unit noise ``batch channels height width`` instead of the noise of the rows' seeds.

        Raises:
            ValueError: If the rows cannot share a batch, a phrase is not in its prompt, a prompt is too long, a method needs
                regions and no row has any, or ``initial_latents`` has another shape.
        """
        samples, observer = instances("samples", samples, Sample), self.observer
        if kinds := [sample.kind for sample in samples if sample.kind is not None]:
            raise ValueError(f"A Sampler makes pictures from noise alone; rows of {kinds[0]} are made by sample_rows.")
        # Gradients must be possible even where the caller switched autograd off for good.
        with torch.inference_mode(False), torch.no_grad(), self.model.evaluating():
            batch = make_batch(self.model, samples, self.guidances, self.injections, observer, initial_latents)
            steering = Steering(batch, self.guidances, self.injections, observer.probes(batch.info))
            x, scheduler = batch.latents, batch.scheduler
            with steering.attached():
                observer.on_sample_start(batch.info)
                for step in scheduler.steps:
                    observer.on_denoise_step_start(step, batch.shown(x))
                    x = steering.before(x, step)
                    answers = steering.evaluate(x, step)
                    noise_pred = steering.predict(answers, step)
                    x = scheduler.step(noise_pred, step, x, batch.generators)
                    x = steering.after(batch.replayed(x, step.index + 1), step)
                    x = batch.without_broken(x, step)
                    observer.on_denoise_step_end(step, batch.shown(x), batch.shown(noise_pred))
                    if not batch.alive:
                        break
            return self._finished(batch, batch.own(x))

    def _finished(self, batch: Batch, latents: Tensor) -> list[SampleResult]:
        """Decode the rows' final latents, and return each row's result with cost and status."""
        pictures = self.model.decode(latents)
        for row, picture in enumerate(pictures):
            if picture.image is None and row in batch.alive:
                batch.stop(row, picture.status)
        costs = batch.ledger.close()
        results = []
        for row, sample in enumerate(batch.samples):
            if reason := batch.stopped.get(row):
                results.append(SampleResult(sample, None, None, costs[row], reason))
                continue
            note = batch.effects.note(row)
            status = f"ok: {note}" if note else "ok"
            results.append(SampleResult(sample, pictures[row].image, latents[row].float().cpu(), costs[row], status))
        self.observer.on_sample_end(results)
        return results
