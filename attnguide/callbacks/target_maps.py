"""Writes the masks that rows took from the attention maps of source pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import lightning as L

from attnguide.callbacks.base import SamplingCallback, run_folder
from attnguide.engine.observer import BatchInfo
from attnguide.run_folder.files import replacing, write_atomic
from attnguide.sources.files import map_bytes, map_picture, target_path
from attnguide.types import SampleResult


class TargetMaps(SamplingCallback):
    """Writes the mask of every region that has a source; rows without sources write no files.

    Files, in ``targets/<row id>/``: ``<phrase>.png``, to look at and to paint on, and ``<phrase>.npy``, the same in full
    precision; either can be a region's mask. Adds metrics of inverted source pictures to the record: ``reconstruction_mse``,
    ``reconstruction_psnr`` (of the picture, in decibels) and ``reconstruction_latents_mse``.
    """

    only_shows = True

    def __init__(self) -> None:
        self._measured: dict[str, Mapping[str, float]] = {}

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        self._measured = dict(zip((sample.id for sample in info.samples), info.measured, strict=False))
        for sample in info.samples:
            for index, region in enumerate(sample.regions):
                if region.source is None or region.mask is None or isinstance(region.mask, Path):
                    continue
                path = target_path(run_folder(trainer), sample.id, sample.regions, index)
                with replacing(path) as temporary:
                    map_picture(region.mask).save(temporary)
                write_atomic(path.with_suffix(".npy"), map_bytes(region.mask))

    def row_metrics(self, result: SampleResult) -> Mapping[str, float]:
        return self._measured.get(result.sample.id, {})
