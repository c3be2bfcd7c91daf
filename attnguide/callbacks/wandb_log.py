"""Weights & Biases: configuration, samples with their regions, and a table of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np

from attnguide.callbacks.base import SamplingCallback, row_metrics, run_folder
from attnguide.callbacks.log import DENOISE_STEP, wandb_run
from attnguide.folder import config_of
from attnguide.prompt.drawing import binary_mask
from attnguide.records import Defaults, model_defaults, record_of
from attnguide.sampling.observer import BatchInfo
from attnguide.types import Region, SampleResult


class WandbLog(SamplingCallback):
    """Adds to a ``WandbLogger`` what curves alone do not say; does nothing where the trainer has none.

    The configuration; one axis for curves over denoising steps and one for finished rows; every sample with region boxes and
    masks as overlays; at the end the table ``rows``, a line per row, of the rows sampled on the first process.

    Args:
        config: The resolved configuration; the rows of the data module when ``None``.
    """

    only_shows = True

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self._records: list[dict[str, Any]] = []
        self._defaults: Defaults | None = None

    def on_predict_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        run = wandb_run(trainer)
        if run is None:
            return
        for axis, curves in ((DENOISE_STEP, "denoise/*"), ("row/index", "row/*"), ("row/index", "sample/*")):
            run.define_metric(axis, hidden=True)
            run.define_metric(curves, step_metric=axis)
        samples = getattr(trainer.datamodule, "samples", ())  # type: ignore[attr-defined]
        config = self.config if self.config is not None else config_of(samples)
        run.config.update(dict(config), allow_val_change=True)

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        if self._defaults is None:
            self._defaults = model_defaults(info.model, info.samples[0].steps)

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        run = wandb_run(trainer)
        if run is None:
            return
        for result in results:
            record = record_of(result, row_metrics(trainer, result), self._defaults or Defaults())
            picture = _overlaid(result)
            if picture is not None:
                run.log({f"sample/{result.sample.method}": picture, "row/index": float(len(self._records))})
            self._records.append({**record, "picture": _plain_picture(result)})

    def on_rows_given_up(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        if wandb_run(trainer) is not None:
            self._records += [{**record_of(result), "picture": None} for result in results]

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        run = wandb_run(trainer)
        if run is None or not self._records:
            return
        import wandb

        columns: list[str | int] = list(dict.fromkeys(name for record in self._records for name in record))
        columns = ["picture", *(name for name in columns if name != "picture")]
        table = wandb.Table(columns=columns, allow_mixed_types=True)
        for record in self._records:
            table.add_data(*(record.get(str(name)) for name in columns))
        run.log({"rows": table})
        sheet = run_folder(trainer) / "sheet.png"
        if sheet.exists():
            run.log({"sheet": wandb.Image(str(sheet))})
        self._records = []


def _pixels(result: SampleResult) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8, because W&B would cast numbers in [0, 1] to a black picture."""
    assert result.image is not None
    return np.asarray(result.image.convert("RGB"), dtype=np.uint8)


def _plain_picture(result: SampleResult) -> Any | None:
    import wandb

    return None if result.image is None else wandb.Image(_pixels(result))


def _overlaid(result: SampleResult) -> Any | None:
    import wandb

    if result.image is None:
        return None
    sample = result.sample
    caption = f"{sample.id}: {sample.prompt} (seed {sample.seed}, {sample.method})"
    boxes, masks = region_overlays(sample.regions, result.image.height, result.image.width)
    return wandb.Image(_pixels(result), caption=caption, boxes=boxes or None, masks=masks or None)


def region_overlays(regions: Sequence[Region], height: int, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Regions as W&B's ``boxes`` (in fractions) and, for other places, ``masks`` at the picture's size; a class per phrase.

    Args:
        regions: Those without a place are left out.
        height: Of the picture.
        width: Likewise.
    """
    labels = {index: region.phrase for index, region in enumerate(regions, 1)}
    boxes, masks = [], {}
    for index, region in enumerate(regions, 1):
        if region.box is not None:
            x0, y0, x1, y1 = region.box
            corners = {"minX": x0, "maxX": x1, "minY": y0, "maxY": y1}
            boxes.append({"position": corners, "class_id": index, "box_caption": region.phrase})
        elif region.has_place:
            filled = binary_mask(region, height, width).numpy().astype(np.uint8) * index
            masks[f"{region.phrase} ({index})"] = {"mask_data": filled, "class_labels": labels}
    return ({"regions": {"box_data": boxes, "class_labels": labels}} if boxes else {}), masks
