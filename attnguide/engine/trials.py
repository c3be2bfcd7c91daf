"""Trials of a guidance before a step: gradients, previews, and restarts of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from attnguide.attention.attach import Attention
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.edits import Edit
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import SiteSelector, select
from attnguide.engine.batch import Batch
from attnguide.engine.cfg import combine, pass_context
from attnguide.engine.reading import Reader
from attnguide.guidance.base import Attempt, Judgement, Seen
from attnguide.guidance.judging import check_values, row_gradient
from attnguide.models.schedulers import NoiseScheduler
from attnguide.types import PassContext, PassKind, Step


def optimise(reader: Reader, edits: Sequence[Edit] | None, latents: Tensor, step: Step) -> Tensor:
    """Let a guidance replace the latents of all rows before a step, if this is the one it asks for.

    Args:
        reader: The guidance on its batch.
        edits: Edits of all methods, if methods act by edits without memory alone; ``None`` otherwise, and rows cannot be
            restarted.
        latents: ``batch channels height width``, in the scheduler's scale.
        step: Evaluation at which a denoising step begins.
    """
    batch, guidance = reader.batch, reader.guidance
    point, scheduler = guidance.optimise_at, batch.scheduler
    index = step.overall_index
    if point is None or not index <= round(point * step.overall_count) < index + scheduler.span(step):
        return latents
    rows = list(batch.alive)
    inputs = scheduler.scale_model_input(latents, step)[rows]
    trials = _Trials(reader, edits, step, rows)
    found = guidance.optimise(inputs.detach(), trials)
    kept = (found == inputs).flatten(1).all(1).view(-1, 1, 1, 1)
    moved = latents.clone()
    moved[rows] = torch.where(kept, latents[rows], (found / scheduler.input_scale(step)).to(latents.dtype))
    change = moved - latents
    change[[rows[row] for row in trials.adopted]] = 0.0  # the scheduler has adopted their state already
    if bool((change != 0).any()):
        scheduler.latents_moved(change, step)
    return moved


class _Trials:
    """See :class:`~attnguide.guidance.base.Trials`."""

    def __init__(self, reader: Reader, edits: Sequence[Edit] | None, step: Step, rows: Sequence[int]) -> None:
        self.step, self.targets, self.level = step, reader.batch.targets.select(rows), reader.level
        self._reader, self._batch, self._edits, self._rows = reader, reader.batch, edits, rows
        self.adopted: set[int] = set()

    def _own(self, rows: Iterable[int]) -> list[int]:
        """Numbers in the batch of rows counted among the living ones."""
        return [self._rows[row] for row in rows]

    def gradient(self, latents: Tensor, rows: Sequence[int], judge: Judgement) -> Tensor:
        inputs, own, name = latents.detach().requires_grad_(True), self._own(rows), self._reader.guidance.name
        maps = self._reader.maps(inputs, self.step, own)
        with torch.enable_grad():
            loss = judge(maps, self.targets.select(rows))
        check_values(name, "loss", loss, len(rows))
        self._batch.ledger.backward(own)
        return row_gradient(name, loss, inputs)

    def denoised(self, latents: Tensor, rows: Sequence[int]) -> Tensor:
        answer = self._batch.answer(latents, pass_context(self.step, "guide", self._own(rows), ("cond",)))
        return self._batch.scheduler.denoised(answer, latents, self.step)

    def maps(self, latents: Tensor, rows: Sequence[int]) -> AttentionMaps:
        return self._reader.maps(latents.detach(), self.step, self._own(rows))

    def restart(self, like: Tensor, rows: Sequence[int]) -> Attempt | None:
        if self._edits is None:
            return None
        batch, own = self._batch, self._own(rows)
        scheduler = batch.scheduler.anew()
        noise = torch.stack([self.noise(row, latents) for row, latents in zip(rows, like, strict=True)])
        walk = _Walk(batch, own, scheduler, [batch.generators[row] for row in own], "denoise")
        latents = noise * scheduler.initial_sigma
        with batch.attach([], self._edits) as attention:
            for step in scheduler.steps[: self.step.index]:
                latents = walk.moved(latents, step, attention)
        return Attempt(tuple(rows), scheduler.scale_model_input(latents, self.step), scheduler)

    def adopt(self, attempt: Attempt, rows: Sequence[int]) -> None:
        self._batch.scheduler.adopt(attempt.scheduler, self._own(rows), [attempt.rows.index(row) for row in rows])
        self.adopted |= set(rows)

    def preview(self, latents: Tensor, rows: Sequence[int], sites: SiteSelector, stop: float, see: Seen) -> None:
        batch, own, scheduler = self._batch, self._own(rows), self._batch.scheduler.anew()
        sources = [torch.Generator().set_state(batch.generators[row].get_state()) for row in own]
        chosen, recorder = select(batch.modules, sites), Recorder()
        end = next((step.index for step in scheduler.steps if step.begins and step.progress > stop), len(scheduler.steps))
        walk, keys = _Walk(batch, own, scheduler, sources, "source"), batch.targets.own_keys(own)
        latents = latents / scheduler.input_scale(self.step)
        with batch.attach([Probe("probs", recorder, sites, frozenset({"source"}), branch=None)]) as attention:
            for step in scheduler.steps[:end]:
                latents = walk.moved(latents, step, attention)
                if step.begins:
                    cond = walk.context(step).positions("cond")
                    see(step, AttentionMaps({site: recorder.tensors[site][cond] for site in chosen}, own=keys))

    def noise(self, row: int, like: Tensor) -> Tensor:
        source = self._batch.generators[self._rows[row]]
        return torch.randn(like.shape, generator=source, dtype=like.dtype).to(like.device)


class _Walk:
    """Denoises some rows apart from the batch's own steps, with classifier-free guidance.

    Args:
        batch: The rows' batch.
        rows: Rows of the batch.
        scheduler: Noise scheduler for these rows alone.
        sources: One generator per row, for noise that the scheduler adds.
        kind: Kind of the passes.
    """

    def __init__(
        self,
        batch: Batch,
        rows: Sequence[int],
        scheduler: NoiseScheduler,
        sources: Sequence[torch.Generator],
        kind: PassKind,
    ) -> None:
        self.batch, self.rows, self.scheduler, self.sources, self.kind = batch, rows, scheduler, sources, kind

    def context(self, step: Step) -> PassContext:
        """Context of a step's pass."""
        return pass_context(step, self.kind, self.rows, self.batch.branches.halves)

    def moved(self, latents: Tensor, step: Step, attention: Attention) -> Tensor:
        """Latents ``rows channels height width`` after one step, with probes and edits in its pass."""
        context, halves = self.context(step), self.batch.branches.halves
        inputs = self.scheduler.scale_model_input(torch.cat([latents] * len(halves)), step)
        with attention.during(context):
            answer = self.batch.answer(inputs, context)
        *uncond, cond = answer.chunk(len(halves))
        scales = [self.batch.cfg_scales[row] for row in self.rows]
        if uncond:
            cond = self.batch.model.after_cfg(combine(uncond[0], cond, scales), cond)
        return self.scheduler.step(cond, step, latents, self.sources)
