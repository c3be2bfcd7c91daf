"""Base class of observers that keep something of each finished row, for display in notebooks."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar


class _Shown(Protocol):
    def _repr_html_(self) -> str: ...


Row = TypeVar("Row", bound=_Shown)


class FinishedRows(Generic[Row]):
    """Sequence of the objects that an observer keeps, one per finished row; notebooks show a line for each.

    Attributes:
        rows: One object per finished row, in the order in which rows ended.
    """

    rows: list[Row]

    def __getitem__(self, index: int) -> Row:
        """The object of a finished row."""
        return self.rows[index]

    def __len__(self) -> int:
        """Number of finished rows."""
        return len(self.rows)

    def _repr_html_(self) -> str:
        return "".join(f"<div>{row._repr_html_()}</div>" for row in self.rows)
