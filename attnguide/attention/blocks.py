"""Blocks of an attention call: the query rows and key columns that a site stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnguide.attention.sites import Site, Span


def resolve(span: Span | None, length: int) -> range:
    """The positions of a span among so many; all when ``None``."""
    return range(length)[slice(*(span or (None, None)))]


class Columns:
    """Chosen positions of a text, as index tensors that are made once for every device.

    Args:
        chosen: Positions within the text block; all when ``None``.
    """

    def __init__(self, chosen: Sequence[int] | None = None) -> None:
        self.chosen = None if chosen is None else tuple(chosen)
        self._index: dict[tuple[range, int, torch.device], tuple[Tensor, Tensor]] = {}

    def index(self, text: range, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Key positions of the columns, and all other key positions.

        Args:
            text: Key positions of the text block.
            keys: Of the call.
            device: Where the indices are used.
        """
        where = (text, keys, device)
        if where not in self._index:
            columns = list(text) if self.chosen is None else [text[position] for position in self.chosen]
            others = sorted(set(range(keys)) - set(columns))
            self._index[where] = torch.tensor(columns, device=device), torch.tensor(others, device=device, dtype=torch.long)
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
        """The block of a site in a call over so many queries and keys; ``columns`` are chosen in cross-attention alone.

        Raises:
            ValueError: If a column lies outside of the text.
        """
        text = resolve(site.keys, keys)
        shown = columns if site.kind == "cross" else Columns()
        if shown.chosen and max(shown.chosen) >= len(text):
            raise ValueError(f"columns must lie within the {len(text)} text positions of {site.name!r}; got {shown.chosen}.")
        return cls(resolve(site.queries, queries), text, (queries, keys), shown)

    @property
    def whole(self) -> bool:
        """Whether it is the whole call."""
        return self.columns.chosen is None and (len(self.rows), len(self.keys)) == self.shape

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns that are shown."""
        return len(self.rows), len(self.keys) if self.columns.chosen is None else len(self.columns.chosen)

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
        return tensor.index_select(axis, self.index(tensor.device)[0])

    def take(self, square: Tensor, first: int = 0) -> Tensor:
        """The block of ``batch heads query key``, whose first query is the call's query ``first``."""
        start = self.rows.start - first
        return self.take_keys(square[:, :, start : start + len(self.rows)], 3)

    def put_rows(self, tensor: Tensor, part: Tensor) -> Tensor:
        """A copy of ``batch heads query channels`` with its rows replaced."""
        return _put(tensor, part, 2, self.rows)

    def put_keys(self, tensor: Tensor, part: Tensor) -> Tensor:
        """A copy of ``batch heads key channels`` with the shown keys replaced."""
        if self.columns.chosen is None:
            return _put(tensor, part, 2, self.keys)
        return tensor.index_copy(2, self.index(tensor.device)[0], part.to(tensor.dtype))

    def put(self, square: Tensor, part: Tensor, first: int = 0) -> Tensor:
        """A copy of ``batch heads query key``, whose first query is the call's query ``first``, with the block replaced."""
        if self.whole and square.shape == part.shape:
            return part
        start = self.rows.start - first
        strip = square[:, :, start : start + len(self.rows)]
        if self.columns.chosen is None:
            strip = _put(strip, part, 3, self.keys)
        else:
            strip = strip.index_copy(3, self.index(square.device)[0], part.to(square.dtype))
        return _put(square, strip, 2, range(start, start + len(self.rows)))


def _put(tensor: Tensor, part: Tensor, axis: int, positions: range) -> Tensor:
    """A tensor with a range of positions along an axis replaced; the part itself where that is all of them."""
    before, after = positions.start, tensor.shape[axis] - positions.stop
    around = [tensor.narrow(axis, 0, before)] if before else []
    behind = [tensor.narrow(axis, positions.stop, after)] if after else []
    return torch.cat([*around, part.to(tensor.dtype), *behind], axis) if around or behind else part
