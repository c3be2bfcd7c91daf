"""Logs a run: its configuration, its progress, and at the end the curves, pictures and tables of its run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from attnguide.callbacks import keys
from attnguide.callbacks.attention_maps import OVERVIEW
from attnguide.callbacks.base import SamplingCallback, row_metrics, run_folder
from attnguide.callbacks.flat_config import Plain, flat_config
from attnguide.callbacks.run_curves import Point, Spread, run_curves
from attnguide.callbacks.sinks import Picture, Sink, sinks_of
from attnguide.engine.observer import guarded
from attnguide.run_folder.folder import config_of
from attnguide.run_folder.records import CELL, COSTS, SAMPLES_FOLDER, SETTINGS, is_cell_column, read_records
from attnguide.sheets.sheet import recorded_regions
from attnguide.types import SampleResult, verdict

Record = Mapping[str, str]


class RunLog(SamplingCallback):
    """Logs a run to the trainer's loggers under keys that all runs share (:mod:`attnguide.callbacks.keys`).

    At the start: the flat configuration. After each batch: the number of finished rows, and their means by method. At the end,
    also of a stopped run, the content of the run folder, including rows that earlier processes made: curves over the steps as
    means over a method's rows, with standard deviations; pictures with regions, in lists with the same prompt and seed at the
    same index for every method; the table ``rows``; means by method and by cell.

    Put it after :class:`~attnguide.callbacks.run_folder.RunFolder`, whose files it reads.

    Args:
        config: The resolved configuration; when ``None``, one made from the data module's rows.
        facts: Further entries of the configuration: the command, an ablation's file and base.
        row_curves: Number of rows, from the first, whose own curves are logged beside the means.
    """

    only_shows = True

    def __init__(
        self, config: Mapping[str, Any] | None = None, *, facts: Mapping[str, Any] | None = None, row_curves: int = 0
    ) -> None:
        self.config, self.facts, self.row_curves = config, facts, row_curves
        self._flat: dict[str, Plain] = {}
        self._done = self._failed = 0
        self._seconds = 0.0
        self._live: dict[str, Spread] = {}

    def on_predict_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        samples = getattr(trainer.datamodule, "samples", ())  # type: ignore[attr-defined]
        with guarded(self):
            self._flat = flat_config(self.config if self.config is not None else config_of(samples), samples, self.facts)
            for sink in sinks_of(trainer):
                sink.begin(self._flat)

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        self._seconds = sum(result.cost.seconds for result in results) / max(len(results), 1)
        for result in results:
            self._add(result.sample.method, row_metrics(trainer, result))
        self._count(trainer, results)

    def _add(self, method: str, metrics: Mapping[str, float]) -> None:
        for name in keys.LIVE:
            if name in metrics:
                self._live.setdefault(keys.live_key(name, method), Spread()).add(metrics[name])

    def on_rows_given_up(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        self._count(trainer, results)

    def _count(self, trainer: L.Trainer, results: Sequence[SampleResult]) -> None:
        self._done += len(results)
        self._failed += sum(verdict(result.status) != "ok" for result in results)
        values = {keys.SECONDS: self._seconds, keys.FAILED_SO_FAR: float(self._failed)}
        values |= {key: spread.mean for key, spread in self._live.items() if spread.count}
        for sink in sinks_of(trainer):
            sink.point(values, self._done, {keys.ROWS_DONE: float(self._done)})

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.strategy.barrier()
        self._show(trainer)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Log the run folder of a stopped run, with the rows that it finished."""
        self._show(trainer)

    def _show(self, trainer: L.Trainer) -> None:
        with guarded(self):
            sinks = sinks_of(trainer)
            if sinks:
                log_folder(run_folder(trainer), sinks, self._flat, self.row_curves)


def log_folder(folder: Path, sinks: Sequence[Sink], config: Mapping[str, Plain], row_curves: int = 0) -> None:
    """Log curves, pictures, the table of rows and the summary of a run folder.

    Args:
        folder: The run folder; nothing is logged if its ``records.csv`` has no rows.
        sinks: Loggers to write to.
        config: The flat configuration.
        row_curves: Number of rows, from the first, that get curves of their own.
    """
    records = read_records(folder)
    if not records:
        return
    curves = run_curves(folder, records, {record["id"] for record in records[:row_curves]})
    pictures = pictures_by_key(folder, records)
    columns = ["picture", *dict.fromkeys(name for record in records for name in record)]
    lines: list[dict[str, Any]] = [{**_typed(record), "picture": _picture(folder, record)} for record in records]
    for sink in sinks:
        _log_curves(sink, curves.guide, keys.GUIDE_STEP, keys.GUIDE_PROGRESS)
        _log_curves(sink, curves.maps, keys.MAPS_STEP, keys.MAPS_PROGRESS)
        _log_curves(sink, curves.rows, keys.ROW_STEP)
        for key, found in pictures.items():
            sink.pictures(key, found)
        sink.table(keys.TABLE, columns, lines)
        sink.summary(means(records), config)


def _log_curves(sink: Sink, points: Sequence[Point], step: str, progress: str | None = None) -> None:
    for point in points:
        axes = {step: float(point.step), **({progress: point.progress} if progress else {})}
        sink.point(point.values, point.step, axes)


def pictures_by_key(folder: Path, records: Sequence[Record]) -> dict[str, list[Picture]]:
    """Pictures by logger key: those of each method ordered by prompt and seed, overviews of maps, and the contact sheet.

    A row without a picture keeps its place, so that an index is the same prompt and seed for every method with one row each.
    """
    subjects = {(record["prompt"], record["regions"], record["seed"]): index for index, record in enumerate(records)}
    order = {subject: number for number, subject in enumerate(subjects)}
    ordered = sorted(records, key=lambda record: order[record["prompt"], record["regions"], record["seed"]])
    found: dict[str, list[Picture]] = {}
    for record in ordered:
        found.setdefault(keys.pictures_key(record["method"] or "plain"), []).append(_picture(folder, record))
    overviews = [(record["id"], folder / "maps" / record["id"] / OVERVIEW) for record in ordered]
    maps = [Picture(path, id) for id, path in overviews if path.exists()]
    sheet = folder / "sheet.png"
    found |= {keys.MAPS_PICTURES: maps} if maps else {}
    return {**found, **({keys.SHEET: [Picture(sheet, folder.name)]} if sheet.exists() else {})}


def _picture(folder: Path, record: Record) -> Picture:
    place = f"seed {record['seed']}, {record.get(CELL) or record['method'] or 'plain'}: {record['prompt']}"
    path = folder / SAMPLES_FOLDER / f"{record['id']}.png"
    if not path.exists():
        return Picture(None, f"{place} ({record['status']})")
    return Picture(path, place, recorded_regions(folder, record))


def means(records: Sequence[Record]) -> dict[str, float]:
    """Mean and standard deviation of each metric by method, rows by method, and means by ablation cell, as summary keys."""
    hidden = {*SETTINGS, "status"}
    by_method: dict[tuple[str, str], Spread] = {}
    by_cell: dict[tuple[str, str], Spread] = {}
    for record in records:
        failed = verdict(record["status"]) != "ok"
        numbers = {name: float(text) for name, text in record.items() if name not in hidden and _is_number(name, text)}
        counted = {
            **{name: value for name, value in numbers.items() if not (failed and name in COSTS)},
            "failed": float(failed),
        }
        for name, value in counted.items():
            by_method.setdefault((name, record["method"] or "plain"), Spread()).add(value)
            if record.get(CELL):
                by_cell.setdefault((name, record[CELL]), Spread()).add(value)
    found = {}
    for (name, method), spread in by_method.items():
        found[keys.mean_key(name, method)] = spread.mean
        found[keys.mean_key(name, method, of="std")] = spread.std
    for (name, method), spread in by_method.items():
        if name == "failed":
            found[keys.rows_key(method)] = float(spread.count)
    return {**found, **{keys.cell_key(name, cell): spread.mean for (name, cell), spread in by_cell.items()}}


def _is_number(column: str, text: str) -> bool:
    if not text or is_cell_column(column):
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _typed(record: Record) -> dict[str, Any]:
    """A record with numbers as floats and empty cells as ``None``."""
    typed: dict[str, Any] = {name: text if text != "" else None for name, text in record.items()}
    return typed | {name: float(text) for name, text in record.items() if name != "id" and _is_number(name, text)}
