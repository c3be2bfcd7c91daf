"""Writes the run folder's configuration, records of rows, and contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import lightning as L

from attnguide.callbacks.base import SamplingCallback, row_metrics, run_folder
from attnguide.engine.observer import BatchInfo
from attnguide.run_folder.files import write_atomic, write_picture
from attnguide.run_folder.folder import RunLock, check_run_folder, config_of, config_text, locked_run, tidy
from attnguide.run_folder.made_with import CONFIG_FILE
from attnguide.run_folder.records import RECORDS_FILE, Defaults, model_defaults, record_of
from attnguide.run_folder.tables import append_table
from attnguide.sheets.sheet import run_sheet
from attnguide.types import SampleResult

Scorer = Callable[[SampleResult], Mapping[str, float]]


class RunFolder(SamplingCallback):
    """Writes ``config.yaml``, ``records.csv`` (a line per row, as soon as its batch is done) and ``sheet.png``.

    Put it after :class:`~attnguide.callbacks.samples.Samples`, so that a row is on record only when its picture is on disk.

    While the run lasts its folder is locked: another process is refused.

    Args:
        config: The resolved configuration; when ``None``, one made from the data module's rows.
        resume: Go on in a folder that holds a stopped run: temporary files, lines of unfinished rows and doubles are dropped.
        scorer: Computes metrics of a finished row, which become columns of its record.
        sheet: Whether to draw ``sheet.png``.
        lock: Lock of the folder, if the caller holds it already.

    Attributes:
        records: Records written by this process.

    Raises:
        ValueError: When the run begins, if the folder holds another one, or another process writes to it.
        FileNotFoundError: If the folder is removed during the run.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        scorer: Scorer | None = None,
        sheet: bool = True,
        lock: RunLock | None = None,
    ) -> None:
        self.config = config
        self.resume = resume
        self.scorer = scorer
        self.sheet = sheet
        self.records: list[dict[str, Any]] = []
        self._given = self._lock = lock
        self._held = ExitStack()
        self._defaults: Defaults | None = None
        self._scores: dict[str, Mapping[str, float]] = {}

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            self._lock = self._given or self._held.enter_context(locked_run(folder))
            check_run_folder(folder, resume=self.resume)
            if self.resume:
                tidy(folder)
            config = self.config if self.config is not None else self._rows_of(trainer)
            if config is not None and not (self.resume and (folder / CONFIG_FILE).exists()):
                write_atomic(folder / CONFIG_FILE, config_text(config))
        trainer.strategy.barrier()

    def _rows_of(self, trainer: L.Trainer) -> dict[str, Any] | None:
        samples = getattr(trainer.datamodule, "samples", None)  # type: ignore[attr-defined]
        return config_of(samples) if samples else None

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        if self._lock is not None:
            self._lock.check()
        if self._defaults is None:
            self._defaults = model_defaults(info.model, info.samples[0].steps)
        self._scores.clear()

    def row_metrics(self, result: SampleResult) -> Mapping[str, float]:
        if self.scorer is None or result.image is None:
            return {}
        if result.sample.id not in self._scores:
            self._scores[result.sample.id] = dict(self.scorer(result))
        return self._scores[result.sample.id]

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        if self._lock is not None:
            self._lock.check()
        for result in results:
            self._record(trainer, record_of(result, row_metrics(trainer, result), self._defaults or Defaults()))

    def _record(self, trainer: L.Trainer, record: dict[str, Any]) -> None:
        append_table(run_folder(trainer) / RECORDS_FILE, tuple(record), [record])
        self.records.append(record)

    def on_rows_given_up(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        """Write records of rows without a picture, with the reason as their status."""
        if self._lock is not None:
            self._lock.check()
        for result in results:
            self._record(trainer, record_of(result))

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._draw_sheet(trainer)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Draw the sheet of a stopped run's finished rows, if the disk allows it, and release the lock."""
        with suppress(OSError):
            if trainer.is_global_zero and self.records:
                self._draw_sheet(trainer)
        self._held.close()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Release the folder's lock."""
        self._held.close()

    def _draw_sheet(self, trainer: L.Trainer) -> None:
        picture = run_sheet(run_folder(trainer)) if self.sheet else None
        if picture is not None:
            write_picture(run_folder(trainer) / "sheet.png", picture)
