"""Update rules: step size, repetition and stopping of guidance updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from attnguide.guidance.per_row import EachRow
from attnguide.guidance.per_row import PerRow as PerRow
from attnguide.schedules import Schedule, constant
from attnguide.types import Step

Space = Literal["latents", "noise"]

_DEFAULT_STEP_SIZE = constant(20.0)


@dataclass(frozen=True)
class Refinement:
    """Updates repeated while a row's indicator is too high.

    Attributes:
        until: A row goes on while its indicator exceeds this; one number, or one per row.
        iterations: Most updates in one step.
        at: Progress points of the refinement (0.2 means the step that includes the evaluation ``round(0.2 * count)`` of the
            whole schedule); every step when ``None``.
        lagging: Decide on the indicator from before the newest update, as attend-and-excite's code does (one update too many).
    """

    until: PerRow
    iterations: int = 20
    at: tuple[float, ...] | None = None
    lagging: bool = False

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1; got {self.iterations}.")
        if any(math.isnan(number) for number in EachRow(self.until).values):
            raise ValueError(f"until must be a number; got {self.until}.")
        if outside := [point for point in self.at or () if not 0 <= point < 1]:
            raise ValueError(f"a refinement's point is progress in [0, 1), 0.2 for step 10 of 50; got {outside[0]:g}.")

    def applies(self, step: Step, span: int = 1) -> bool:
        """Whether the refinement applies to the denoising step that begins at ``step`` and takes ``span`` evaluations."""
        index, count = step.overall_index, step.overall_count
        return self.at is None or any(index <= round(point * count) < index + span for point in self.at)


Thresholds = Mapping[float, float] | Sequence[Mapping[float, float]]
"""Progress -> value to reach at that step; one table for all rows, or one per row of the batch."""


def refinements_at(
    thresholds: Thresholds, limit: Callable[[float], float], iterations: int | Callable[[float], int], lagging: bool = False
) -> tuple[Refinement, ...]:
    """One refinement for each progress point of a table of thresholds.

    Args:
        thresholds: Table, or one per row; a row is not refined at points that its table lacks.
        limit: From a threshold to the largest indicator that satisfies it.
        iterations: Most updates at each point: a number, or a function of the point.
        lagging: See :class:`Refinement`.

    Raises:
        ValueError: If a table is no mapping, or a point is not in [0, 1).
    """
    tables = [thresholds] if isinstance(thresholds, Mapping) else list(thresholds)
    if not all(isinstance(table, Mapping) for table in tables):
        raise ValueError(f"thresholds must map progress to a value, like {{0.2: 0.5}}; got {thresholds!r}.")
    read = [{float(point): float(value) for point, value in table.items()} for table in tables]
    made = []
    for point in sorted({point for table in read for point in table}):
        limits = [limit(table[point]) if point in table else math.inf for table in read]
        most = iterations if isinstance(iterations, int) else iterations(point)
        made.append(Refinement(limits[0] if isinstance(thresholds, Mapping) else limits, most, (point,), lagging))
    return tuple(made)


@dataclass(frozen=True)
class Round:
    """One guide pass of a step, as an :class:`Update` plans it.

    Attributes:
        limit: Limit of a refinement: rows whose indicator exceeds it ask for a move; ``None`` if all rows move.
        lagging: Whether every row of the pass moves, also one that no longer asks.
    """

    limit: PerRow | None = None
    lagging: bool = False

    @property
    def refines(self) -> bool:
        """Whether the round belongs to a refinement, in which only rows that asked in the previous round take part."""
        return self.limit is not None

    def asks(self, indicator: Tensor, rows: Sequence[int]) -> Tensor:
        """Mask of ``rows`` that ask for a move, bool; ``indicator`` has one value for each of them."""
        if self.limit is None:
            return torch.ones_like(indicator, dtype=torch.bool)
        return indicator.detach().float() > EachRow(self.limit, "until").at(rows, indicator)


@dataclass(frozen=True)
class Update:
    """Update rule of a guidance.

    Attributes:
        step_size: Factor on the gradient as a function of the step, on latents in the network's input scale.
        scale: Further factor, one number or one per row.
        iterations: Updates in every step of the window, whatever the indicator.
        refinements: Updates before these, repeated while an indicator exceeds its limit.
        space: ``latents`` moves them; ``noise`` adds ``step_size * sqrt(1 - alpha_bar) * gradient`` to the noise prediction
            instead.
        max_norm: Largest norm of one update per row as a share of the latents' own norm; ``None`` for no limit.
        fused: In space ``noise``, take the gradient from the conditional denoising pass itself instead of a guide pass
            (:mod:`attnguide.engine.fused`), where the batch's other methods allow it.
    """

    step_size: Schedule = _DEFAULT_STEP_SIZE
    scale: PerRow = 1.0
    iterations: int = 1
    refinements: tuple[Refinement, ...] = ()
    space: Space = "latents"
    max_norm: float | None = None
    fused: bool = False

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ValueError(f"iterations must be at least 0; got {self.iterations}.")
        if self.space not in ("latents", "noise"):
            raise ValueError(f"space must be 'latents' or 'noise'; got {self.space!r}.")
        if self.space == "noise" and (self.refinements or self.iterations > 1):
            raise ValueError("space 'noise' leaves the latents where they are: it takes one iteration and no refinements.")
        if self.fused and (self.space != "noise" or self.iterations != 1):
            raise ValueError(
                f"fused takes the gradient from the denoising pass: one update a step in space 'noise'; got {self.iterations} "
                f"in space {self.space!r}."
            )
        EachRow(self.scale, "scale").require_finite()
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"max_norm must be above 0; got {self.max_norm}.")

    def refinement(self, step: Step, span: int = 1) -> Refinement | None:
        """The refinement of the denoising step that begins at ``step``: for every row, the last listed that applies."""
        found = [refinement for refinement in self.refinements if refinement.applies(step, span)]
        if len(found) < 2 or EachRow(found[-1].until).common:
            return found[-1] if found else None
        # Points of several rows' tables may fall into one step: each row keeps its own limit.
        limits = zip(*(EachRow(refinement.until).values for refinement in reversed(found)), strict=True)
        return replace(found[-1], until=[next((one for one in row if one != math.inf), math.inf) for row in limits])

    def rounds(self, step: Step, span: int = 1) -> Iterator[Round]:
        """The guide passes of the denoising step that begins at ``step`` and takes ``span`` evaluations, in order.

        First the rounds of a refinement, at their largest number, then one for each plain update.
        """
        refinement = self.refinement(step, span)
        for index in range(refinement.iterations if refinement is not None else 0):
            assert refinement is not None
            # A lagging rule moves rows that asked before the newest update: after the first round, those that are left.
            yield Round(refinement.until, lagging=refinement.lagging and index > 0)
        for _ in range(self.iterations):
            yield Round()

    def move(self, gradient: Tensor, latents: Tensor, step: Step, rows: Sequence[int]) -> Tensor:
        """Tensor to subtract from latents in the network's input scale, ``batch channels height width``."""
        wide = torch.promote_types(gradient.dtype, torch.float32)  # half precision would lose a small gradient
        size = EachRow(self.scale, "scale").at(rows, latents).view(-1, 1, 1, 1) * self.step_size(step)
        move = size * gradient.to(wide)
        if self.max_norm is not None:
            limit = self.max_norm * latents.to(wide).flatten(1).norm(dim=1)
            norm = move.flatten(1).norm(dim=1).clamp_min(1e-12)
            move = move * (limit / norm).clamp_max(1.0).view(-1, 1, 1, 1)
        return move
