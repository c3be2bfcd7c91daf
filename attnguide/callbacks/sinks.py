"""Sinks: one interface to Lightning's loggers for a run's configuration, curves, pictures, tables and summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from attnguide.callbacks.flat_config import Plain
from attnguide.callbacks.keys import AXES, SHOWN, UNSHOWN
from attnguide.loggers import TRACKIO_LOGGER
from attnguide.prompt.drawing import binary_mask
from attnguide.sheets.overlays import draw_regions
from attnguide.types import Region

MOST_PICTURES = 100
"""Most pictures logged under one key; W&B takes no more than 108 at once."""

_SMALLEST = 256
"""Side to which small pictures are enlarged before regions are drawn on them."""


@dataclass(frozen=True)
class Picture:
    """A picture of a run, as it is logged.

    Attributes:
        path: The picture's file; ``None`` for a row without a picture, which keeps its place in the list.
        caption: Caption in the logger.
        regions: Regions that are drawn over it, or passed to the logger as overlays.
    """

    path: Path | None
    caption: str
    regions: Sequence[Region] = field(default=())

    def image(self) -> Image.Image:
        """The picture in RGB; a grey square of 64 pixels if there is no file."""
        if self.path is None:
            return Image.new("RGB", (64, 64), (238, 238, 238))
        with Image.open(self.path) as file:
            return file.convert("RGB")

    def drawn(self) -> Image.Image:
        """The picture with its regions drawn in, for loggers without overlays."""
        image = self.image()
        if not self.regions:
            return image
        scale = max(1.0, _SMALLEST / min(image.size))
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        try:
            return draw_regions(image, self.regions)
        except ValueError:  # the file of a mask no longer exists
            return image

    def overlays(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """W&B's boxes and masks, see :func:`region_overlays`; empty if the file of a mask no longer exists."""
        image = self.image()
        try:
            return region_overlays(self.regions, image.height, image.width)
        except ValueError:
            return {}, {}


class Sink:
    """Writes to any Lightning logger: metrics and the configuration; pictures and tables are dropped.

    Args:
        logger: A Lightning logger.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def begin(self, config: Mapping[str, Plain]) -> None:
        """Log the flat configuration as hyperparameters."""
        self.logger.log_hyperparams(dict(config))

    def point(self, values: Mapping[str, float], step: int, axes: Mapping[str, float]) -> None:
        """Log the values of curves at one step.

        Args:
            values: Key of a curve -> its value.
            step: The logger's step.
            axes: Key of an axis -> the position on it, for loggers with axes of their own.
        """
        self.logger.log_metrics({**values, **axes}, step=step)

    def pictures(self, key: str, pictures: Sequence[Picture]) -> None:
        """Log pictures of one key, at most :data:`MOST_PICTURES`."""

    def table(self, key: str, columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
        """Log a table; the column ``picture`` holds a :class:`Picture` or ``None``."""

    def summary(self, values: Mapping[str, float], config: Mapping[str, Plain]) -> None:
        """Log the run's final metrics, by key."""
        self.logger.log_metrics(dict(values))


class WandbSink(Sink):
    """W&B: axes of their own for curves, boxes and masks as overlays, tables."""

    logger: WandbLogger

    def begin(self, config: Mapping[str, Plain]) -> None:
        run = self.logger.experiment
        for axis in AXES:
            run.define_metric(axis, hidden=True)
        for hidden, curves in ((False, SHOWN), (True, UNSHOWN)):
            for axis, keys in curves.items():
                for key in keys:
                    run.define_metric(key, step_metric=axis, hidden=hidden)
        run.config.update(dict(config), allow_val_change=True)

    def point(self, values: Mapping[str, float], step: int, axes: Mapping[str, float]) -> None:
        self.logger.experiment.log({**values, **axes})  # W&B's own step cannot go back, so that none is given

    def pictures(self, key: str, pictures: Sequence[Picture]) -> None:
        self.logger.experiment.log({key: [self._image(picture) for picture in pictures[:MOST_PICTURES]]})

    def table(self, key: str, columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        names: list[str | int] = list(columns)
        table = wandb.Table(columns=names, allow_mixed_types=True)
        for line in lines:
            table.add_data(*(self._cell(line.get(name)) for name in columns))
        self.logger.experiment.log({key: table})

    def summary(self, values: Mapping[str, float], config: Mapping[str, Plain]) -> None:
        self.logger.experiment.summary.update(dict(values))

    def _cell(self, value: Any) -> Any:
        import wandb

        if not isinstance(value, Picture):
            return value
        return wandb.Image(np.asarray(value.image())) if value.path is not None else None

    def _image(self, picture: Picture) -> Any:
        import wandb

        boxes, masks = picture.overlays()
        # uint8, because W&B would cast numbers in [0, 1] to a black picture
        return wandb.Image(np.asarray(picture.image()), caption=picture.caption, boxes=boxes or None, masks=masks or None)


class TensorBoardSink(Sink):
    """TensorBoard: pictures with their regions drawn in, a step a picture; hyperparameters beside the last numbers."""

    logger: TensorBoardLogger

    def begin(self, config: Mapping[str, Plain]) -> None:
        """Do nothing: TensorBoard takes hyperparameters once, together with the final metrics (:meth:`summary`)."""

    def pictures(self, key: str, pictures: Sequence[Picture]) -> None:
        for index, picture in enumerate(pictures[:MOST_PICTURES]):
            self.logger.experiment.add_image(key, np.asarray(picture.drawn()), index, dataformats="HWC")

    def summary(self, values: Mapping[str, float], config: Mapping[str, Plain]) -> None:
        self.logger.log_hyperparams(dict(config), dict(values))


class TrackioSink(Sink):
    """trackio: pictures with their regions drawn in, tables."""

    logger: Any

    def pictures(self, key: str, pictures: Sequence[Picture]) -> None:
        for index, picture in enumerate(pictures[:MOST_PICTURES]):
            self.logger.log_image(key, picture.drawn(), picture.caption, index)

    def table(self, key: str, columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
        names = [name for name in columns if name != "picture"]
        self.logger.log_table(key, names, [[line.get(name) for name in names] for line in lines])


def sinks_of(trainer: L.Trainer) -> list[Sink]:
    """A sink for each of the trainer's loggers; empty on processes other than the first."""
    if not trainer.is_global_zero:
        return []
    return [_sink(logger) for logger in trainer.loggers]


def _sink(logger: Logger) -> Sink:
    if isinstance(logger, WandbLogger):
        return WandbSink(logger)
    if isinstance(logger, TensorBoardLogger):
        return TensorBoardSink(logger)
    return TrackioSink(logger) if type(logger).__name__ == TRACKIO_LOGGER else Sink(logger)


def region_overlays(regions: Sequence[Region], height: int, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Regions as W&B's ``boxes`` (in fractions) and, for other places, ``masks`` at the picture's size; a class per phrase.

    Args:
        regions: Regions; those without a place are left out.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
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
