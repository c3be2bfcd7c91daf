"""What a guidance may try before a step: gradients, previews, and rows denoised anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attnguide.attention.attach import Attention
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import SiteSelector, select
from attnguide.guidance.base import Attempt, Guidance, Judgement, Seen
from attnguide.models.schedulers import NoiseScheduler
from attnguide.sampling.cfg import combine, pass_context
from attnguide.sampling.guide_run import GuideRun, guide_maps, read_maps
from attnguide.sampling.judging import check_values, row_gradient
from attnguide.types import Branch, PassContext, PassKind, Step


def optimise(run: GuideRun, guidance: Guidance, latents: Tensor, step: Step) -> Tensor:
    """Let a guidance replace the latents of all rows before a step, if this is the one it asks for.

    Args:
        run: The batch.
        guidance: Any.
        latents: ``batch channels height width``, in the scheduler's scale.
        step: A denoising step begins here.
    """
    point = guidance.optimise_at
    if point is None or not step.index <= round(point * step.count) < step.index + run.scheduler.span(step):
        return latents
    rows, run.beside = list(run.alive), None
    inputs = run.scheduler.scale_model_input(latents, step)[rows]
    trials = _Trials(run, guidance, step, rows)
    found = guidance.optimise(inputs.detach(), trials)
    kept = (found == inputs).flatten(1).all(1).view(-1, 1, 1, 1)
    moved = latents.clone()
    moved[rows] = torch.where(kept, latents[rows], (found / run.scheduler.input_scale(step)).to(latents.dtype))
    change = moved - latents
    change[[rows[row] for row in trials.adopted]] = 0.0  # the scheduler knows their past already
    if bool((change != 0).any()):
        run.scheduler.latents_moved(change, step)
    return moved


class _Trials:
    """See :class:`~attnguide.guidance.base.Trials`."""

    def __init__(self, run: GuideRun, guidance: Guidance, step: Step, rows: Sequence[int]) -> None:
        self.step, self.targets, self.level = step, run.targets.select(rows), run.model.guidance_level
        self._run, self._guidance, self._rows = run, guidance, rows
        self.adopted: set[int] = set()

    def gradient(self, latents: Tensor, rows: Sequence[int], judge: Judgement) -> Tensor:
        inputs, own = latents.detach().requires_grad_(True), [self._rows[row] for row in rows]
        maps = guide_maps(self._run, self._guidance, inputs, self.step, own)
        with torch.enable_grad():
            loss = judge(maps, self.targets.select(rows))
        check_values(self._guidance.name, "loss", loss, len(rows))
        self._run.ledger.backward(own)
        return row_gradient(self._guidance.name, loss, inputs)

    def denoised(self, latents: Tensor, rows: Sequence[int]) -> Tensor:
        own = [self._rows[row] for row in rows]
        context = pass_context(self.step, "guide", own, ("cond",))
        answer = self._run.model.predict(latents, self.step, self._run.conditioning.for_pass(context))
        assert answer is not None
        self._run.ledger.forward(own)
        return self._run.scheduler.denoised(answer, latents, self.step)

    def maps(self, latents: Tensor, rows: Sequence[int]) -> AttentionMaps:
        run = self._run
        context = pass_context(self.step, "guide", [self._rows[row] for row in rows], ("cond",))
        return read_maps(run, self._guidance, latents, context, run.conditioning, (), run.edits.get(self._guidance, ()))

    def restart(self, like: Tensor, rows: Sequence[int]) -> Attempt | None:
        run, own = self._run, [self._rows[row] for row in rows]
        if run.every_edit is None:
            return None
        scheduler = run.scheduler.anew()
        noise = torch.stack([self.noise(row, latents) for row, latents in zip(rows, like, strict=True)])
        sources = [run.sources[row] for row in own]
        with run.attach([], run.every_edit) as attention:
            latents = _denoised_to(
                self.step.index, run, own, scheduler, noise * scheduler.initial_sigma, sources, "denoise", attention
            )
        return Attempt(tuple(rows), scheduler.scale_model_input(latents, self.step), scheduler)

    def adopt(self, attempt: Attempt, rows: Sequence[int]) -> None:
        own = [self._rows[row] for row in rows]
        self._run.scheduler.adopt(attempt.scheduler, own, [attempt.rows.index(row) for row in rows])
        self.adopted |= set(rows)

    def preview(self, latents: Tensor, rows: Sequence[int], sites: SiteSelector, stop: float, see: Seen) -> None:
        run, own, scheduler = self._run, [self._rows[row] for row in rows], self._run.scheduler.anew()
        sources = [torch.Generator().set_state(run.sources[row].get_state()) for row in own]
        chosen, recorder = select(run.modules, sites), Recorder()
        probe = Probe("probs", recorder, sites, frozenset({"source"}))
        end = next((step.index for step in scheduler.steps if step.begins and step.progress > stop), len(scheduler.steps))

        def show(context: PassContext) -> None:
            if context.step.begins:
                found = {site: recorder.tensors[site][context.positions("cond")] for site in chosen}
                see(context.step, AttentionMaps(found))

        with run.attach([probe]) as attention:
            latents = latents / scheduler.input_scale(self.step)
            _denoised_to(end, run, own, scheduler, latents, sources, "source", attention, show)

    def noise(self, row: int, like: Tensor) -> Tensor:
        source = self._run.sources[self._rows[row]]
        return torch.randn(like.shape, generator=source, dtype=like.dtype).to(like.device)


def _denoised_to(
    index: int,
    run: GuideRun,
    rows: Sequence[int],
    scheduler: NoiseScheduler,
    latents: Tensor,
    sources: Sequence[torch.Generator],
    kind: PassKind,
    attention: Attention,
    see: Callable[[PassContext], None] | None = None,
) -> Tensor:
    """Some rows denoised from the first step up to step ``index``, both halves, beside the batch's own steps.

    Args:
        index: The first step that is not made.
        run: The batch.
        rows: Which.
        scheduler: Of these rows alone.
        latents: Of these rows before the first step.
        sources: Generators of the noise that the scheduler adds.
        kind: Of the passes.
        attention: What is attached.
        see: Called after each pass.
    """
    branches: tuple[Branch, ...] = ("cond",) if run.conditioning.uncond is None else ("uncond", "cond")
    for step in scheduler.steps[:index]:
        context = pass_context(step, kind, rows, branches)
        inputs = scheduler.scale_model_input(torch.cat([latents] * len(branches)), step)
        with attention.during(context):
            answer = run.model.predict(inputs, step, run.conditioning.for_pass(context))
        assert answer is not None
        run.ledger.forward(context.rows)
        if see is not None:
            see(context)
        *uncond, cond = answer.chunk(len(branches))
        noise_pred = combine(uncond[0] if uncond else None, cond, [run.cfg_scales[row] for row in rows])
        latents = scheduler.step(noise_pred, step, latents, sources)
    return latents
