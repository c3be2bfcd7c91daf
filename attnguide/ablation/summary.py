"""Means of metrics and differences to plain sampling over an ablation's records, by cell or along an axis, with intervals."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

from attnguide.run_folder.files import replacing
from attnguide.run_folder.records import AXIS, CELL, COSTS, SETTINGS, is_cell_column
from attnguide.run_folder.tables import append_table
from attnguide.statistics import Difference, clustered_mean, paired_difference
from attnguide.text.aligned import aligned
from attnguide.types import PLAIN, verdict

SUMMARY_FILE = "summary.csv"

Record = Mapping[str, str]


@dataclass(frozen=True)
class Estimate:
    """A mean over rows.

    Attributes:
        mean: Mean over the rows that have the metric.
        low: Lower end of the 95 % bootstrap interval over ``clusters``; the mean itself where there is one.
        high: Upper end of the interval.
        n: Number of rows that have the metric.
        clusters: Number of prompts, or, where all rows have the same prompt, of seeds.
    """

    mean: float
    low: float
    high: float
    n: int
    clusters: int


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
    """Mean of a metric with its 95 % bootstrap interval, without costs of refused rows; ``None`` if no row has the metric.

    Pictures of one prompt have much in common, so whole prompts are drawn (:func:`~attnguide.statistics.clustered_mean`); where
    all rows have the same prompt, seeds are.
    """
    having = [record for record in records if record.get(metric) and not _costless(record, metric)]
    values: dict[Hashable, list[float]] = {}
    for cluster, record in zip(_clusters(having), having, strict=True):
        values.setdefault(cluster, []).append(float(record[metric]))
    found = clustered_mean(values)
    return None if found is None else Estimate(found.mean, found.low, found.high, found.pictures, found.clusters)


def _clusters(records: Sequence[Record]) -> list[Hashable]:
    """The prompt of each record; its seed and regions where all have the same prompt."""
    prompts = [record.get("prompt", "") for record in records]
    if len(set(prompts)) > 1:
        return [*prompts]
    return [(record.get("seed", ""), record.get("regions", "")) for record in records]


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


def plain_of(records: Iterable[Record]) -> list[Record]:
    """Records of the plain rows, which cells are compared with."""
    return [record for record in records if record.get(CELL, "").split(", ")[0] == PLAIN]


_OF_A_METHOD = ("id", "method", "options", "groups", "tags")
"""Settings in which a steered row differs from its plain twin."""


def _twin_key(record: Record) -> tuple[str, ...]:
    return tuple(record.get(name, "") for name in SETTINGS if name not in _OF_A_METHOD)


def difference(records: Sequence[Record], twins: Sequence[Record | None], metric: str) -> Difference | None:
    """Mean difference of a metric between rows and their plain twins, pair by pair, with its 95 % bootstrap interval.

    Args:
        records: Rows of a cell.
        twins: The plain twin of each row; ``None`` for a row without one.
        metric: Column of the records.

    Returns:
        The difference; ``None`` if no row and its twin both have the metric, or if a row that has it has no twin, as those of
        ``best_of_k`` that kept another seed than their own.
    """
    having = [(record, twin) for record, twin in zip(records, twins, strict=True) if record.get(metric)]
    if any(twin is None for _, twin in having):
        return None
    clusters = dict(enumerate(_clusters([record for record, _ in having])))
    after = {index: float(record[metric]) for index, (record, _) in enumerate(having)}
    before = {index: float(twin[metric]) for index, (_, twin) in enumerate(having) if twin and twin.get(metric)}
    return paired_difference(after, before, clusters)


def grouped(records: Iterable[Record], columns: Sequence[str]) -> dict[tuple[str, ...], list[Record]]:
    """Records grouped by their values in ``columns``, in order of first occurrence."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.get(column, "") for column in columns), []).append(record)
    return groups


def summarise(records: Sequence[Record]) -> list[dict[str, object]]:
    """Mean and 95 % interval of every metric in every cell; ``failed`` is the share of rows that gave no picture.

    Returns:
        One line for each cell and metric: ``cell``, the axes, ``metric``, ``mean``, ``low``, ``high``, ``n``, ``clusters`` as
        :class:`Estimate` has them, ``seed_std`` as :func:`seed_std` has it, and ``to_plain``, ``to_plain_low``,
        ``to_plain_high``: the :func:`difference` to plain twins, ``None`` in plain cells and without twins.
    """
    records = [{**record, "failed": "0" if verdict(record["status"]) == "ok" else "1"} for record in records]
    plain = {_twin_key(record): record for record in plain_of(records)}
    axes = list(dict.fromkeys(name for record in records for name in record if name.startswith(AXIS)))
    lines: list[dict[str, object]] = []
    for rows in grouped(records, [CELL, *axes]).values():
        place = {name: rows[0].get(name, "") for name in (CELL, *axes)}
        steered = not plain_of(rows)
        twins = [plain.get(_twin_key(row)) if steered else None for row in rows]
        for metric in metrics_of(rows):
            found = estimate(rows, metric)
            if found is not None:
                own = {"seed_std": seed_std(rows, metric), **_to_plain(rows, twins, metric)}
                lines.append({**place, "metric": metric, **vars(found), **own})
    return lines


def _to_plain(rows: Sequence[Record], twins: Sequence[Record | None], metric: str) -> dict[str, float | None]:
    found = difference(rows, twins, metric)
    mean, low, high = (None, None, None) if found is None else (found.mean, found.low, found.high)
    return {"to_plain": mean, "to_plain_low": low, "to_plain_high": high}


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
