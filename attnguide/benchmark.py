"""Samples a layout file with any methods and judges the pictures; resumable row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.judges.base import Asked
from attnguide.judges.patches import seen_patches, shapes_by_color
from attnguide.judges.shapes import asked_from_layout, seen_shapes
from attnguide.metrics.functional import score
from attnguide.models.base import ModelAdapter
from attnguide.prompt.targets import region_maps
from attnguide.sampling.table import sample_rows
from attnguide.shapes.judge import judge
from attnguide.shapes.layouts import Layout
from attnguide.statistics import clustered_mean
from attnguide.types import MethodConfig, PassContext, Region, Sample, SampleResult, verdict

FIELDS = (
    "id",
    "category",
    "prompt",
    "seed",
    "held_out",
    "objects",
    "method",
    "status",
    "unet_forwards",
    "unet_backwards",
    "seconds",
)


RECORDS_FILE, SETTINGS_FILE = "records.csv", "settings.json"


class OtherSettingsError(ValueError):
    """A folder has rows that were made with other settings."""


def layout_samples(
    layouts: Iterable[Layout], seeds: Sequence[int], methods: Sequence[MethodConfig] = (), **settings: Any
) -> list[Sample]:
    """One row per layout and seed, with a region for every box; ``settings`` are fields of :class:`~attnguide.types.Sample`.

    Several instances of one phrase become several regions of that phrase.
    """
    return [
        Sample(
            id=f"{layout.id}-{seed}",
            prompt=layout.prompt,
            seed=seed,
            regions=tuple(Region(phrase, box=box) for phrase, box in zip(layout.phrases, layout.boxes, strict=True)),
            methods=tuple(methods),
            tags={"category": layout.category, "held_out": layout.held_out, "objects": len(layout.boxes)},
            **settings,
        )
        for layout in layouts
        for seed in seeds
    ]


class Localisation(Observer):
    """Observer of the share of each word's attention that falls on its object, by map size or by block.

    ``table`` maps a map size (``16x16``) or a block's name to pairs (share of the word's map inside the object's mask, share of
    the picture that the mask covers), one for each word whose object the judge found exactly once.

    Args:
        per_block: Whether to group by block, for networks whose maps all have one size, instead of by map size.
        any_shape: Whether a patch of a word's colour is its object, however badly it is drawn.
    """

    def __init__(self, per_block: bool = False, any_shape: bool = False) -> None:
        self.per_block, self.any_shape = per_block, any_shape
        self.table: dict[str, list[tuple[float, float]]] = {}
        self._sums: dict[Site, Tensor] = {}
        self._info: BatchInfo | None = None

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        self._info, self._sums = info, {}
        return [Probe("original_probs", self._record, SiteSelector(kind="cross"))]

    def _record(self, site: Site, probs: Tensor, context: PassContext) -> None:
        assert self._info is not None
        cond = probs[context.positions("cond")].mean(1)
        words = region_maps(cond, self._info.targets.tokens)
        self._sums[site] = self._sums.get(site, torch.zeros_like(words)) + words

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        groups: dict[tuple[str, int, int], list[Tensor]] = {}
        for site, total in sorted(self._sums.items(), key=lambda pair: (-pair[0].cells, pair[0].depth)):
            name = site.name if self.per_block else f"{site.height}x{site.width}"
            groups.setdefault((name, site.height, site.width), []).append(total)
        for row, result in enumerate(results):
            if result.image is None:
                continue
            phrases = (region.phrase.rsplit(" ", 1) for region in result.sample.regions)
            shapes = shapes_by_color((color, shape) for color, shape in phrases) if self.any_shape else None
            found = judge(result.image, shapes).detections
            for index, region in enumerate(result.sample.regions):
                masks = [d.mask for d in found if f"{d.color} {d.shape}" == region.phrase]
                if len(masks) != 1:
                    continue
                for (name, height, width), totals in groups.items():
                    words = torch.stack(totals).mean(0)[row, index]
                    mask = Image.fromarray(masks[0].astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
                    cover = torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255).flatten()
                    inside = float((words.cpu() * cover).sum() / words.sum().cpu())
                    self.table.setdefault(name, []).append((inside, float(cover.mean())))


def run_benchmark(
    model: ModelAdapter,
    layouts: Sequence[Layout],
    samples: Sequence[Sample],
    folder: Path,
    *,
    batch_size: int = 16,
    observer: Observer | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[dict[str, str]]:
    """Sample and judge the rows that are not in ``folder/records.csv`` yet.

    Args:
        model: The model adapter.
        layouts: Layouts of the rows, which say what each should show.
        samples: Rows of :func:`layout_samples`.
        folder: Folder for ``records.csv`` and ``samples/<row id>.png``; made with the first row.
        batch_size: Most rows in one batch.
        observer: Observer of the loop, which sees the new rows alone.
        settings: What decides the pictures beside the rows' ids, in types of JSON: model, weights, steps. It is kept in
            ``folder/settings.json``, written with the first row; not compared when ``None``.

    Returns:
        Records of ``samples``, those of earlier calls first, without other rows of the folder. Their scores are those of the
        judge ``shapes``, and with ``patches.`` before their names those of the judge ``patches``, which looks at colours alone.

    Raises:
        OtherSettingsError: If the folder's rows were made with other ``settings``, or nobody knows with which.
    """
    expected = {layout.id: asked_from_layout(layout) for layout in layouts}
    finished = {record["id"] for record in read_records(folder / RECORDS_FILE)}
    if settings is not None and finished:
        _require_same(folder, settings)
    waiting = [sample for sample in samples if sample.id not in finished]
    for result in sample_rows(model, waiting, batch_size=batch_size, observer=observer):
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        if settings is not None and not (folder / RECORDS_FILE).exists():
            (folder / SETTINGS_FILE).write_text(json.dumps(settings), encoding="utf-8")
        if result.image is not None:
            result.image.save(folder / "samples" / f"{result.sample.id}.png")
        _append(folder / RECORDS_FILE, _record(result, expected[result.sample.id.rsplit("-", 1)[0]]))
    asked = {sample.id for sample in samples}
    return [record for record in read_records(folder / RECORDS_FILE) if record["id"] in asked]


def _require_same(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder whose pictures were made with other settings; their scores would be told as if of these."""
    path = folder / SETTINGS_FILE
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if before != json.loads(json.dumps(settings)):
        known = "settings that are not on record" if before is None else before
        raise OtherSettingsError(f"{folder} holds pictures made with {known}; give another folder for {dict(settings)}")


def _record(result: SampleResult, asked: Asked) -> dict[str, Any]:
    """A row's line of ``records.csv``."""
    sample, scores = result.sample, dict[str, float]()
    if result.image is not None:
        by_color = score(seen_patches(result.image, asked), asked)
        scores = {**score(seen_shapes(result.image), asked), **{f"patches.{name}": found for name, found in by_color.items()}}
    return {
        "id": sample.id,
        "prompt": sample.prompt,
        "seed": sample.seed,
        "method": sample.method,
        "status": result.status,
        "unet_forwards": result.cost.unet_forwards,
        "unet_backwards": result.cost.unet_backwards,
        "seconds": f"{result.cost.seconds:.3f}",
        **sample.tags,
        "scores": json.dumps({name: round(float(value), 4) for name, value in scores.items()}),
    }


def _append(path: Path, record: Mapping[str, Any]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*FIELDS, "scores"], restval="")
        if fresh:
            writer.writeheader()
        writer.writerow(record)


def read_records(path: Path) -> list[dict[str, str]]:
    """Lines of a ``records.csv`` that :func:`run_benchmark` wrote; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def values_of(records: Iterable[Mapping[str, str]], metric: str) -> list[float]:
    """Values of a metric over records, without rows to which it does not apply; a row without a picture counts as 0."""
    values = []
    for record in records:
        scores = json.loads(record["scores"])
        if metric in scores:
            values.append(float(scores[metric]))
        elif verdict(record["status"]) != "ok":
            values.append(0.0)
    return values


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of independent ``values``.

    Raises:
        ValueError: If there are no values.
    """
    found = clustered_mean({index: [value] for index, value in enumerate(values)})
    if found is None:
        raise ValueError("values must hold at least one number; got none.")
    return found.low, found.high
