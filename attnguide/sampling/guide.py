"""The inner loop: from a guidance to moved latents, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from attnguide.attention.attach import attach
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.edits import Edit
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector, select
from attnguide.guidance.base import Guidance, Judgement, LossOutput, Seen
from attnguide.guidance.update import Refinement, per_row
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.models.schedulers import NoiseScheduler
from attnguide.prompt.targets import Targets
from attnguide.sampling.branches import Branches
from attnguide.sampling.cfg import combine, pass_context
from attnguide.sampling.ledger import Ledger
from attnguide.sampling.observer import Observer, UpdateEvent
from attnguide.types import Branch, PassContext, Step


@dataclass(eq=False)
class GuideRun:
    """Everything a guide pass needs, and the rows that were given up.

    Attributes:
        stop_row: Called with a row and the reason when its loss or gradient is not finite.
        alive: Rows still running; shared with the sampler.
        probes: The observers' readers of guide passes.
        edits: What guidances edit, each its own.
        sources: One CPU generator per row.
        cfg_scales: One per row.
        branches: Of the denoising passes.
        beside: What the source showed in the step that is being guided, of all rows.
    """

    model: ModelAdapter
    scheduler: NoiseScheduler
    conditioning: Conditioning
    targets: Targets
    modules: Mapping[Site, nn.Module]
    ledger: Ledger
    observer: Observer
    alive: list[int]
    stop_row: Callable[[int, str], None]
    probes: Sequence[Probe] = ()
    edits: Mapping[Guidance, Sequence[Edit]] = field(default_factory=dict)
    sources: Sequence[torch.Generator] = ()
    cfg_scales: Sequence[float] = ()
    branches: Branches | None = None
    beside: AttentionMaps | None = None

    def sites_of(self, guidance: Guidance) -> tuple[Site, ...]:
        """The sites a guidance reads."""
        return select(self.modules, guidance.sites_at(self.model.guidance_level))


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
    found = guidance.optimise(inputs.detach(), _Trials(run, guidance, step, rows))
    kept = (found == inputs).flatten(1).all(1).view(-1, 1, 1, 1)
    moved = latents.clone()
    moved[rows] = torch.where(kept, latents[rows], (found / run.scheduler.input_scale(step)).to(latents.dtype))
    if not bool(kept.all()):
        run.scheduler.latents_moved(moved - latents, step)
    return moved


class _Trials:
    """See :class:`~attnguide.guidance.base.Trials`."""

    def __init__(self, run: GuideRun, guidance: Guidance, step: Step, rows: Sequence[int]) -> None:
        self.step, self.targets, self.level = step, run.targets.select(rows), run.model.guidance_level
        self._run, self._guidance, self._rows = run, guidance, rows

    def gradient(self, latents: Tensor, rows: Sequence[int], judge: Judgement) -> Tensor:
        inputs, own = latents.detach().requires_grad_(True), [self._rows[row] for row in rows]
        maps = _maps(self._run, self._guidance, inputs, self.step, own)
        with torch.enable_grad():
            loss = judge(maps, self.targets.select(rows))
        self._run.ledger.backward(own)
        return torch.autograd.grad(loss, inputs, torch.ones_like(loss))[0]

    def denoised(self, latents: Tensor, rows: Sequence[int]) -> Tensor:
        own = [self._rows[row] for row in rows]
        context = pass_context(self.step, "guide", own, ("cond",))
        answer = self._run.model.predict_noise(latents, self.step, self._run.conditioning.for_pass(context))
        assert answer is not None
        self._run.ledger.forward(own)
        return self._run.scheduler.denoised(answer, latents, self.step)

    def preview(self, latents: Tensor, rows: Sequence[int], sites: SiteSelector, stop: float, see: Seen) -> None:
        run, own, scheduler = self._run, [self._rows[row] for row in rows], self._run.scheduler.anew()
        sources = [torch.Generator().set_state(run.sources[row].get_state()) for row in own]
        branches: tuple[Branch, ...] = ("cond",) if run.conditioning.uncond is None else ("uncond", "cond")
        chosen, recorder = select(run.modules, sites), Recorder()
        probe = Probe("probs", recorder, sites, frozenset({"source"}))
        latents = latents / scheduler.input_scale(self.step)
        with attach(run.modules, [probe]) as attention:
            for step in scheduler.steps:
                if step.begins and step.progress > stop:
                    return
                context = pass_context(step, "source", own, branches)
                inputs = scheduler.scale_model_input(torch.cat([latents] * len(branches)), step)
                with attention.during(context):
                    answer = run.model.predict_noise(inputs, step, run.conditioning.for_pass(context))
                assert answer is not None
                run.ledger.forward(context.rows)
                if step.begins:
                    see(step, AttentionMaps({site: recorder.tensors[site][context.positions("cond")] for site in chosen}))
                *uncond, cond = answer.chunk(len(branches))
                noise_pred = combine(uncond[0] if uncond else None, cond, [run.cfg_scales[row] for row in own])
                latents = scheduler.step(noise_pred, step, latents, sources)

    def noise(self, row: int, like: Tensor) -> Tensor:
        source = self._run.sources[self._rows[row]]
        return torch.randn(like.shape, generator=source, dtype=like.dtype).to(like.device)


def guide(run: GuideRun, guidance: Guidance, latents: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
    """Apply one guidance at one step.

    Args:
        run: The batch.
        guidance: Whose window includes the step.
        latents: ``batch channels height width``, in the scheduler's scale.
        step: Where in the schedule; a denoising step begins here.

    Returns:
        New latents, and what to add to the noise prediction (``None`` unless the guidance acts there).
    """
    update = guidance.update
    iteration = 0
    refined: set[int] = set()
    shift = torch.zeros_like(latents) if update.space == "noise" else None
    refinement = update.refinement(step, run.scheduler.span(step))
    run.beside = _source_maps(run, guidance, latents, step)
    if refinement is not None:
        latents, iteration, refined = _refine(run, guidance, refinement, latents, step)

    def wanted(output: LossOutput) -> Tensor:
        after = torch.tensor([row in refined for row in rows], device=output.loss.device)
        return output.loss if output.refined is None else torch.where(after, output.refined, output.loss)

    for index in range(update.iterations):
        rows = list(run.alive)
        if not rows:
            break
        latents, shift, _, _ = _update_once(run, guidance, latents, shift, step, rows, iteration + index, _every_row, wanted)
    return latents, shift


def _every_row(output: LossOutput) -> Tensor:
    return torch.ones_like(output.indicator, dtype=torch.bool)


def _refining(output: LossOutput) -> Tensor:
    return output.loss if output.refining is None else output.refining


def _refine(
    run: GuideRun, guidance: Guidance, refinement: Refinement, latents: Tensor, step: Step
) -> tuple[Tensor, int, set[int]]:
    """Update the rows that ask for it until none does; rows that are satisfied leave the batch.

    Returns:
        New latents, the number of passes, and the rows that were moved.
    """
    rows = list(run.alive)
    refined: set[int] = set()
    for iteration in range(refinement.iterations):
        if not rows:
            return latents, iteration, refined
        limits = per_row(refinement.until, rows, latents)

        def asks(output: LossOutput, limits: Tensor = limits) -> Tensor:
            return output.indicator.detach().float() > limits

        # A lagging rule moves whoever asked before the newest update, and after the first iteration only those are left.
        moves = _every_row if refinement.lagging and iteration > 0 else asks
        latents, _, output, moved = _update_once(run, guidance, latents, None, step, rows, iteration, moves, _refining)
        refined |= moved
        rows = [row for row, goes_on in zip(rows, asks(output).tolist(), strict=True) if goes_on and row in run.alive]
    return latents, refinement.iterations, refined


def _update_once(
    run: GuideRun,
    guidance: Guidance,
    latents: Tensor,
    shift: Tensor | None,
    step: Step,
    rows: Sequence[int],
    iteration: int,
    asks: Callable[[LossOutput], Tensor],
    wanted: Callable[[LossOutput], Tensor],
) -> tuple[Tensor, Tensor | None, LossOutput, set[int]]:
    """One guide pass over ``rows`` and, for those that ask, one move against the gradient of the loss that is ``wanted``."""
    scaled = run.scheduler.scale_model_input(latents, step)
    inputs = scaled[list(rows)].detach().requires_grad_(True)
    output = _judge(run, guidance, inputs, step, rows)
    with torch.enable_grad():
        loss = wanted(output)
    moving = asks(output) & _finite_rows(run, guidance, loss, rows, step, "loss") & (loss.detach() != 0)
    norms = [0.0] * len(rows)
    if bool(moving.any()):
        gradient = torch.autograd.grad(loss, inputs, torch.ones_like(loss))[0]
        run.ledger.backward([row for row, moves in zip(rows, moving.tolist(), strict=True) if moves])
        moving = moving & _finite_rows(run, guidance, gradient, rows, step, "gradient")
        gradient = torch.where(moving.view(-1, 1, 1, 1), gradient, torch.zeros_like(gradient))
        norms = gradient.float().flatten(1).norm(dim=1).tolist()
        move = guidance.update.move(gradient, inputs.detach(), step, rows)
        if shift is None:
            change = torch.zeros_like(latents)
            change[list(rows)] = (-move / run.scheduler.input_scale(step)).to(latents.dtype)
            latents = latents + change
            run.scheduler.latents_moved(change, step)
        else:
            shift = shift.clone()
            shift[list(rows)] += (move * (1 - step.alpha_bar) ** 0.5).to(shift.dtype)
    run.observer.on_guidance_update(
        UpdateEvent(
            step,
            guidance.name,
            iteration,
            tuple(rows),
            tuple(loss.detach().float().tolist()),
            tuple(output.indicator.detach().float().tolist()),
            tuple(moving.tolist()),
            tuple(norms),
        )
    )
    return latents, shift, output, {row for row, moves in zip(rows, moving.tolist(), strict=True) if moves}


def _judge(run: GuideRun, guidance: Guidance, inputs: Tensor, step: Step, rows: Sequence[int]) -> LossOutput:
    """One guide pass and its loss."""
    maps = _maps(run, guidance, inputs, step, rows)
    with torch.enable_grad():
        return guidance.loss(maps, run.targets.select(rows), step)


def _maps(run: GuideRun, guidance: Guidance, inputs: Tensor, step: Step, rows: Sequence[int]) -> AttentionMaps:
    """One conditional pass with gradients that stops after the last site the guidance reads."""
    context = pass_context(step, "guide", rows, ("cond",))
    with torch.enable_grad():
        maps = _read(run, guidance, inputs, context, run.conditioning, run.probes, run.edits.get(guidance, ()))
    return maps if run.beside is None else replace(maps, source=run.beside.select(rows))


def _source_maps(run: GuideRun, guidance: Guidance, latents: Tensor, step: Step) -> AttentionMaps | None:
    """The same of the source, without gradients, for all rows; ``None`` if the guidance reads no source."""
    if guidance.source is None or run.branches is None:
        return None
    inputs = run.branches.latents("source", run.scheduler.scale_model_input(latents, step))
    context = pass_context(step, "source", range(run.branches.rows), ("source",))
    return _read(run, guidance, inputs, context, run.branches.states["source"])


def _read(
    run: GuideRun,
    guidance: Guidance,
    inputs: Tensor,
    context: PassContext,
    states: Conditioning,
    probes: Sequence[Probe] = (),
    edits: Sequence[Edit] = (),
) -> AttentionMaps:
    """One pass of one branch, and what the guidance reads of it."""
    sites = run.sites_of(guidance)
    features = () if guidance.features is None else select(run.modules, guidance.features)
    recorder, wanted = Recorder(), frozenset((*sites, *features))
    own = [Probe("probs", recorder, SiteSelector(where=wanted.__contains__), frozenset({context.kind}))]
    if features:
        own.append(Probe("output", recorder, SiteSelector("feature", where=wanted.__contains__), frozenset({context.kind})))
    with attach(run.modules, [*own, *probes], edits) as attention, attention.during(context):
        run.model.predict_noise(inputs, context.step, states.for_pass(context), until=[*sites, *features])
    run.ledger.forward(context.rows)
    found = recorder.tensors
    return AttentionMaps(
        {site: found[site] for site in sites},
        {site: found[site].to(torch.promote_types(found[site].dtype, torch.float32)) for site in features},
    )


def _finite_rows(run: GuideRun, guidance: Guidance, values: Tensor, rows: Sequence[int], step: Step, what: str) -> Tensor:
    """Which rows have finite values; the others are given up, each with its reason."""
    finite = torch.isfinite(values.detach()).reshape(len(rows), -1).all(1)
    for row, fine in zip(rows, finite.tolist(), strict=True):
        if not fine and row in run.alive:
            run.stop_row(row, f"{what} of {guidance.name} is not finite at step {step.index}")
    return finite
