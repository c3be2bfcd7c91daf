"""Means of metrics with bootstrap intervals over an ablation's records, by cell or along an axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

from attnguide.benchmark import bootstrap_interval
from attnguide.run_folder.files import replacing
from attnguide.run_folder.records import AXIS, CELL, COSTS, SETTINGS, is_cell_column
from attnguide.run_folder.tables import append_table
from attnguide.text.aligned import aligned
from attnguide.types import verdict

SUMMARY_FILE = "summary.csv"

Record = Mapping[str, str]


@dataclass(frozen=True)
class Estimate:
    """A mean over rows.

    Attributes:
        mean: Mean over the rows that have the metric.
        low: Lower end of the 95 % bootstrap interval over rows; the mean itself where there is one row.
        high: Upper end of the interval.
        n: Number of rows that have the metric.
    """

    mean: float
    low: float
    high: float
    n: int


def metrics_of(records: Iterable[Record], *, costs: bool = True) -> list[str]:
    """Names of the numeric columns: metrics, then costs.

    Args:
        records: Lines of ``records.csv``.
        costs: Whether to include costs: network passes, seconds and memory.
    """
    hidden = {*SETTINGS, "status", *(() if costs else COSTS)}
    names = dict.fromkeys(name for record in records for name, text in record.items() if text != "")
    found = [name for name in names if name not in hidden and not is_cell_column(name)]
    return sorted(found, key=lambda name: name in COSTS)


def estimate(records: Iterable[Record], metric: str) -> Estimate | None:
    """Mean of a metric with its 95 % bootstrap interval, without costs of refused rows; ``None`` if no row has the metric."""
    values = [float(record[metric]) for record in records if record.get(metric) and not _costless(record, metric)]
    if not values:
        return None
    mean = fmean(values)
    if len(set(values)) == 1:
        return Estimate(mean, mean, mean, len(values))
    low, high = bootstrap_interval(values)
    return Estimate(mean, low, high, len(values))


def _costless(record: Record, metric: str) -> bool:
    """Whether the metric is a cost and the row was refused, so that its cost is 0."""
    return metric in COSTS and verdict(record.get("status", "ok")) == "refused"


def seed_std(records: Iterable[Record], metric: str) -> float | None:
    """Standard deviation of a metric over the seeds of a prompt: the root of the mean variance over prompts.

    Prompts with one seed are left out; ``None`` if that leaves none. Equal prompts with different regions count as different.
    """
    having = [record for record in records if record.get(metric)]
    spreads = [
        variance(float(record[metric]) for record in rows)
        for rows in grouped(having, ["prompt", "regions"]).values()
        if len(rows) > 1
    ]
    return fmean(spreads) ** 0.5 if spreads else None


def grouped(records: Iterable[Record], columns: Sequence[str]) -> dict[tuple[str, ...], list[Record]]:
    """Records grouped by their values in ``columns``, in order of first occurrence."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.get(column, "") for column in columns), []).append(record)
    return groups


def summarise(records: Sequence[Record]) -> list[dict[str, object]]:
    """Mean, 95 % interval and n of every metric in every cell; ``failed`` is the share of rows that gave no picture.

    Returns:
        One line for each cell and metric: ``cell``, the axes, ``metric``, ``mean``, ``low``, ``high``, ``n``, and ``seed_std``
        as :func:`seed_std` has it.
    """
    axes = list(dict.fromkeys(name for record in records for name in record if name.startswith(AXIS)))
    lines: list[dict[str, object]] = []
    for rows in grouped(records, [CELL, *axes]).values():
        place = {name: rows[0].get(name, "") for name in (CELL, *axes)}
        marked = [{**row, "failed": "0" if verdict(row["status"]) == "ok" else "1"} for row in rows]
        for metric in [*metrics_of(rows), "failed"]:
            found = estimate(marked, metric)
            if found is not None:
                lines.append({**place, "metric": metric, **vars(found), "seed_std": seed_std(marked, metric)})
    return lines


def write_summary(path: Path, records: Sequence[Record]) -> list[dict[str, object]]:
    """Write :func:`summarise` as a CSV file, atomically; returns its lines."""
    lines = summarise(records)
    if lines:
        with replacing(path) as temporary:
            append_table(temporary, tuple(lines[0]), lines)
    return lines


def cell_table(records: Sequence[Record], limit: int = 60) -> str:
    """Cells and their mean scores as aligned text.

    Args:
        records: Lines of ``records.csv``.
        limit: Most cells to list; a note counts the rest.
    """
    metrics = [name for name in metrics_of(records) if name not in ("peak_memory_mb",)]
    cells = grouped(records, [CELL])
    lines = [["cell", "rows", *(name.replace("unet_", "") for name in metrics)]]
    for (name,), rows in list(cells.items())[:limit]:
        means = [estimate(rows, metric) for metric in metrics]
        lines.append([name, str(len(rows)), *("" if mean is None else _number(mean.mean) for mean in means)])
    text, left_out = aligned(lines[0], lines[1:], kept=2)
    more = len(cells) - limit
    notes = [f"and {more} more cells, see {SUMMARY_FILE}"] if more > 0 else []
    return "\n".join([text, *notes, *([f"all numbers are in {SUMMARY_FILE}"] if left_out and not notes else [])])


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
