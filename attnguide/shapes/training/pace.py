"""When a training stops, how fast it learns on the way there, and its checkpoints."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger(__name__)

Progress = Callable[[int], float]
"""Share of a training that is done at a step, from 0 to 1."""


def learning_rate_factor(step: int, progress: float, warmup: int = 200, decay: float = 0.4) -> float:
    """Rise over ``warmup`` steps, hold, then fall in a line to 0 over the last ``decay`` of the training.

    The held part makes a training that is resumed and made longer go on as if it had been that long from the start.
    """
    return max(0.0, min(1.0, (step + 1) / warmup, (1 - progress) / decay))


def paced(optimizer: Optimizer, progress: Progress) -> dict[str, Any]:
    """What Lightning wants of an optimizer whose learning rate follows :func:`learning_rate_factor`."""
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, progress(step)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Clock:
    """Time left to a command that may run for some minutes; it starts when made.

    Args:
        minutes: How long; ``None`` for ever.
    """

    def __init__(self, minutes: float | None) -> None:
        self.seconds = None if minutes is None else 60 * minutes
        self.begin = time.monotonic()

    @property
    def is_up(self) -> bool:
        """Whether the time is over."""
        return self.seconds is not None and time.monotonic() - self.begin >= self.seconds

    def progress(self) -> Progress:
        """Share of what is left now that will have passed at a later step."""
        start, end = time.monotonic(), self.begin + (self.seconds or 0.0)
        return lambda step: 1.0 if end <= start else min((time.monotonic() - start) / (end - start), 1.0)


class Averages(WeightAveraging):
    """Running means of the weights, which are what is looked at and exported.

    The decay of a step rises with the number ``n`` of steps seen, ``min(decay, (1 + n) / (10 + n))``, so that a short
    training's mean forgets where it began. Buffers are the newest ones, as means of whole numbers are none.

    Args:
        device: Where the means are kept; that of the weights, or every step waits for copies from one to the other.
        every: Steps from one update to the next; an update reads a number off the device, which waits until it is idle.
        decay: Where it ends.
    """

    def __init__(self, device: str = "cpu", every: int = 1, decay: float = 0.998) -> None:
        def update(means: list[Tensor], weights: list[Tensor], seen: Tensor) -> None:
            kept = decay_after(int(seen) * every, decay) ** every
            torch._foreach_lerp_(means, weights, 1 - kept)

        super().__init__(device=device, use_buffers=False, multi_avg_fn=update)
        self.every = every

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """At every ``every``-th step."""
        return step_idx is not None and step_idx % self.every == 0


def decay_after(seen: int, decay: float) -> float:
    """Decay of a running mean of so many weights."""
    return min(decay, (1 + seen) / (10 + seen))


class Keeper(Callback):
    """Writes a checkpoint every few minutes and at the end, and ends the training when its time is over or SIGTERM arrives.

    Args:
        path: The checkpoint; a new one takes the old one's place once it is whole.
        clock: The command's time.
        every: Minutes between checkpoints.

    Raises:
        RuntimeError: If a weight is no longer finite; the checkpoint stays as it was.
    """

    def __init__(self, path: Path, clock: Clock, every: float) -> None:
        self.path, self.clock, self.every = path, clock, every
        self.written, self.told = time.monotonic(), False

    def _told_to_stop(self, *_: Any) -> None:
        self.told = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before = signal.signal(signal.SIGTERM, self._told_to_stop)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.told or self.clock.is_up:
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # a trainer that stops early validates once more, for which there is no time
        last = trainer.should_stop or trainer.global_step == trainer.max_steps
        if last or time.monotonic() - self.written >= 60 * self.every:
            if not all(bool(weight.isfinite().all()) for weight in pl_module.parameters()):
                raise RuntimeError(f"weights are no longer finite at step {trainer.global_step}; {self.path} is as it was")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            trainer.save_checkpoint(part)
            part.replace(self.path)
            self.written = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self.before)


class Told(Callback):
    """Logs now and then where a training stands, and what previews scored, for who reads it in a file.

    Args:
        every: Seconds from one line to the next.
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
    """The newest numbers that were logged, of previews or of training."""
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("preview/") == previews}
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())
