"""Files that an ablation adds to its run folder: summary, stability, contact sheets and plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from attnguide.ablation.axes import Axis, Tradeoff
from attnguide.ablation.cells import Row
from attnguide.ablation.plots import PLOTS_FOLDER, can_plot, write_plots
from attnguide.ablation.sheets import SHEETS_FOLDER, write_sheets
from attnguide.ablation.stability import STABILITY_FILE, stability, write_stability
from attnguide.ablation.summary import SUMMARY_FILE, Record, write_summary
from attnguide.ablation.tradeoff import write_tradeoff
from attnguide.run_folder.records import read_records
from attnguide.sources.files import TARGETS_FOLDER


def records_of(folder: Path, rows: Sequence[Row]) -> dict[str, Record]:
    """Records of the rows that are done, by row id, in the order of ``rows``."""
    found = {record["id"]: record for record in read_records(folder)}
    return {row.sample.id: found[row.sample.id] for row in rows if row.sample.id in found}


def write_outputs(folder: Path, axes: Sequence[Axis], rows: Sequence[Row], tradeoff: Tradeoff | None = None) -> Iterator[Path]:
    """Write ``summary.csv``, contact sheets and, with matplotlib, plots of the rows that are done; yields each file's path.

    With a tradeoff also ``stability.csv`` and the plot of control against quality.

    Args:
        folder: The run folder, with ``records.csv`` and ``samples/``.
        axes: Axes of the ablation.
        rows: All of its rows.
        tradeoff: The plot of control against quality; none when ``None``.
    """
    by_id = records_of(folder, rows)
    records = list(by_id.values())
    if not records:
        return
    write_summary(folder / SUMMARY_FILE, records)
    yield folder / SUMMARY_FILE
    if tradeoff is not None and write_stability(folder / STABILITY_FILE, stability(records, axes, tradeoff)):
        yield folder / STABILITY_FILE
    yield from write_sheets(folder, axes, rows, by_id)
    if can_plot():
        yield from write_plots(folder, axes, records, tradeoff.strength if tradeoff else None)
        if tradeoff is not None:
            yield from write_tradeoff(folder, axes, records, tradeoff)


def places(folder: Path) -> list[tuple[Path, str]]:
    """Files and folders in an ablation's run folder, each with a sentence about its content."""
    found = [
        (folder / SUMMARY_FILE, "mean, 95 % interval, n and spread over seeds of every metric in every cell"),
        (folder / STABILITY_FILE, "over which strengths every curve controls and spoils nothing"),
        (folder / SHEETS_FOLDER, "the pictures of all cells, a sheet for each prompt and seed"),
        (folder / PLOTS_FOLDER, "curves over axes and heat maps, metric by metric"),
        (folder / "samples", "the pictures"),
        (folder / TARGETS_FOLDER, "maps that were taken from other pictures"),
        (folder / "value_invariance.csv", "how much attention's values change over steps, seeds and methods, site by site"),
        (folder / "records.csv", "settings, cell, axes, scores and costs, a line a row"),
        (folder / "config.yaml", "all rows: attnguide sample --config makes the same run"),
    ]
    return [(path, what) for path, what in found if path.exists()]
