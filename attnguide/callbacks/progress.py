"""Progress of a run: bars in a terminal, lines of text elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from attnguide.callbacks.base import SamplingCallback
from attnguide.engine.observer import BatchInfo, UpdateEvent
from attnguide.types import SampleResult, Step


class ProgressBar(RichProgressBar):
    """Lightning's Rich bar over batches, with a second one over denoising steps that shows guidance at work.

    Args:
        refresh_rate: Batches between two updates of the bar; see ``RichProgressBar``.
        leave: Whether the finished bar stays in the terminal; see ``RichProgressBar``.
        stream: Terminal to draw in; standard output when ``None``.
    """

    only_shows = True
    failed = False

    def __init__(self, refresh_rate: int = 1, leave: bool = False, stream: TextIO | None = None) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave, console_kwargs={"file": stream} if stream else None)
        self._steps: int | None = None
        self._count = 0
        self._done = 0

    @property
    def predict_description(self) -> str:
        return "Batches"

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        """Add the bar over denoising steps."""
        if self.is_disabled or self.progress is None:
            return
        self._count = len(info.steps)
        self._steps = self._add_task(self._count, "Steps")

    def on_guidance_update(self, trainer: L.Trainer, module: L.LightningModule, event: UpdateEvent) -> None:
        """Show the newest update: method, number within the step, rows that moved, mean loss."""
        loss = sum(event.losses) / max(len(event.losses), 1)
        self._describe(f"{event.method}, update {event.iteration + 1} on {sum(event.moved)} rows, loss {loss:.3g}")

    def on_denoise_step_end(
        self, trainer: L.Trainer, module: L.LightningModule, step: Step, latents: Tensor, noise_pred: Tensor
    ) -> None:
        """Advance the bar over denoising steps."""
        if self._steps is not None:
            self._update(self._steps, step.index + 1)  # type: ignore[arg-type]
            self._describe("Steps")

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        """Remove the bar over steps, and show the number of rows left beside the bar over batches."""
        self._end_rows(trainer, len(results))

    def on_rows_given_up(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        """Count the rows as done, and remove the bar over steps of a batch that was lost."""
        self._end_rows(trainer, len(results))

    def _end_rows(self, trainer: L.Trainer, count: int) -> None:
        if self._steps is not None:
            self._update(self._steps, self._count, visible=False)  # type: ignore[arg-type]
        self._steps = None
        self._done += count
        total = _rows_of_run(trainer)
        if total is not None and self.progress is not None and self.predict_progress_bar_id is not None:
            text = f"{self.predict_description}, {total - self._done} of {total} rows left"
            self.progress.update(self.predict_progress_bar_id, description=text)

    def _describe(self, text: str) -> None:
        if self._steps is not None and self.progress is not None:
            self.progress.update(self._steps, description=text)  # type: ignore[arg-type]
            self.refresh()

    def _init_progress(self, trainer: L.Trainer) -> None:
        printed = sys.stdout
        super()._init_progress(trainer)
        if not terminal(printed):
            sys.stdout = printed  # Rich redirects prints above the bar; output that goes to a file must stay there


def _rows_of_run(trainer: L.Trainer) -> int | None:
    """Number of rows that this run has to make; ``None`` if several processes share them, or the data module has no count."""
    rows = getattr(trainer.datamodule, "remaining", None)  # type: ignore[attr-defined]
    return len(rows) if rows is not None and trainer.world_size == 1 else None


class LineProgress(SamplingCallback):
    """Writes a line of text per finished row, with rows and estimated time left; for output that is no terminal.

    Args:
        stream: Stream to write to; standard error when ``None``.
    """

    only_shows = True

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self._done = 0
        self._made = 0
        self._began = 0.0

    def on_predict_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._done, self._made, self._began = 0, 0, time.monotonic()

    def on_rows_given_up(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        for result in results:
            self._tell(trainer, f"{result.sample.id}: {result.sample.method}, {result.status}")

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        total = _rows_of_run(trainer)
        self._made += len(results)
        each = (time.monotonic() - self._began) / self._made  # rows that were given up took no time
        for result in results:
            left = 0 if total is None else total - self._done - 1
            waiting = f"{left} rows and about {_minutes(left * each)} left, " if left > 0 else ""
            row, cost = result.sample, result.cost
            passes = f"{cost.unet_forwards} forwards, {cost.unet_backwards} backwards"
            line = f"{row.id}: {row.method}, seed {row.seed}, {passes}, {cost.seconds:.1f} s, {waiting}{result.status}"
            self._tell(trainer, line)

    def _tell(self, trainer: L.Trainer, line: str) -> None:
        total, stream = _rows_of_run(trainer), self.stream or sys.stderr
        self._done += 1
        stream.write(f"[{self._done}{'' if total is None else f'/{total}'}] {line}\n")
        stream.flush()


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def terminal(stream: TextIO | None = None) -> TextIO | None:
    """``stream``, or the first of standard error and standard output, if it is a terminal; otherwise ``None``."""
    streams = (sys.stderr, sys.stdout) if stream is None else (stream,)
    return next((found for found in streams if found is not None and found.isatty()), None)


def progress_bar(stream: TextIO | None = None) -> L.Callback:
    """A :class:`ProgressBar` in a terminal, a :class:`LineProgress` elsewhere.

    Args:
        stream: Stream to write to; when ``None``, the terminal among standard error and standard output, else standard error.
    """
    drawn = terminal(stream)
    return ProgressBar(stream=drawn) if drawn is not None else LineProgress(stream)
