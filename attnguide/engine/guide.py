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
    """Move latents by a guidance's update: refinements of the rows that ask for them, then updates of all rows.

    Args:
        reader: The guidance on its batch.
        latents: ``batch channels height width``, in the scheduler's scale.
        step: A denoising step begins here.
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
    """What a guidance that acts on the prediction adds to the predicted noise, of the latents' shape; they stay.

    ``step_size sqrt(1 - alpha_bar) dL/dx``, with ``x`` the network's input.
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
    """A move as it is added to the predicted noise, of the latents' shape; 0 for rows that make none."""
    shift = torch.zeros_like(latents)
    if found.move is not None:
        shift[list(found.rows)] = (found.move * (1 - step.alpha_bar) ** 0.5).to(shift.dtype)
    return shift


@dataclass(frozen=True, eq=False)
class Descent:
    """One guide pass, judged.

    Attributes:
        rows: Rows of the batch that were judged.
        loss: That was differentiated, one value for each of ``rows``.
        indicator: One value for each of ``rows``.
        asking: Those of ``rows`` whose indicator exceeds the limit.
        moving: Which of ``rows`` make an update, bool.
        norms: Euclidean norm of each row's gradient; 0 where it makes no update.
        shares: Length of each row's move as a share of its input's norm.
        move: What to subtract from the network's input, ``rows channels height width``; ``None`` if no row asked for an update.
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
    """Judge maps and differentiate the loss of the rows that ask for an update.

    Rows whose loss, indicator or gradient is no number are given up.

    Args:
        reader: The guidance on its batch.
        maps: Of ``rows``, with a graph to ``inputs``.
        inputs: The network's input, ``rows channels height width``.
        step: Where in the schedule.
        rows: Rows of the batch.
        part: Of the update; says which rows ask.
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
    """Note one guide pass for the rows' statuses, and show it to the observer."""
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
