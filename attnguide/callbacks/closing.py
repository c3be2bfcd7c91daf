"""The contract of a callback that writes what a run comes to."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress

import lightning as L

from attnguide.callbacks.base import SamplingCallback


class ClosingCallback(SamplingCallback):
    """A callback that writes and logs once all rows are on record, or once the run is stopped; the first process alone does."""

    @abstractmethod
    def finish(self, trainer: L.Trainer) -> None:
        """Write the files of the rows on record, and log them."""

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Finish, once every process has recorded its rows."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self.finish(trainer)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Finish a stopped run; what a disk or a logger refuses then does not hide why the run stopped."""
        if trainer.is_global_zero:
            with suppress(Exception):
                self.finish(trainer)
