"""Reading attention during a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from attnguide.attention.sites import Site, SiteSelector
from attnguide.types import Branch, PassContext, PassKind

Quantity = Literal["query", "key", "value", "scores", "original_probs", "probs", "output", "beside"]
"""Tensors of an attention call that a probe can read.

``query``, ``key``, ``value``, ``scores`` and ``original_probs`` before edits, ``probs`` and ``output`` after edits;
``beside`` is a tensor that the probe computes itself during the pass (:attr:`Probe.around`).
"""

EXPLICIT: frozenset[Quantity] = frozenset({"scores", "original_probs", "probs"})
"""Quantities that the fused kernel never forms."""

Record = Callable[[Site, Tensor, PassContext], None]


@dataclass(frozen=True)
class Probe:
    """A reader of one quantity at chosen sites.

    Attributes:
        quantity: Tensor to read. ``probs`` is ``batch heads query key`` in float32 (float64 for a float64 model), still part
            of the graph in a pass with gradients.
        record: Called once per site and pass with the site, the tensor and the pass; must not write into the tensor.
        sites: Sites to read.
        kinds: Kinds of pass to read in.
        around: Context manager entered around each such pass, called with the pass and ``record``; must undo its own hooks.
        branch: Branch that a pass must have to be read; any pass of its kind when ``None``. A pipeline that computes the halves
            of classifier-free guidance one after the other makes passes that have no ``cond``.
    """

    quantity: Quantity
    record: Record
    sites: SiteSelector = field(default_factory=SiteSelector)
    kinds: frozenset[PassKind] = field(default=frozenset({"denoise"}))
    around: Callable[[PassContext, Record], AbstractContextManager[None]] | None = None
    branch: Branch | None = "cond"

    def reads(self, context: PassContext) -> bool:
        """Whether the probe reads in a pass."""
        return context.kind in self.kinds and (self.branch is None or self.branch in context.branches)


class Recorder:
    """The simplest record: keeps the newest tensor of each site.

    It assigns and never appends, so that a second firing (gradient checkpointing recomputes the forward) changes nothing.
    """

    def __init__(self) -> None:
        self.tensors: dict[Site, Tensor] = {}

    def __call__(self, site: Site, tensor: Tensor, context: PassContext) -> None:
        self.tensors[site] = tensor

    def clear(self) -> None:
        """Drop all recorded tensors."""
        self.tensors.clear()
