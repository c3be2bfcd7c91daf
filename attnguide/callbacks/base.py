"""The contract of a callback that watches sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.engine.observer import BatchInfo, UpdateEvent, guarded
from attnguide.types import SampleResult, Step


class SamplingCallback(L.Callback):
    """A Lightning callback with further hooks around the sampling loop; all do nothing until overridden.

    Callbacks observe: they must not write into a tensor they are shown. The order of the hooks stands at
    :class:`~attnguide.module.CallbackObserver`. Files go to the trainer's ``default_root_dir``.

    Example::

        class PrintSigma(SamplingCallback):
            def on_denoise_step_end(self, trainer, module, step, latents, noise_pred):
                print(step.index, step.sigma)

    Attributes:
        only_shows: Whether an exception of this callback becomes a warning and the run goes on. Callbacks that write results
            or are meant to stop the run leave it False.
        failed: Whether it raised in the newest batch; set only where ``only_shows`` is True.
    """

    only_shows: bool = False
    failed: bool = False

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        """Called once per batch, before :meth:`on_sample_start`; returns the probes that read attention during the batch."""
        return ()

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        """Called when a batch is ready, before its first step."""

    def on_denoise_step_start(self, trainer: L.Trainer, module: L.LightningModule, step: Step, latents: Tensor) -> None:
        """Called before guidance and the network's evaluation; ``latents`` is ``batch channels height width``."""

    def on_guidance_update(self, trainer: L.Trainer, module: L.LightningModule, event: UpdateEvent) -> None:
        """Called after each guide pass, with the rows whose loss it computed."""

    def on_denoise_step_end(
        self, trainer: L.Trainer, module: L.LightningModule, step: Step, latents: Tensor, noise_pred: Tensor
    ) -> None:
        """Called after the scheduler's step, with the new latents and the noise prediction of that step."""

    def on_row_stopped(self, trainer: L.Trainer, module: L.LightningModule, row: int, reason: str) -> None:
        """Called when a row of the batch is stopped, for instance because of a NaN; the other rows go on."""

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        """Called with the finished rows of a batch."""

    def on_rows_given_up(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        """Called with rows that end without :meth:`on_sample_end`: refused before their batch began, or lost with it."""

    def row_metrics(self, result: SampleResult) -> Mapping[str, float]:
        """Metrics of a row of the newest batch, which become columns of its record.

        Called any number of times after the batch's last step, possibly before this callback's own :meth:`on_sample_end`.
        """
        return {}


def run_folder(trainer: L.Trainer) -> Path:
    """The run folder, into which callbacks write: the trainer's ``default_root_dir``."""
    return Path(trainer.default_root_dir)


def row_metrics(trainer: L.Trainer, result: SampleResult) -> dict[str, float]:
    """Metrics of a row of the newest batch from all callbacks of a trainer; on equal names the later callback wins."""
    metrics: dict[str, float] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SamplingCallback) and not callback.failed:
            with guarded(callback):
                metrics.update(callback.row_metrics(result))
    return metrics
