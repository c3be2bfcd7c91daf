"""What the methods of a batch do around one evaluation of the network, whoever makes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from attnguide.attention.attach import Attention
from attnguide.attention.capture import Probe
from attnguide.attention.edits import Edit
from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection, LatentsEdit
from attnguide.sampling.batch import Batch
from attnguide.sampling.cfg import combine, pass_context
from attnguide.sampling.guide import guide, noise_shift
from attnguide.sampling.reading import Reader
from attnguide.sampling.trials import optimise
from attnguide.types import Branch, PassContext, Step


class Steering:
    """Methods, edits and probes of one batch; knows neither a loop nor who drives it.

    Inside :meth:`attached`, for every evaluation of the network at latents ``x``::

        x = steering.before(x, step)               # guidance moves latents
        shift = steering.shift(x, step)            # guidance of the prediction
        with steering.during(context):             # injections act in the pass
            answers = network(x)                   # by branch
        uncond = steering.unconditional(answers, step)
        noise_pred = steering.correct(cfg(uncond, answers["cond"]), answers, step)
        x = scheduler.step(steering.shifted(noise_pred, shift, step), step, x)
        x = steering.after(x, step)

    :meth:`predict` makes all of the middle by the batch's own model.

    Args:
        batch: The rows.
        guidances: Applied one after the other.
        injections: Active in denoising passes.
        probes: Readers, of denoising and of guide passes.

    Raises:
        ValueError: If a guidance reads a site that the network does not have.
    """

    def __init__(
        self, batch: Batch, guidances: Sequence[Guidance], injections: Sequence[Injection], probes: Sequence[Probe] = ()
    ) -> None:
        self.batch, self.injections, self._probes = batch, tuple(injections), list(probes)
        level, watched, targets = batch.model.guidance_level if guidances else 0, batch.effects.watched, batch.targets
        own = [watched(guidance, guidance.edits(targets, level)) for guidance in guidances]
        seen = [probe for probe in probes if "guide" in probe.kinds]
        self.edits: list[Edit] = [edit for injection in injections for edit in watched(injection, injection.edits(targets))]
        common = [edit for edit in self.edits if edit.guides]
        self.readers = [Reader(batch, one, [*common, *edits], seen) for one, edits in zip(guidances, own, strict=True)]
        self.edits += [edit for edits in own for edit in edits]
        self._attention: Attention | None = None

    @property
    def only_edits(self) -> bool:
        """Whether edits without memory are all that happens in a denoising pass, so that rows can be denoised anew."""
        alone = not self.batch.branches.own_source and not any(edit.remembers for edit in self.edits)
        return alone and all(injection.mixes for injection in self.injections)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Edits and probes in place, waiting for passes; guidances forget earlier batches.

        Raises:
            ValueError: If an edit or a probe matches no site.
        """
        for reader in self.readers:
            reader.guidance.start(self.batch.targets)
        with self.batch.attach(self._probes, self.edits) as self._attention:
            yield

    def before(self, latents: Tensor, step: Step) -> Tensor:
        """Latents as guidances want them before this evaluation, ``batch channels height width``."""
        model, edits = self.batch.model, self.edits if self.only_edits else None
        for reader in self.readers:
            guidance = reader.guidance
            if step.begins and guidance.optimise_at is not None and self.batch.alive:
                with model.frozen():
                    given, latents = latents, optimise(reader, edits, latents, step)
                self.batch.effects.changed(guidance, given, latents)
            if guidance.update.space == "latents" and guidance.acts(step) and self.batch.alive:
                with model.frozen():
                    latents = guide(reader, latents, step)
        return latents

    def shift(self, latents: Tensor, step: Step) -> Tensor | None:
        """What guidances of the prediction add to the predicted noise, of the latents' shape; ``None`` where none acts."""
        found: Tensor | None = None
        for reader in self.readers:
            if reader.guidance.update.space == "noise" and reader.guidance.acts(step) and self.batch.alive:
                with self.batch.model.frozen():
                    shift = noise_shift(reader, latents, step)
                found = shift if found is None else found + shift
        return found

    @contextmanager
    def during(self, context: PassContext) -> Iterator[None]:
        """Edits and probes act in the pass that is made inside, which is counted."""
        assert self._attention is not None, "passes are made inside attached()"
        with self._attention.during(context):
            yield
        self.batch.ledger.forward(context.rows)

    def unconditional(self, answers: Mapping[Branch, Tensor], step: Step) -> Tensor | None:
        """What classifier-free guidance leads away from, ``batch channels height width``; ``None`` without it."""
        uncond = answers.get("uncond")
        for injection in self.injections:
            uncond = None if uncond is None else injection.unconditional(uncond, answers, step)
        return uncond

    def correct(self, noise_pred: Tensor, answers: Mapping[Branch, Tensor], step: Step) -> Tensor:
        """The rows' combined prediction as injections change it."""
        for injection in self.injections:
            noise_pred = injection.correct(noise_pred, answers, step)
        return noise_pred

    def shifted(self, noise_pred: Tensor, shift: Tensor | None, step: Step) -> Tensor:
        """The prediction for all latents with the guidances' :meth:`shift`, in the form that the scheduler takes."""
        return noise_pred if shift is None else self.batch.scheduler.shift_noise(noise_pred, shift, step)

    def after(self, latents: Tensor, step: Step) -> Tensor:
        """Latents after the scheduler's move, changed by edits where a new denoising step begins or the last one ended."""
        batch = self.batch
        following = batch.scheduler.steps[step.index + 1 : step.index + 2]
        if following and not following[0].begins:
            return latents
        rows = len(batch.samples)
        source = latents[rows:] if batch.branches.own_source else None
        for edit in self.edits:
            if isinstance(edit, LatentsEdit):
                moved = torch.cat([edit.after_step(batch.own(latents), source, step), latents[rows:]])
                if following:
                    batch.scheduler.latents_moved(moved - latents, following[0])
                latents = moved
        return latents

    def predict(self, latents: Tensor, step: Step) -> Tensor:
        """The steered noise prediction for all latents, every branch in one pass: ``batch channels height width``."""
        batch, shift = self.batch, self.shift(latents, step)
        branches = batch.branches.at(step, self.injections)
        context = pass_context(step, "denoise", range(len(batch.samples)), branches)
        parts = torch.cat([batch.branches.latents(branch, latents) for branch in branches])
        inputs = batch.scheduler.scale_model_input(parts, step)
        with self.during(context):
            answer = batch.model.predict(inputs, step, batch.branches.for_pass(context))
        assert answer is not None
        answers = dict(zip(branches, answer.chunk(len(branches)), strict=True))
        combined = self._combined(self.unconditional(answers, step), answers["cond"])
        noise_pred = self.correct(combined, answers, step)
        if batch.branches.own_source:
            source = self._combined(answers.get("source_uncond"), answers["source"])
            noise_pred = torch.cat([noise_pred, source])
        return self.shifted(noise_pred, shift, step)

    def _combined(self, uncond: Tensor | None, cond: Tensor) -> Tensor:
        """Both halves by the rows' scales, as the family has it."""
        batch = self.batch
        return cond if uncond is None else batch.model.after_cfg(combine(uncond, cond, batch.cfg_scales), cond)
