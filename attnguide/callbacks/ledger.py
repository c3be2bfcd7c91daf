"""What every row cost, and how it scored, to the loggers."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from attnguide.callbacks.base import SamplingCallback, row_metrics
from attnguide.callbacks.log import log_row
from attnguide.types import Cost, SampleResult


class LedgerLog(SamplingCallback):
    """Logs network passes, seconds, peak memory and metrics of each row as ``row/...``, against the count of finished rows.

    Attributes:
        total: Sum over this process's rows; the peak memory is the largest.
    """

    only_shows = True

    def __init__(self) -> None:
        self.total = Cost(0, 0, 0.0, 0.0)
        self._rows = 0

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        for result in results:
            cost, total = result.cost, self.total
            self.total = Cost(
                total.unet_forwards + cost.unet_forwards,
                total.unet_backwards + cost.unet_backwards,
                total.seconds + cost.seconds,
                max(total.peak_memory_mb, cost.peak_memory_mb),
            )
            numbers = {name: getattr(cost, name) for name in ("unet_forwards", "unet_backwards", "seconds", "peak_memory_mb")}
            log_row(trainer, {**numbers, **row_metrics(trainer, result)}, self._rows)
            self._rows += 1
