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
"""From a pass to the columns that are each element's own, bool, ``batch columns``."""


def resolve(span: Span | None, length: int) -> range:
    """The positions of a span among so many; all when ``None``."""
    return range(length)[slice(*(span or (None, None)))]


class Columns:
    """Chosen positions of a text, as index tensors that are made once for every device.

    Args:
        chosen: Positions within the text block, in rising order; all when ``None``.
        owned: Which of them each element of a pass has as its own; all of them when ``None``.

    Raises:
        ValueError: If they are negative or do not rise.
    """

    def __init__(self, chosen: Sequence[int] | None = None, owned: Owned | None = None) -> None:
        self.chosen = None if chosen is None else tuple(chosen)
        self._owned = owned
        self._own: dict[tuple[tuple[int, ...], tuple[Branch, ...], torch.device], Tensor | None] = {}
        if self.chosen is not None and not all(low < high for low, high in pairwise((-1, *self.chosen))):
            raise ValueError(f"columns must be positions of the text in rising order; got {list(self.chosen)}.")
        self._index: dict[tuple[range, int, torch.device], tuple[Tensor, Tensor]] = {}

    def own(self, context: PassContext, device: torch.device) -> Tensor | None:
        """True at the elements' own columns, ``batch 1 1 columns``; ``None`` where that is all of them."""
        where = (context.rows, context.branches, device)
        if self._owned is not None and where not in self._own:
            own = self._owned(context)
            self._own[where] = None if bool(own.all()) else own[:, None, None].to(device)
        return self._own.get(where)

    def index(self, text: range, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Key positions of the columns, and all other key positions.

        Args:
            text: Key positions of the text block.
            keys: Of the call.
            device: Where the indices are used.
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
        shape: Queries and keys of the whole call.
        columns: Which of the keys are shown.
    """

    rows: range
    keys: range
    shape: tuple[int, int]
    columns: Columns

    @classmethod
    def of(cls, site: Site, queries: int, keys: int, columns: Columns) -> Block:
        """The block of a site in a call over so many queries and keys; ``columns`` are chosen in cross-attention alone."""
        shown = columns if site.kind == "cross" else Columns()
        return cls(resolve(site.queries, queries), resolve(site.keys, keys), (queries, keys), shown)

    @property
    def whole(self) -> bool:
        """Whether it is the whole call."""
        return self.columns.chosen is None and (len(self.rows), len(self.keys)) == self.shape

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns that are shown."""
        return len(self.rows), len(self.keys) if self.columns.chosen is None else len(self.columns.chosen)

    @property
    def missing(self) -> int:
        """Columns at the end that the call has not, as its texts are shorter than others of the batch."""
        return 0 if self.columns.chosen is None else sum(position >= len(self.keys) for position in self.columns.chosen)

    def padded(self, part: Tensor, value: float = 0.0, axis: int = -1) -> Tensor:
        """Columns that the call has, and a value for those that it has not."""
        if not self.missing:
            return part
        size = list(part.shape)
        size[axis] = self.missing
        return torch.cat([part, part.new_full(size, value)], axis)

    def cut(self, part: Tensor, axis: int = -1) -> Tensor:
        """The columns that the call has."""
        return part.narrow(axis, 0, part.shape[axis] - self.missing) if self.missing else part

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Key positions that are shown, and all others."""
        return self.columns.index(self.keys, self.shape[1], device)

    def take_rows(self, tensor: Tensor) -> Tensor:
        """The rows of ``batch heads query channels``."""
        return tensor[:, :, self.rows.start : self.rows.stop]

    def take_keys(self, tensor: Tensor, axis: int = 2) -> Tensor:
        """The shown keys of a tensor whose ``axis`` counts keys."""
        if self.columns.chosen is None:
            return tensor.narrow(axis, self.keys.start, len(self.keys))
        return self.padded(tensor.index_select(axis, self.index(tensor.device)[0]), axis=axis)

    def take(self, square: Tensor, first: int = 0, missing: float = 0.0) -> Tensor:
        """The block of ``batch heads query key``, whose first query is the call's query ``first``.

        ``missing`` stands in the columns that the call has not.
        """
        start = self.rows.start - first
        strip = square[:, :, start : start + len(self.rows)]
        if self.columns.chosen is None:
            return strip.narrow(3, self.keys.start, len(self.keys))
        return self.padded(strip.index_select(3, self.index(square.device)[0]), missing)

    def put_rows(self, tensor: Tensor, part: Tensor) -> Tensor:
        """A copy of ``batch heads query channels`` with its rows replaced."""
        return _put(tensor, part, 2, self.rows)

    def put_keys(self, tensor: Tensor, part: Tensor) -> Tensor:
        """A copy of ``batch heads key channels`` with the shown keys replaced."""
        if self.columns.chosen is None:
            return _put(tensor, part, 2, self.keys)
        return tensor.index_copy(2, self.index(tensor.device)[0], self.cut(part, 2).to(tensor.dtype))

    def put(self, square: Tensor, part: Tensor, first: int = 0) -> Tensor:
        """A copy of ``batch heads query key``, whose first query is the call's query ``first``, with the block replaced."""
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
    """A tensor with a range of positions along an axis replaced; the part itself where that is all of them."""
    before, after = positions.start, tensor.shape[axis] - positions.stop
    around = [tensor.narrow(axis, 0, before)] if before else []
    behind = [tensor.narrow(axis, positions.stop, after)] if after else []
    return torch.cat([*around, part.to(tensor.dtype), *behind], axis) if around or behind else part
