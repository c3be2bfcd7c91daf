"""One scaled-dot-product call, and each site's view of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.blocks import Block, Columns
from attnguide.attention.columns import mask_part
from attnguide.attention.edits import Edit
from attnguide.attention.visitors import Visitors


@dataclass(frozen=True, eq=False)
class View:
    """One site's probes and edits, and its block of the call."""

    visitors: Visitors
    block: Block

    @property
    def in_columns(self) -> bool:
        """Whether the site reads and edits only some columns of cross-attention."""
        return self.visitors.site.kind == "cross" and not self.block.whole

    def block_of(self, edit: Edit) -> Block:
        """The block that a ``mask``, ``gain`` or ``blend`` edit acts on: all text columns if it says ``whole_text``."""
        return replace(self.block, columns=Columns()) if edit.whole_text else self.block

    @property
    def explicit(self) -> bool:
        """Whether a probe or an edit needs explicit scores or probs."""
        return self.visitors.reads_probs or self.visitors.edits_probs

    def at(self, positions: Sequence[int]) -> View:
        return replace(self, visitors=self.visitors.at(positions))

    def shown(self, part: Tensor, hidden: float) -> Tensor:
        """Scores or probs of the block, with ``hidden`` in columns that are padding of an element's own text."""
        own = self._own(part.device)
        return part if own is None else part.masked_fill(~own, hidden)

    def edited(self, stage: Literal["scores", "probs"], part: Tensor) -> Tensor:
        """Scores or probs of the block after the site's edits; ``part`` itself where nothing was changed."""
        visitors, hidden = self.visitors, float("-inf") if stage == "scores" else 0.0
        before = now = self.shown(part, hidden)
        for edit in visitors.editing(stage):
            change = edit.scores if stage == "scores" else edit.probs
            now = change(now, visitors.site, visitors.context)
        own = self._own(part.device)
        if now is before:
            return part
        return now if own is None else torch.where(own, now, part)

    def _own(self, device: torch.device) -> Tensor | None:
        visitors = self.visitors
        return visitors.columns.own(visitors.context, device) if visitors.site.kind == "cross" else None


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments of one ``scaled_dot_product_attention`` call; query, key, value ``batch heads tokens head_dim``."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    dropout: float
    scale: float | None

    @property
    def factor(self) -> float:
        """Scale of the query-key products, ``head_dim ** -0.5`` by default."""
        return self.query.shape[-1] ** -0.5 if self.scale is None else self.scale

    @property
    def alike(self) -> bool:
        """Whether autocast changes no dtype and there is no dropout."""
        return self.dropout == 0 and fused_dtype(self.value) == self.query.dtype

    def fused(self, rows: range | None = None) -> Tensor:
        """Output of the library's own call, for the queries ``rows`` alone if given."""
        query = self.query if rows is None else self.query[:, :, rows.start : rows.stop]
        mask = self.mask if rows is None else mask_part(self.mask, rows)
        return F.scaled_dot_product_attention(query, self.key, self.value, mask, self.dropout, scale=self.scale)

    def at(self, positions: Sequence[int]) -> Call:
        """The call for a part of the batch."""
        at, mask = run_of(positions), self.mask
        if mask is not None and mask.ndim == 4 and len(mask) > 1:
            mask = mask[at]
        return replace(self, query=self.query[at], key=self.key[at], value=self.value[at], mask=mask)


def run_of(positions: Sequence[int]) -> slice | list[int]:
    """Positions without a gap as a slice, which copies nothing."""
    first, last = positions[0], positions[-1]
    return slice(first, last + 1) if last - first + 1 == len(positions) else list(positions)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast off, on a device that has it (``meta`` has not)."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def fused_dtype(value: Tensor) -> torch.dtype:
    """Dtype of the fused call's output: autocast lowers it, except for float64."""
    device = value.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and value.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return value.dtype
