"""From numbers and pictures to whichever loggers a trainer has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

DENOISE_STEP = "denoise/step"
"""The axis of curves over the denoising steps, in W&B."""


def wandb_run(trainer: L.Trainer) -> Any | None:
    """The W&B run on this process, if the trainer has one."""
    if not trainer.is_global_zero:
        return None
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            return logger.experiment
    return None


def log_curves(trainer: L.Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Log values of one denoising step as ``denoise/<name>``.

    W&B gets the step as a value, because it refuses steps that go back, and every batch starts at 0 again.
    """
    if not metrics:
        return
    named = {f"denoise/{name}": value for name, value in metrics.items()}
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_metrics({**named, DENOISE_STEP: float(step)})
        else:
            logger.log_metrics(named, step=step)


class CurveRows:
    """Chooses whose curves are logged: the first rows of a run, because a chart of a thousand rows helps nobody.

    Args:
        limit: Most rows.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._ids: set[str] = set()

    def __contains__(self, id: str) -> bool:
        if len(self._ids) < self.limit:
            self._ids.add(id)
        return id in self._ids


def log_row(trainer: L.Trainer, metrics: Mapping[str, float], row: int) -> None:
    """Log values of one finished row as ``row/<name>``, against the count of rows."""
    named = {f"row/{name}": float(value) for name, value in metrics.items()}
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_metrics({**named, "row/index": float(row)})
        else:
            logger.log_metrics(named, step=row)


def log_picture(trainer: L.Trainer, key: str, picture: Image.Image, caption: str) -> None:
    """Log a picture where the logger takes pictures: W&B and TensorBoard."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            import wandb

            logger.experiment.log({key: wandb.Image(picture.convert("RGB"), caption=caption)})
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"{key}/{caption}", np.asarray(picture.convert("RGB")), dataformats="HWC")
