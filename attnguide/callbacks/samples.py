"""Writes finished pictures as PNG files."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from attnguide.callbacks.base import SamplingCallback, run_folder
from attnguide.run_folder.files import write_picture
from attnguide.run_folder.records import SAMPLES_FOLDER
from attnguide.types import SampleResult


class Samples(SamplingCallback):
    """Writes ``samples/<row id>.png`` as soon as a batch is done; rows that stopped have no picture."""

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        for result in results:
            if result.image is not None:
                write_picture(run_folder(trainer) / SAMPLES_FOLDER / f"{result.sample.id}.png", result.image)
