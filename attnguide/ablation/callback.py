"""Writes an ablation's sheets, curves and summary when its rows are done, and shows them in W&B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from PIL import Image

from attnguide.ablation.axes import Axis, Tradeoff
from attnguide.ablation.cell_runs import log_cells
from attnguide.ablation.cells import Row
from attnguide.ablation.outputs import records_of, write_outputs
from attnguide.ablation.plots import PLOTS_FOLDER, curves, steered, varying_metrics
from attnguide.ablation.sheets import SHEETS_FOLDER
from attnguide.ablation.stability import stability
from attnguide.ablation.summary import Record, estimate, metrics_of, summarise
from attnguide.callbacks.base import run_folder
from attnguide.callbacks.closing import ClosingCallback
from attnguide.callbacks.keys import ABLATION_PLOTS, ABLATION_SHEETS
from attnguide.callbacks.log import wandb_run
from attnguide.callbacks.sinks import MOST_PICTURES
from attnguide.run_folder.records import is_cell_column

_MOST_SHEETS = 16
_TOLD = ("region_hit", "inside")


class AblationLog(ClosingCallback):
    """Puts everything of :func:`~attnguide.ablation.outputs.write_outputs` into the run folder, also of a run that is stopped.

    W&B gets the same: the table ``summary``, a table ``cells`` with a line for each row's cell and scores, line plots of the
    metrics that tell most over every axis of numbers, and two lists of pictures, one of sheets and one of curves with their
    bands, heat maps and, with a tradeoff, control against quality; with that also the table ``stability``.

    Args:
        axes: Axes of the ablation.
        rows: All of its rows.
        tradeoff: The plot of control against quality; none when ``None``.
        cell_runs: Log each cell as a W&B run of its own, too.

    Attributes:
        written: Whether the files were written by this process.
    """

    def __init__(
        self, axes: Sequence[Axis], rows: Sequence[Row], tradeoff: Tradeoff | None = None, *, cell_runs: bool = False
    ) -> None:
        self.axes, self.rows, self.tradeoff, self.cell_runs = tuple(axes), tuple(rows), tradeoff, cell_runs
        self.written = False

    def finish(self, trainer: L.Trainer) -> None:
        """Write the files, then log them to the trainer's W&B run."""
        folder = run_folder(trainer)
        files = self._write(folder)
        run = wandb_run(trainer)
        if run is not None and files:
            self._show(run, folder, files)
            if self.cell_runs:
                log_cells(run, folder, list(records_of(folder, self.rows).values()))

    @property
    def _told(self) -> tuple[str, ...]:
        """Metrics with a chart of their own; all others are in the tables and among the plots."""
        return _TOLD if self.tradeoff is None else (*_TOLD, self.tradeoff.control, self.tradeoff.quality)

    def _write(self, folder: Path) -> list[Path]:
        self.written = True
        return list(write_outputs(folder, self.axes, self.rows, self.tradeoff))

    def _show(self, run: Any, folder: Path, files: Sequence[Path]) -> None:
        import wandb

        records = list(records_of(folder, self.rows).values())
        metrics = metrics_of(records)
        summary = summarise(records)
        shown: dict[str, Any] = {"ablation/summary": _table([dict(line) for line in summary])}
        shown["ablation/cells"] = _table([_line_of(record, metrics) for record in records])
        if self.tradeoff is not None and (found := stability(records, self.axes, self.tradeoff)):
            shown["ablation/stability"] = _table(found)
        for axis in self.axes:
            if axis.is_numeric:
                drawn = [metric for metric in varying_metrics(records, self.axes) if metric in self._told]
                shown |= {
                    f"ablation/{metric} over {axis.name}": _line_plot(records, self.axes, axis, metric) for metric in drawn
                }
        sheets = [path for path in files if path.parent.name == SHEETS_FOLDER][:_MOST_SHEETS]
        plots = [path for path in files if path.parent.name == PLOTS_FOLDER]
        for key, paths in ((ABLATION_SHEETS, sheets), (ABLATION_PLOTS, plots)):
            if paths:
                shown[key] = [wandb.Image(image, caption=name) for name, image in _of_one_size(paths[:MOST_PICTURES])]
        run.log(shown)
        # One mean a metric over the whole run: a W&B sweep compares runs by it.
        means = {metric: estimate(steered(records, self.axes), metric) for metric in metrics}
        run.summary.update({f"mean/{metric}": found.mean for metric, found in means.items() if found is not None})


def _of_one_size(paths: Sequence[Path]) -> list[tuple[str, Image.Image]]:
    """Pictures with their names, padded with white to the largest size: W&B's browser lays out lists of one size."""
    pictures = [(path.stem, Image.open(path).convert("RGB")) for path in paths]
    size = max(image.width for _, image in pictures), max(image.height for _, image in pictures)
    found = []
    for name, image in pictures:
        field = Image.new("RGB", size, "white")
        field.paste(image)
        found.append((name, field))
    return found


def _line_of(record: Record, metrics: Sequence[str]) -> dict[str, Any]:
    """A line of the table ``cells``: a row's id, prompt, seed, cell, axis values and metrics."""
    place = {name: text for name, text in record.items() if name in ("id", "prompt", "seed") or is_cell_column(name)}
    return {**place, **{name: float(record[name]) if record.get(name) else None for name in metrics}}


def _table(lines: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    columns: list[str | int] = list(dict.fromkeys(name for line in lines for name in line))
    table = wandb.Table(columns=columns, allow_mixed_types=True)
    for line in lines:
        table.add_data(*(line.get(str(name)) for name in columns))
    return table


def _line_plot(records: Sequence[Record], axes: Sequence[Axis], over: Axis, metric: str) -> Any:
    import wandb

    drawn = curves(records, axes, over, metric)
    return wandb.plot.line_series(
        xs=[list(curve.xs) for curve in drawn],
        ys=[[point.mean for point in curve.points] for curve in drawn],
        keys=[curve.label or metric for curve in drawn],
        title=f"{metric} over {over.name}",
        xname=over.name,
    )
