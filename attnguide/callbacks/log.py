"""The W&B run of a trainer."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger


def wandb_run(trainer: L.Trainer) -> Any | None:
    """The W&B run of the trainer's first ``WandbLogger``; ``None`` without one, or on a process other than the first."""
    if not trainer.is_global_zero:
        return None
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            return logger.experiment
    return None
