"""The run folder: what was asked, what each row became, and one sheet of all pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L

from attnguide.callbacks.base import SamplingCallback, row_metrics, run_folder
from attnguide.records import (
    CONFIG_FILE,
    RECORDS_FILE,
    ROW_TABLES,
    append_table,
    check_run_folder,
    config_of,
    config_text,
    finished_ids,
    keep_rows,
    record_of,
    replacing,
    write_atomic,
)
from attnguide.sampling.observer import BatchInfo
from attnguide.sheet import run_sheet
from attnguide.types import SampleResult

Scorer = Callable[[SampleResult], Mapping[str, float]]


class RunFolder(SamplingCallback):
    """Writes ``config.yaml``, ``records.csv`` (a line per row, as soon as its batch is done) and ``sheet.png``.

    Put it after :class:`~attnguide.callbacks.samples.Samples`, so that a row is on record only when its picture is on disk.

    Args:
        config: The resolved configuration; the rows of the data module when ``None``.
        resume: Go on in a folder that holds a stopped run: lines of unfinished rows are dropped from every table.
        scorer: Numbers about a finished row, which become columns.
        sheet: Whether to draw ``sheet.png``.

    Attributes:
        records: Lines written by this process.

    Raises:
        ValueError: When the run begins, if the folder holds another one.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        scorer: Scorer | None = None,
        sheet: bool = True,
    ) -> None:
        self.config = config
        self.resume = resume
        self.scorer = scorer
        self.sheet = sheet
        self.records: list[dict[str, Any]] = []
        self._size: tuple[int, int] | None = None
        self._scores: dict[str, Mapping[str, float]] = {}

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            check_run_folder(folder, resume=self.resume)
            if self.resume:
                finished = finished_ids(folder)
                for table in ROW_TABLES:
                    keep_rows(folder / table, finished)
            config = self.config if self.config is not None else self._rows_of(trainer)
            if config is not None and not (self.resume and (folder / CONFIG_FILE).exists()):
                write_atomic(folder / CONFIG_FILE, config_text(config))
        trainer.strategy.barrier()

    def _rows_of(self, trainer: L.Trainer) -> dict[str, Any] | None:
        samples = getattr(trainer.datamodule, "samples", None)  # type: ignore[attr-defined]
        return config_of(samples) if samples else None

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        self._size = info.model.default_size
        self._scores.clear()

    def row_metrics(self, result: SampleResult) -> Mapping[str, float]:
        if self.scorer is None or result.image is None:
            return {}
        if result.sample.id not in self._scores:
            self._scores[result.sample.id] = dict(self.scorer(result))
        return self._scores[result.sample.id]

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        for result in results:
            record = record_of(result, row_metrics(trainer, result), self._size)
            append_table(run_folder(trainer) / RECORDS_FILE, tuple(record), [record])
            self.records.append(record)

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._draw_sheet(trainer)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """A run that is stopped still shows what it finished."""
        if trainer.is_global_zero and self.records:
            self._draw_sheet(trainer)

    def _draw_sheet(self, trainer: L.Trainer) -> None:
        picture = run_sheet(run_folder(trainer)) if self.sheet else None
        if picture is not None:
            with replacing(run_folder(trainer) / "sheet.png") as temporary:
                picture.save(temporary)
