"""Blocks of an attention call: the query rows and key columns that a site stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from attnguide.attention.sites import Site, Span
from attnguide.types import Branch, PassContext

Owned = Callable[[PassContext], Tensor]
"""From a pass to a mask of the columns that belong to each batch element's own text, bool, ``batch columns``."""


def resolve(span: Span | None, length: int) -> range:
    """Positions of a span in an axis of this length; all of them when ``None``."""
    return range(length)[slice(*(span or (None, None)))]


class Columns:
    """Chosen text positions, as index tensors cached per device.

    Args:
        chosen: Positions within the text block, in rising order; all when ``None``.
        owned: Mask of the chosen positions that belong to each batch element's own text; all of them when ``None``.

    Raises:
        ValueError: If positions are negative or do not rise.
    """

    def __init__(self, chosen: Sequence[int] | None = None, owned: Owned | None = None) -> None:
        self.chosen = None if chosen is None else tuple(chosen)
        self._owned = owned
        self._own: dict[tuple[tuple[int, ...], tuple[Branch, ...], torch.device], Tensor | None] = {}
        if self.chosen is not None and not all(low < high for low, high in pairwise((-1, *self.chosen))):
            raise ValueError(f"columns must be positions of the text in rising order; got {list(self.chosen)}.")
        self._index: dict[tuple[range, int, torch.device], tuple[Tensor, Tensor]] = {}

    def own(self, context: PassContext, device: torch.device) -> Tensor | None:
        """Mask of the columns of each element's own text, ``batch 1 1 columns``; ``None`` where all columns are."""
        where = (context.rows, context.branches, device)
        if self._owned is not None and where not in self._own:
            own = self._owned(context)
            self._own[where] = None if bool(own.all()) else own[:, None, None].to(device)
        return self._own.get(where)

    def index(self, text: range, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Index tensors of the columns' key positions and of all other key positions.

        Args:
            text: Key positions of the text block.
            keys: Number of keys in the call.
            device: Device of the index tensors.
        """
        where = (text, keys, device)
        if where not in self._index:
            chosen = range(len(text)) if self.chosen is None else self.chosen
            columns = [text[position] for position in chosen if position < len(text)]
            others = sorted(set(range(keys)) - set(columns))
            self._index[where] = (
                torch.tensor(columns, device=device, dtype=torch.long),
                torch.tensor(others, device=device, dtype=torch.long),
            )
        return self._index[where]


@dataclass(frozen=True, eq=False)
class Block:
    """The part of one attention call that a site stands for.

    Attributes:
        rows: Query positions.
        keys: Key positions.
        shape: Numbers of queries and keys of the whole call.
        columns: Text positions among the keys that probes and edits see.
    """

    rows: range
    keys: range
    shape: tuple[int, int]
    columns: Columns

    @classmethod
    def of(cls, site: Site, queries: int, keys: int, columns: Columns) -> Block:
        """A site's block in a call of ``queries`` and ``keys`` positions; ``columns`` apply to cross-attention alone."""
        shown = columns if site.kind == "cross" else Columns()
        return cls(resolve(site.queries, queries), resolve(site.keys, keys), (queries, keys), shown)

    @property
    def whole(self) -> bool:
        """Whether the block is the whole call."""
        return self.columns.chosen is None and (len(self.rows), len(self.keys)) == self.shape

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of rows and columns of the block."""
        return len(self.rows), len(self.keys) if self.columns.chosen is None else len(self.columns.chosen)

    @property
    def missing(self) -> int:
        """Number of chosen columns beyond the end of this call's text, which is shorter than others of the batch."""
        return 0 if self.columns.chosen is None else sum(position >= len(self.keys) for position in self.columns.chosen)

    def padded(self, part: Tensor, value: float = 0.0, axis: int = -1) -> Tensor:
        """Append the :attr:`missing` columns, filled with ``value``."""
        if not self.missing:
            return part
        size = list(part.shape)
        size[axis] = self.missing
        return torch.cat([part, part.new_full(size, value)], axis)

    def cut(self, part: Tensor, axis: int = -1) -> Tensor:
        """Drop the :attr:`missing` columns, which the call does not have."""
        return part.narrow(axis, 0, part.shape[axis] - self.missing) if self.missing else part

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Index tensors of the block's key positions and of all others."""
        return self.columns.index(self.keys, self.shape[1], device)

    def take_rows(self, tensor: Tensor) -> Tensor:
        """The block's rows of a ``batch heads query channels`` tensor."""
        return tensor[:, :, self.rows.start : self.rows.stop]

    def take_keys(self, tensor: Tensor, axis: int = 2) -> Tensor:
        """The block's keys of a tensor, along the key axis ``axis``."""
        if self.columns.chosen is None:
            return tensor.narrow(axis, self.keys.start, len(self.keys))
        return self.padded(tensor.index_select(axis, self.index(tensor.device)[0]), axis=axis)

    def take(self, square: Tensor, first: int = 0, missing: float = 0.0) -> Tensor:
        """The block of a ``batch heads query key`` tensor whose first query is query ``first`` of the call.

        :attr:`missing` columns are filled with the argument ``missing``.
        """
        start = self.rows.start - first
        strip = square[:, :, start : start + len(self.rows)]
        if self.columns.chosen is None:
            return strip.narrow(3, self.keys.start, len(self.keys))
        return self.padded(strip.index_select(3, self.index(square.device)[0]), missing)

    def put_rows(self, tensor: Tensor, part: Tensor) -> Tensor:
        """A copy of a ``batch heads query channels`` tensor with the block's rows replaced."""
        return _put(tensor, part, 2, self.rows)

    def put_keys(self, tensor: Tensor, part: Tensor) -> Tensor:
        """A copy of a ``batch heads key channels`` tensor with the block's keys replaced."""
        if self.columns.chosen is None:
            return _put(tensor, part, 2, self.keys)
        return tensor.index_copy(2, self.index(tensor.device)[0], self.cut(part, 2).to(tensor.dtype))

    def put(self, square: Tensor, part: Tensor, first: int = 0) -> Tensor:
        """A copy of ``batch heads query key``, which begins at query ``first`` of the call, with the block replaced."""
        if self.whole and square.shape == part.shape:
            return part
        start = self.rows.start - first
        strip = square[:, :, start : start + len(self.rows)]
        if self.columns.chosen is None:
            strip = _put(strip, part, 3, self.keys)
        else:
            strip = strip.index_copy(3, self.index(square.device)[0], self.cut(part).to(square.dtype))
        return _put(square, strip, 2, range(start, start + len(self.rows)))


def _put(tensor: Tensor, part: Tensor, axis: int, positions: range) -> Tensor:
    """A copy of ``tensor`` with a range of an axis replaced by ``part``; ``part`` itself where it covers the axis."""
    before, after = positions.start, tensor.shape[axis] - positions.stop
    around = [tensor.narrow(axis, 0, before)] if before else []
    behind = [tensor.narrow(axis, positions.stop, after)] if after else []
    return torch.cat([*around, part.to(tensor.dtype), *behind], axis) if around or behind else part
