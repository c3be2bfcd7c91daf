"""Actions of a batch's methods around one evaluation of the network, independent of the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from attnguide.attention.attach import Attention
from attnguide.attention.capture import Probe
from attnguide.attention.edits import Edit
from attnguide.engine.batch import Batch
from attnguide.engine.cfg import combine, pass_context
from attnguide.engine.fused import fused_guidance, fused_pass
from attnguide.engine.guide import guide, noise_shift
from attnguide.engine.reading import Reader
from attnguide.engine.trials import optimise
from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection, LatentsEdit
from attnguide.types import Branch, PassContext, Step


@dataclass(frozen=True, eq=False)
class Answers:
    """Predictions of one evaluation of the network.

    Attributes:
        branches: Prediction of each branch, ``batch channels height width``.
        shift: Term that guidances of the prediction add to the predicted noise, for all latents; ``None`` where none acts.
    """

    branches: Mapping[Branch, Tensor]
    shift: Tensor | None = None


class Steering:
    """Methods, edits and probes of one batch; knows neither a loop nor who drives it.

    Inside :meth:`attached`, for every evaluation of the network at latents ``x``::

        x = steering.before(x, step)               # guidance moves latents
        answers = steering.evaluate(x, step)       # the network, in whose passes injections act
        noise_pred = steering.predict(answers, step)
        x = scheduler.step(noise_pred, step, x)
        x = steering.after(x, step)

    A driver that evaluates the network itself does so inside :meth:`during`, and combines the predictions with
    :meth:`unconditional`, :meth:`correct`, :meth:`shift` and :meth:`shifted`.

    Args:
        batch: The rows.
        guidances: Guidances, applied one after the other.
        injections: Injections, which act in denoising passes.
        probes: Probes of denoising and guide passes.
        fuses: Whether a guidance may share the conditional pass of :meth:`evaluate`; False for a driver that evaluates the
            network itself.

    Raises:
        ValueError: If a guidance's selector matches no site of the network.
    """

    def __init__(
        self,
        batch: Batch,
        guidances: Sequence[Guidance],
        injections: Sequence[Injection],
        probes: Sequence[Probe] = (),
        *,
        fuses: bool = True,
    ) -> None:
        self.batch, self.injections, self._probes = batch, tuple(injections), list(probes)
        level, watched, targets = batch.model.guidance_level if guidances else 0, batch.effects.watched, batch.targets
        own = [watched(guidance, guidance.edits(targets, level)) for guidance in guidances]
        seen = [probe for probe in probes if "guide" in probe.kinds]
        self.edits: list[Edit] = [edit for injection in injections for edit in watched(injection, injection.edits(targets))]
        common = [edit for edit in self.edits if edit.guides]
        self.readers = [Reader(batch, one, [*common, *edits], seen) for one, edits in zip(guidances, own, strict=True)]
        self.edits += [edit for edits in own for edit in edits]
        fuses = fuses and not any(edit.remembers for edit in self.edits)
        fused = fused_guidance(guidances, injections) if fuses else None
        self._fused = next((reader for reader in self.readers if reader.guidance is fused), None)
        self._watched: Attention | None = None
        self._unwatched: Attention | None = None

    @property
    def only_edits(self) -> bool:
        """Whether methods act in denoising passes by edits without memory alone, so that rows can be restarted."""
        alone = not self.batch.branches.own_source and not any(edit.remembers for edit in self.edits)
        return alone and all(injection.mixes for injection in self.injections)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach edits and probes for the passes inside, and reset the guidances' state.

        Raises:
            ValueError: If an edit or a probe matches no site.
        """
        for reader in self.readers:
            reader.guidance.start(self.batch.targets)
        attach = self.batch.attach
        with attach(self._probes, self.edits) as self._watched, attach((), self.edits) as self._unwatched:
            yield

    def before(self, latents: Tensor, step: Step) -> Tensor:
        """Latents after the guidances that move latents before this evaluation, ``batch channels height width``."""
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
        """Term that guidances of the prediction, without a fused one, add to the predicted noise; ``None`` where none acts."""
        found: Tensor | None = None
        for reader in self.readers:
            apart = reader is not self._fused and reader.guidance.update.space == "noise"
            if apart and reader.guidance.acts(step) and self.batch.alive:
                with self.batch.model.frozen():
                    shift = noise_shift(reader, latents, step)
                found = shift if found is None else found + shift
        return found

    @contextmanager
    def during(self, context: PassContext, *, watched: bool = True) -> Iterator[None]:
        """Count the enclosed denoising pass and let edits act in it; probes as well, if ``watched``."""
        assert self._watched is not None and self._unwatched is not None, "passes are made inside attached()"
        with (self._watched if watched else self._unwatched).during(context):
            yield
        self.batch.ledger.forward(context.rows)

    def evaluate(self, latents: Tensor, step: Step) -> Answers:
        """Evaluate the network for all latents: all branches in one pass, or the conditional one apart where it is fused.

        Args:
            latents: ``batch channels height width``, in the scheduler's scale.
            step: Evaluation of the schedule.
        """
        batch, fused = self.batch, self._fused_at(step)
        answers, shift = dict[Branch, Tensor](), self.shift(latents, step)
        branches = batch.branches.at(step, self.injections)
        if fused is not None:
            found = fused_pass(fused, self._probes, self.edits, latents, step)
            answers["cond"], shift = found.answer, found.shift if shift is None else shift + found.shift
            branches = tuple(branch for branch in branches if branch != "cond")
        if branches:
            context = pass_context(step, "denoise", range(len(batch.samples)), branches)
            parts = torch.cat([batch.branches.latents(branch, latents) for branch in branches])
            inputs = batch.scheduler.scale_model_input(parts, step)
            with self.during(context, watched=fused is None):
                answer = batch.model.predict(inputs, step, batch.branches.for_pass(context))
            assert answer is not None
            answers |= zip(branches, answer.chunk(len(branches)), strict=True)
        return Answers(answers, shift)

    def predict(self, answers: Answers, step: Step) -> Tensor:
        """Noise prediction for all latents: after classifier-free guidance, injections, and guidances of the prediction."""
        batch, found = self.batch, answers.branches
        combined = self._combined(self.unconditional(found, step), found["cond"])
        noise_pred = self.correct(combined, found, step)
        if batch.branches.own_source:
            source = self._combined(found.get("source_uncond"), found["source"])
            noise_pred = torch.cat([noise_pred, source])
        return self.shifted(noise_pred, answers.shift, step)

    def _combined(self, uncond: Tensor | None, cond: Tensor) -> Tensor:
        """Prediction after classifier-free guidance with the rows' scales and the family's correction."""
        batch = self.batch
        return cond if uncond is None else batch.model.after_cfg(combine(uncond, cond, batch.cfg_scales), cond)

    def _fused_at(self, step: Step) -> Reader | None:
        """The guidance that shares the conditional pass of a step; ``None`` where none acts."""
        acts = self._fused is not None and self._fused.guidance.acts(step) and self.batch.alive
        return self._fused if acts else None

    def unconditional(self, answers: Mapping[Branch, Tensor], step: Step) -> Tensor | None:
        """Unconditional prediction after the injections, ``batch channels height width``; ``None`` without that half."""
        uncond = answers.get("uncond")
        for injection in self.injections:
            uncond = None if uncond is None else injection.unconditional(uncond, answers, step)
        return uncond

    def correct(self, noise_pred: Tensor, answers: Mapping[Branch, Tensor], step: Step) -> Tensor:
        """The rows' combined prediction after the injections' corrections."""
        for injection in self.injections:
            noise_pred = injection.correct(noise_pred, answers, step)
        return noise_pred

    def shifted(self, noise_pred: Tensor, shift: Tensor | None, step: Step) -> Tensor:
        """Prediction for all latents with :meth:`shift` added to its noise, in the scheduler's parametrisation."""
        return noise_pred if shift is None else self.batch.scheduler.shift_noise(noise_pred, shift, step)

    def after(self, latents: Tensor, step: Step) -> Tensor:
        """Latents after the scheduler's step, changed by latent edits unless the next evaluation is a corrector's."""
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
