"""Probes and edits of one site in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from attnguide.attention.blocks import Columns
from attnguide.attention.capture import EXPLICIT, Probe, Quantity
from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site
from attnguide.types import PassContext


class CaptureError(RuntimeError):
    """A site with a probe or an edit could not be intercepted."""


@dataclass(frozen=True, eq=False)
class Visitors:
    """Probes and edits of one site in one pass.

    Attributes:
        site: The site.
        context: Step, kind, rows and branches of the pass.
        probes: Probes of the site.
        edits: Edits of the site, in the order in which they are applied.
        columns: Text positions that a cross site shows to them.
    """

    site: Site
    context: PassContext
    probes: Sequence[Probe]
    edits: Sequence[Edit]
    columns: Columns

    def read(self, quantity: Quantity, tensor: Tensor) -> None:
        """Hand a tensor to the probes of this quantity."""
        for probe in self.probes:
            if probe.quantity == quantity:
                probe.record(self.site, tensor, self.context)

    def reads(self, *quantities: Quantity) -> bool:
        """Whether a probe reads one of these quantities."""
        return any(probe.quantity in quantities for probe in self.probes)

    def editing(self, stage: Stage) -> list[Edit]:
        """The edits that act at a stage."""
        return [edit for edit in self.edits if stage in edit.stages]

    @property
    def reads_probs(self) -> bool:
        """Whether a probe reads scores or probs, which the fused kernel never forms."""
        return self.reads(*EXPLICIT)

    @property
    def edits_probs(self) -> bool:
        """Whether an edit changes scores or probs."""
        return any(edit.stages & {"scores", "probs"} for edit in self.edits)

    def touched(self) -> set[int]:
        """Positions in the batch whose scores or probs are changed."""
        found = [edit.touches(self.context) for edit in self.edits if edit.stages & {"scores", "probs"}]
        every = range(len(self.context.rows))
        return {position for part in found for position in (every if part is None else part)}

    def unrecorded(self) -> Visitors:
        """A copy whose probes record nothing, for recomputation by gradient checkpointing.

        A record that kept a recomputed tensor would hold its block's graph for as long as the backward pass lasts.
        """
        return replace(self, probes=[replace(probe, record=_ignored) for probe in self.probes])

    def at(self, positions: Sequence[int]) -> Visitors:
        """The edits restricted to these batch positions, without probes."""
        rows = tuple(self.context.rows[position] for position in positions)
        branches = tuple(self.context.branches[position] for position in positions)
        return replace(self, context=replace(self.context, rows=rows, branches=branches), probes=())

    def given_out(self, output: Tensor) -> Tensor:
        """A feature site's output after its edits, handed to its probes."""
        for edit in self.editing("output"):
            output = edit.output(output, self.site, self.context)
        self.read("output", output)
        return output


def _ignored(site: Site, tensor: Tensor, context: PassContext) -> None:
    """A record that keeps nothing."""
