"""Rows that an observer has finished, as notebooks show them."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar


class _Shown(Protocol):
    def _repr_html_(self) -> str: ...


Row = TypeVar("Row", bound=_Shown)


class FinishedRows(Generic[Row]):
    """What an observer keeps of each row, in the order in which rows ended: ``observer[0]``, ``len(observer)``, a line each.

    Attributes:
        rows: One of each finished row.
    """

    rows: list[Row]

    def __getitem__(self, index: int) -> Row:
        """A finished row."""
        return self.rows[index]

    def __len__(self) -> int:
        """How many rows are finished."""
        return len(self.rows)

    def _repr_html_(self) -> str:
        return "".join(f"<div>{row._repr_html_()}</div>" for row in self.rows)
