"""Callbacks and schedules of a training: its time limit, learning rate, weight averages and checkpoints."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger(__name__)

Progress = Callable[[int], float]
"""Share of a training that is done at a step, from 0 to 1."""


DECAY = 0.4
"""Share of a training over which its learning rate falls to 0."""


def learning_rate_factor(step: int, progress: float, warmup: int = 200, decay: float = DECAY) -> float:
    """Learning-rate factor: linear warmup over ``warmup`` steps, constant, then linear decay to 0 over the last ``decay``.

    Because of the constant part, a training that is resumed and extended equals one that was that long from the start.
    """
    return max(0.0, min(1.0, (step + 1) / warmup, (1 - progress) / decay))


def paced(optimizer: Optimizer, progress: Progress) -> dict[str, Any]:
    """Lightning's optimizer configuration with the schedule of :func:`learning_rate_factor`."""
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, progress(step)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Clock:
    """Time limit of a command, counted from construction.

    Args:
        minutes: Minutes until the time is up; ``None`` for no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self.seconds = None if minutes is None else 60 * minutes
        self.begin = time.monotonic()

    @property
    def is_up(self) -> bool:
        """Whether the time is over."""
        return self.seconds is not None and time.monotonic() - self.begin >= self.seconds

    def progress(self, falling: float = DECAY) -> Progress:
        """Progress function of the time from now to the limit: the share that has passed at a later step.

        Args:
            falling: Share of that time over which the rate shall fall to 0. With another one than :data:`DECAY` the time is
                taken for the end of a longer or shorter training, and progress begins above or below 0.
        """
        start, end = time.monotonic(), self.begin + (self.seconds or 0.0)

        def progress(step: int) -> float:
            left = 0.0 if end <= start else max((end - time.monotonic()) / (end - start), 0.0)
            return 1.0 - left * DECAY / falling

        return _shared(progress)


def _shared(progress: Progress) -> Progress:
    """The first process's progress in every process of a group: their clocks differ, and their rates must not."""

    def shared(step: int) -> float:
        share = torch.tensor(progress(step), dtype=torch.float64)
        if dist.is_initialized():
            dist.broadcast(share, src=0)
        return float(share)

    return shared


class Averages(WeightAveraging):
    """Exponential moving averages of the weights, which previews and exports use.

    The decay of a step rises with the number ``n`` of steps seen, ``min(decay, (1 + n) / (10 + n))``, so that a short
    training's mean forgets where it began. Buffers are the newest ones, as means of whole numbers are none.

    Args:
        device: Device of the averages; should be that of the weights, or every step waits for copies.
        every: Steps between updates; an update synchronises with the device.
        decay: Final decay per step.
    """

    def __init__(self, device: str = "cpu", every: int = 1, decay: float = 0.998) -> None:
        def update(means: list[Tensor], weights: list[Tensor], seen: Tensor) -> None:
            kept = decay_after(int(seen) * every, decay) ** every
            torch._foreach_lerp_(means, weights, 1 - kept)

        super().__init__(device=device, use_buffers=False, multi_avg_fn=update)
        self.every = every

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether to update: at every ``every``-th step."""
        return step_idx is not None and step_idx % self.every == 0


def decay_after(seen: int, decay: float) -> float:
    """Decay of the moving average after ``seen`` steps."""
    return min(decay, (1 + seen) / (10 + seen))


class Keeper(Callback):
    """Writes a checkpoint every few minutes and at the end, and stops the training at the time limit or on SIGTERM.

    Of several processes one that is told to stop stops all.

    Args:
        path: File of the checkpoint, replaced atomically.
        clock: Time limit of the command.
        every: Minutes between checkpoints.

    Raises:
        RuntimeError: If a weight is not finite; the former checkpoint is kept.
    """

    def __init__(self, path: Path, clock: Clock, every: float) -> None:
        self.path, self.clock, self.every = path, clock, every
        self.written, self.told = time.monotonic(), False

    def _told_to_stop(self, *_: Any) -> None:
        self.told = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before = signal.signal(signal.SIGTERM, self._told_to_stop)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.strategy.reduce_boolean_decision(self.told or self.clock.is_up, all=False):
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # a trainer that stops early validates once more, for which there is no time
        last = trainer.should_stop or trainer.global_step == trainer.max_steps
        due = time.monotonic() - self.written >= 60 * self.every
        if last or trainer.strategy.reduce_boolean_decision(due, all=False):
            if not all(bool(weight.isfinite().all()) for weight in pl_module.parameters()):
                raise RuntimeError(f"weights are no longer finite at step {trainer.global_step}; {self.path} is as it was")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                part.replace(self.path)
            self.written = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self.before)


class Told(Callback):
    """Logs step, speed and losses at intervals, and the scores of previews, for log files.

    Args:
        every: Seconds between lines.
    """

    def __init__(self, every: float = 20.0) -> None:
        self.every, self.step, self.since = every, 0, time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step, self.since = trainer.global_step, time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        now = time.monotonic()
        if now - self.since < self.every:
            return
        rate = (trainer.global_step - self.step) / (now - self.since)
        log.info("step %d, %.2f steps a second, %s", trainer.global_step, rate, _numbers(trainer, previews=False))
        self.step, self.since = trainer.global_step, now

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        log.info("step %d, preview: %s", trainer.global_step, _numbers(trainer, previews=True))


def _numbers(trainer: L.Trainer, *, previews: bool) -> str:
    """Text of the newest logged metrics, of previews or of training."""
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("preview/") == previews}
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())
