"""The loss of every guide pass, row by row, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning as L

from attnguide.callbacks.base import SamplingCallback, run_folder
from attnguide.engine.observer import BatchInfo, UpdateEvent
from attnguide.run_folder.records import TRACE_FILE
from attnguide.run_folder.tables import append_table
from attnguide.types import SampleResult

TRACE_COLUMNS = ("id", "step", "progress", "method", "iteration", "loss", "indicator", "moved", "gradient_norm")


def trace_lines(ids: Sequence[str], event: UpdateEvent) -> list[dict[str, object]]:
    """One guide pass as lines of ``loss_trace.csv``, one for each row whose loss it computed.

    Args:
        ids: Row ids of the batch.
        event: The guide pass.
    """
    where = {"step": event.step.index, "progress": event.step.progress, "method": event.method}
    values = zip(event.rows, event.losses, event.indicators, event.moved, event.gradient_norms, strict=True)
    return [
        {
            "id": ids[row],
            **where,
            "iteration": event.iteration,
            "loss": loss,
            "indicator": indicator,
            "moved": int(moved),
            "gradient_norm": norm,
        }
        for row, loss, indicator, moved, norm in values
    ]


class LossTrace(SamplingCallback):
    """Writes ``loss_trace.csv``: a line per row and guide pass. Adds the metrics ``loss_<method>``, each method's last loss."""

    only_shows = True

    def __init__(self) -> None:
        self._ids: tuple[str, ...] = ()
        self._lines: list[dict[str, object]] = []
        self._last: dict[str, dict[str, float]] = {}

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        self._ids = tuple(sample.id for sample in info.samples)
        self._last = {id: {} for id in self._ids}
        self._lines.clear()

    def on_guidance_update(self, trainer: L.Trainer, module: L.LightningModule, event: UpdateEvent) -> None:
        self._lines += trace_lines(self._ids, event)
        for row, loss in zip(event.rows, event.losses, strict=True):
            self._last[self._ids[row]][f"loss_{event.method}"] = loss

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        if self._lines:
            append_table(run_folder(trainer) / TRACE_FILE, TRACE_COLUMNS, self._lines)
        self._lines.clear()

    def row_metrics(self, result: SampleResult) -> Mapping[str, float]:
        return self._last.get(result.sample.id, {})
