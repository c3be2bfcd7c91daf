"""The inner loop: from a guidance to moved latents, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.base import Guidance, LossOutput
from attnguide.guidance.update import Refinement, per_row
from attnguide.sampling.cfg import pass_context
from attnguide.sampling.guide_run import GuideRun, guide_maps, read_maps
from attnguide.sampling.judging import check_output, row_gradient
from attnguide.sampling.observer import UpdateEvent
from attnguide.types import Step


def guide(run: GuideRun, guidance: Guidance, latents: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
    """Apply one guidance at one step.

    Args:
        run: The batch.
        guidance: Which acts at the step.
        latents: ``batch channels height width``, in the scheduler's scale.
        step: Where in the schedule; a denoising step begins here, or the guidance acts on the noise prediction.

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
    finite = _finite_rows(run, guidance, loss, rows, step, "loss") & _numbers(run, guidance, output.indicator, rows, step)
    moving = asks(output) & finite & (loss.detach() != 0)
    norms = shares = [0.0] * len(rows)
    if bool(moving.any()):
        gradient = row_gradient(guidance.name, loss, inputs)
        run.ledger.backward([row for row, moves in zip(rows, moving.tolist(), strict=True) if moves])
        moving = moving & _finite_rows(run, guidance, gradient, rows, step, "gradient")
        gradient = torch.where(moving.view(-1, 1, 1, 1), gradient, torch.zeros_like(gradient))
        move = guidance.update.move(gradient, inputs.detach(), step, rows)
        norms, shares = torch.stack([_norms(gradient), _norms(move) / _norms(inputs).clamp_min(1e-12)]).tolist()
        if shift is None:
            change = torch.zeros_like(latents)
            change[list(rows)] = (-move / run.scheduler.input_scale(step)).to(latents.dtype)
            latents = latents + change
            run.scheduler.latents_moved(change, step)
        else:
            shift = shift.clone()
            shift[list(rows)] += (move * (1 - step.alpha_bar) ** 0.5).to(shift.dtype)
    losses = loss.detach().float().tolist()
    if run.effects is not None:
        strong = guidance.update.step_size(step) != 0
        run.effects.judged(guidance, rows, losses, (moving & strong).tolist(), shares)
    run.observer.on_guidance_update(
        UpdateEvent(
            step,
            guidance.name,
            iteration,
            tuple(rows),
            tuple(losses),
            tuple(output.indicator.detach().float().tolist()),
            tuple(moving.tolist()),
            tuple(norms),
        )
    )
    return latents, shift, output, {row for row, moves in zip(rows, moving.tolist(), strict=True) if moves}


def _judge(run: GuideRun, guidance: Guidance, inputs: Tensor, step: Step, rows: Sequence[int]) -> LossOutput:
    """One guide pass and its loss."""
    maps = guide_maps(run, guidance, inputs, step, rows)
    with torch.enable_grad():
        output = guidance.loss(maps, run.targets.select(rows), step)
    check_output(guidance.name, output, len(rows))
    return output


def _norms(values: Tensor) -> Tensor:
    """Euclidean norm of each row, float32."""
    return values.detach().float().flatten(1).norm(dim=1)


def _source_maps(run: GuideRun, guidance: Guidance, latents: Tensor, step: Step) -> AttentionMaps | None:
    """The same of the source, without gradients, for all rows; ``None`` if the guidance reads no source."""
    if guidance.source is None or run.branches is None:
        return None
    inputs = run.branches.latents("source", run.scheduler.scale_model_input(latents, step))
    context = pass_context(step, "source", range(run.branches.rows), ("source",))
    return read_maps(run, guidance, inputs, context, run.branches.states["source"])


def _finite_rows(run: GuideRun, guidance: Guidance, values: Tensor, rows: Sequence[int], step: Step, what: str) -> Tensor:
    """Which rows have finite values; the others are given up, each with its reason."""
    finite = torch.isfinite(values.detach()).reshape(len(rows), -1).all(1)
    for row, fine in zip(rows, finite.tolist(), strict=True):
        if not fine and row in run.alive:
            run.stop_row(row, f"{what} of {guidance.name} is not finite at step {step.index}")
    return finite


def _numbers(run: GuideRun, guidance: Guidance, indicator: Tensor, rows: Sequence[int], step: Step) -> Tensor:
    """Which rows' indicators are numbers, of any size; the other rows are given up, as no limit can be compared with NaN."""
    known = ~torch.isnan(indicator.detach())
    for row, fine in zip(rows, known.tolist(), strict=True):
        if not fine and row in run.alive:
            run.stop_row(row, f"indicator of {guidance.name} is NaN at step {step.index}")
    return known
