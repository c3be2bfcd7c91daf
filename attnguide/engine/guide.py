"""Guidance at one step: latents follow the gradient of a loss on attention maps, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.engine.observer import UpdateEvent
from attnguide.engine.reading import Reader
from attnguide.guidance.judging import check_output, row_gradient
from attnguide.guidance.update import Round
from attnguide.types import Step


def guide(reader: Reader, latents: Tensor, step: Step) -> Tensor:
    """Move latents by a guidance's update: refinements of the rows above their threshold, then updates of all rows.

    Args:
        reader: The guidance on its batch.
        latents: ``batch channels height width``, in the scheduler's scale.
        step: Evaluation at which a denoising step begins.
    """
    batch, update = reader.batch, reader.guidance.update
    source = reader.source_maps(latents, step)
    asking, refined, iteration = list(batch.alive), set[int](), 0
    for part in update.rounds(step, batch.scheduler.span(step)):
        rows = [row for row in batch.alive if row in asking or not part.refines]
        if not rows:
            continue
        inputs = reader.inputs(latents, step, rows)
        maps = reader.maps(inputs, step, rows, source)
        found = descend(reader, maps, inputs, step, rows, part, refined)
        if found.move is not None:
            change = torch.zeros_like(latents)
            change[rows] = (-found.move / batch.scheduler.input_scale(step)).to(latents.dtype)
            latents = batch.moved(latents, change, step)
        tell(reader, found, step, iteration)
        iteration += 1
        if part.refines:
            asking, refined = found.asking, refined | set(found.moved)
    return latents


def noise_shift(reader: Reader, latents: Tensor, step: Step) -> Tensor:
    """Term that a guidance of the prediction adds to the predicted noise, of the latents' shape.

    ``step_size sqrt(1 - alpha_bar) dL/dx``, with ``x`` the network's input; the latents are not moved.
    """
    rows, shift = list(reader.batch.alive), torch.zeros_like(latents)
    source = reader.source_maps(latents, step)
    inputs = reader.inputs(latents, step, rows)
    for iteration, part in enumerate(reader.guidance.update.rounds(step)):
        found = descend(reader, reader.maps(inputs, step, rows, source), inputs, step, rows, part)
        tell(reader, found, step, iteration)
        shift = shift + as_shift(found, latents, step)
    return shift


def as_shift(found: Descent, latents: Tensor, step: Step) -> Tensor:
    """A move of the network's input as a term of the predicted noise, of the latents' shape; 0 for rows without a move."""
    shift = torch.zeros_like(latents)
    if found.move is not None:
        shift[list(found.rows)] = (found.move * (1 - step.alpha_bar) ** 0.5).to(shift.dtype)
    return shift


@dataclass(frozen=True, eq=False)
class Descent:
    """Loss, gradient and move of one guide pass.

    Attributes:
        rows: Rows of the batch whose loss was evaluated.
        loss: Differentiated loss of each of ``rows``.
        indicator: Indicator of each of ``rows``, which decides on refinement.
        asking: Those of ``rows`` whose indicator exceeds the limit.
        moving: Which of ``rows`` make an update, bool.
        norms: Euclidean norm of each row's gradient; 0 where it makes no update.
        shares: Norm of each row's move over the norm of its input.
        move: Tensor to subtract from the network's input, ``rows channels height width``; ``None`` if no row moves.
    """

    rows: Sequence[int]
    loss: Tensor
    indicator: Tensor
    asking: list[int]
    moving: Tensor
    norms: list[float]
    shares: list[float]
    move: Tensor | None = None

    @property
    def moved(self) -> list[int]:
        """Rows of the batch that make an update."""
        return [row for row, moves in zip(self.rows, self.moving.tolist(), strict=True) if moves]


def descend(
    reader: Reader,
    maps: AttentionMaps,
    inputs: Tensor,
    step: Step,
    rows: Sequence[int],
    part: Round,
    refined: set[int] | frozenset[int] = frozenset(),
) -> Descent:
    """Evaluate the loss on maps, and its gradient for the rows that ask for an update.

    Rows whose loss or gradient is not finite, or whose indicator is NaN, are stopped.

    Args:
        reader: The guidance on its batch.
        maps: Attention maps of ``rows``, with a graph to ``inputs``.
        inputs: The network's input, ``rows channels height width``.
        step: Evaluation of the schedule.
        rows: Rows of the batch.
        part: Round of the update, which decides which rows ask.
        refined: Rows that a refinement has moved in this step.
    """
    batch, guidance = reader.batch, reader.guidance
    with torch.enable_grad():
        output = guidance.loss(maps, batch.targets.select(rows), step)
        check_output(guidance.name, output, len(rows))
        loss = output.differentiated(part.refines, torch.tensor([row in refined for row in rows], device=output.loss.device))
    finite, known = torch.isfinite(loss.detach()), ~torch.isnan(output.indicator.detach())
    batch.stop_broken(rows, finite, f"loss of {guidance.name} is not finite at step {step.index}")
    batch.stop_broken(rows, known, f"indicator of {guidance.name} is NaN at step {step.index}")
    asks = part.asks(output.indicator, rows)
    asking = [row for row, asked in zip(rows, asks.tolist(), strict=True) if asked]
    moving = (torch.ones_like(asks) if part.lagging else asks) & finite & known & (loss.detach() != 0)
    none = [0.0] * len(rows)
    if not bool(moving.any()):
        return Descent(rows, loss.detach(), output.indicator, asking, moving, none, none)
    gradient = row_gradient(guidance.name, loss, inputs)
    batch.ledger.backward([row for row, moves in zip(rows, moving.tolist(), strict=True) if moves])
    finite = torch.isfinite(gradient).flatten(1).all(1)
    batch.stop_broken(rows, finite, f"gradient of {guidance.name} is not finite at step {step.index}")
    moving = moving & finite
    gradient = torch.where(moving.view(-1, 1, 1, 1), gradient, torch.zeros_like(gradient))
    move = guidance.update.move(gradient, inputs.detach(), step, rows)
    norms, shares = torch.stack([_norms(gradient), _norms(move) / _norms(inputs).clamp_min(1e-12)]).tolist()
    return Descent(rows, loss.detach(), output.indicator, asking, moving, norms, shares, move)


def tell(reader: Reader, found: Descent, step: Step, iteration: int) -> None:
    """Record one guide pass for the rows' statuses, and notify the observer."""
    batch, guidance, moving = reader.batch, reader.guidance, found.moving.tolist()
    losses = found.loss.float().tolist()
    strong = guidance.update.step_size(step) != 0
    batch.effects.judged(guidance, found.rows, losses, [moves and strong for moves in moving], found.shares)
    indicators = found.indicator.detach().float().tolist()
    batch.observer.on_guidance_update(
        UpdateEvent(
            step,
            guidance.name,
            iteration,
            rows=tuple(found.rows),
            losses=tuple(losses),
            indicators=tuple(indicators),
            moved=tuple(moving),
            gradient_norms=tuple(found.norms),
        )
    )


def _norms(values: Tensor) -> Tensor:
    """Euclidean norm of each row, float32."""
    return values.detach().float().flatten(1).norm(dim=1)
