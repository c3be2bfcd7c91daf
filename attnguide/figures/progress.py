"""A progress bar over denoising steps, for calls from Python."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from tqdm import tqdm

from attnguide.engine.observer import BatchInfo, Observer, UpdateEvent
from attnguide.types import SampleResult, Step


class StepBar(Observer):
    """Shows a progress bar on standard error: numbers of the batch's rows, its steps, the newest loss.

    Args:
        rows: Number of rows of the call; left out of the bar when ``None``.
    """

    def __init__(self, rows: int | None = None) -> None:
        self._rows, self._done = rows, 0
        self._bar: tqdm[None] | None = None

    def on_sample_start(self, info: BatchInfo) -> None:
        last = self._done + len(info.samples)
        of = f" of {self._rows}" if self._rows else ""
        self._bar = tqdm(total=len(info.steps), desc=f"rows {self._done + 1} to {last}{of}", unit="step", leave=True)

    def on_guidance_update(self, event: UpdateEvent) -> None:
        if self._bar is not None and event.losses:
            self._bar.set_postfix_str(f"{event.method} loss {sum(event.losses) / len(event.losses):.3g}", refresh=False)

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        self._done += len(results)
        if self._bar is not None:
            self._bar.close()
            self._bar = None
