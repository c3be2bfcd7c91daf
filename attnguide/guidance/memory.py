"""Maps that a guidance keeps from one step to the next, per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from attnguide.types import Step


@dataclass(frozen=True, eq=False)
class Memory:
    """One row's memory during a guide pass.

    Attributes:
        previous: Maps of the last guide pass of the previous step, detached; ``None`` in a row's first step.
        passes: Guide passes of the row in this step, this one included.
    """

    previous: Tensor | None
    passes: int


class StepMemory:
    """Keeps each row's maps from one step to the next; rows are numbered as in ``Targets.rows``."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, Tensor, Memory]] = {}

    def clear(self) -> None:
        """Drop all memories, at the start of a batch."""
        self._kept.clear()

    def recall(self, rows: Sequence[int], step: Step, maps: Sequence[Tensor]) -> list[Memory]:
        """Store this pass's maps, one tensor per row, and return each row's memory."""
        found = []
        for row, new in zip(rows, maps, strict=True):
            index, latest, memory = self._kept.get(row, (step.index, None, Memory(None, 0)))
            memory = Memory(memory.previous, memory.passes + 1) if index == step.index else Memory(latest, 1)
            self._kept[row] = (step.index, new.detach(), memory)
            found.append(memory)
        return found
