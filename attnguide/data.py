"""The table of rows as a Lightning data module."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from attnguide.rows.samples import checked_samples
from attnguide.rows.tables import read_samples
from attnguide.sampling.arguments import instances
from attnguide.sampling.table import plan_batches
from attnguide.types import Sample

_T = TypeVar("_T")


class SampleDataModule(L.LightningDataModule):
    """Rows, grouped into batches of rows that can be sampled together.

    With several devices, each batch is sampled whole by one of them. A row that cannot be made (a phrase that its prompt lacks,
    a method without the regions it needs) ends by itself, with the reason as its status.

    Args:
        samples: Rows, or a table file that :func:`~attnguide.rows.tables.read_samples` reads.
        batch_size: Most rows in one batch.
        skip: Ids of rows that need no results, for instance because a stopped run had finished them. Batches are planned over
            all rows, so that the other rows' pictures do not change; a batch of skipped rows only is left out.
        size: ``(height, width)`` in pixels, for a table whose boxes are in pixels.

    Raises:
        ValueError: If the table or a row is malformed, two rows have the same id, no row can be made, or ``batch_size`` is
            below 1.
    """

    def __init__(
        self,
        samples: Sequence[Sample] | str | Path,
        batch_size: int = 8,
        *,
        skip: Collection[str] = (),
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        rows = read_samples(samples, size=size) if isinstance(samples, str | Path) else samples
        self.samples = tuple(instances("samples", rows, Sample))
        checked = checked_samples(self.samples)
        self.batch_size = batch_size
        skipped = set(skip)
        self.remaining = tuple(sample for sample in checked if sample.id not in skipped)
        planned = [RowBatch(rows, skipped) for rows in plan_batches(checked, batch_size)]
        self.batches = [batch for batch in planned if batch.wanted]

    def predict_dataloader(self) -> DataLoader[list[Sample]]:
        """A loader with one batch per item, padded with empty batches so that every device has an item, as Lightning needs."""
        devices = self.trainer.world_size if self.trainer is not None else 1
        idle = [RowBatch(())] * (devices - len(self.batches)) if self.batches else []
        return DataLoader(_Batches([*self.batches, *idle]), batch_size=None, shuffle=False, collate_fn=_as_it_is)


class Unopened(list[_T]):
    """A list whose items Lightning does not move to a device; rows and results hold nothing that it should move."""

    def to(self, device: torch.device, **options: Any) -> Unopened[_T]:
        """The list itself."""
        return self


class RowBatch(Unopened[Sample]):
    """A batch of rows that are sampled together.

    Args:
        rows: All rows of the batch.
        skip: Ids of rows that take part but whose results are not needed.

    Attributes:
        wanted: Indices of the rows whose results are needed.
    """

    def __init__(self, rows: Sequence[Sample], skip: Collection[str] = ()) -> None:
        super().__init__(rows)
        self.wanted = tuple(number for number, row in enumerate(rows) if row.id not in skip)


class _Batches(Dataset[list[Sample]]):
    def __init__(self, batches: Sequence[RowBatch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> list[Sample]:
        return self._batches[index]


def _as_it_is(item: _T) -> _T:
    return item
