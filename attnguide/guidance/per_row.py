"""Options that are one value for all rows of a batch, or one per row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

PerRow = float | Sequence[float]
"""A number as an option holds it: one for all rows, or one per row of the batch."""

Value = TypeVar("Value")


class EachRow(Generic[Value]):
    """An option's value for each row of a batch.

    Args:
        given: One value for all rows, or a list with one per row; a string or a mapping is one value.
        name: Name of the option, for errors.
    """

    def __init__(self, given: Value | Sequence[Value], name: str = "value") -> None:
        several = isinstance(given, Iterable) and not isinstance(given, str | Mapping)
        self.given, self.name = given, name
        self.values = list(cast("Sequence[Value]", given)) if several else [cast("Value", given)]
        """The values: a single one for all rows, or one per row."""
        self.common = not several

    def over(self, rows: int) -> list[Value]:
        """One value for each row of a batch.

        Raises:
            ValueError: If there are several values, and not as many as rows.
        """
        if not self.common and len(self.values) != rows:
            raise ValueError(
                f"{self.name} must be one value, or a list with one per row; got {len(self.values)} for {rows} rows."
            )
        return self.values * rows if self.common else list(self.values)

    def at(self, rows: Sequence[int], like: Tensor) -> Tensor:
        """Values of some rows of the batch as float32 ``rows``, on the device of ``like``.

        Raises:
            ValueError: If a row has no value.
        """
        if not self.common and max(rows, default=-1) >= len(self.values):
            raise ValueError(f"{self.name} must be one number, or one per row; got {len(self.values)} for row {max(rows)}.")
        found = [float(cast("float", self.values[0 if self.common else row])) for row in rows]
        return torch.tensor(found, device=like.device, dtype=torch.float32)

    def require_finite(self) -> None:
        """Refuse numbers that are not finite.

        Raises:
            ValueError: Naming the option and its value.
        """
        if not all(math.isfinite(cast("float", number)) for number in self.values):
            raise ValueError(f"{self.name} must be finite; got {self.given}.")

    def require_within(self, low: float, high: float) -> None:
        """Refuse numbers outside of ``[low, high]``.

        Raises:
            ValueError: Naming the option and its value.
        """
        if not all(low <= cast("float", number) <= high for number in self.values):
            raise ValueError(f"{self.name} must lie in [{low:g}, {high:g}]; got {self.given}.")
