"""The list of results of a call, displayed as pictures in notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import SupportsIndex, overload

from attnguide.types import SampleResult

_MOST = 64
"""Most pictures shown at once."""


class Results(list[SampleResult]):
    """A list of results; notebooks show their pictures side by side, each over its method, seed and status."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> SampleResult: ...

    @overload
    def __getitem__(self, index: slice) -> Results: ...

    def __getitem__(self, index: SupportsIndex | slice) -> SampleResult | Results:
        """One result, or a slice as :class:`Results`."""
        found = super().__getitem__(index)
        return Results(found) if isinstance(found, list) else found

    def __add__(self, other: Iterable[SampleResult]) -> Results:  # type: ignore[override]
        """Concatenation of both lists."""
        return Results([*self, *other])

    def _repr_html_(self) -> str:
        """HTML of the pictures, side by side."""
        more = f"<p>and {len(self) - _MOST} more</p>" if len(self) > _MOST else ""
        return "".join(result._repr_html_() for result in self[:_MOST]) + more
