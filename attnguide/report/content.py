"""Content of a run folder's page, as dataclasses read from its files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from attnguide.ablation.summary import Estimate, Record, estimate, grouped, metrics_of
from attnguide.run_folder.made_with import CONFIG_FILE
from attnguide.run_folder.records import AXIS, CELL, COSTS, SAMPLES_FOLDER, read_records
from attnguide.sheets.colors import css, method_color
from attnguide.sheets.variants import SETTINGS, variant_labels, varied_axes
from attnguide.text.html import region_colors
from attnguide.types import verdict

_MOST_SHEETS = 12
"""Most sheets of an ablation or a comparison on the page; the number of further ones is stated."""

_LEADING, _LEADING_COSTS = 9, 2
"""Most metrics in the first table, and most costs among them, so that it fits a screen."""

TABLE_FILE = "table.md"
"""File of the tables that ``attnguide eval`` wrote."""

_VARIANT = ("method", "options", *SETTINGS)
_SUBJECT = ("prompt", "seed", "regions")


@dataclass(frozen=True)
class Row:
    """One row of the run on the page.

    Attributes:
        id: Id of the row.
        label: Its difference to the other rows of its prompt and seed: the ablation's cell, or the method and options.
        picture: File of its picture; ``None`` if it has none.
        record: Its line of ``records.csv``.
        maps: Phrase -> file of its heat map.
        numbers: Metric -> score or cost, as text.
        failed: Its status if that is not ``ok``; otherwise empty.
        color: CSS colour of its method.
    """

    id: str
    label: str
    picture: Path | None
    record: Record
    maps: Mapping[str, Path]
    numbers: Mapping[str, str]
    failed: str
    color: str


@dataclass(frozen=True)
class Subject:
    """Rows of one prompt, seed and set of regions, in the order of the run."""

    prompt: str
    seed: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Means:
    """One line of the table of means.

    Attributes:
        place: Cells below the heads: values of an ablation's axes, or method and options.
        color: CSS colour of its method.
        count: Number of rows, failed ones included.
        estimates: Metric -> mean and interval; ``None`` if no row has the metric.
    """

    place: Sequence[str]
    color: str
    count: int
    estimates: Mapping[str, Estimate | None]


@dataclass(frozen=True)
class Table:
    """A table of a comparison, from ``table.md``.

    Attributes:
        title: Heading above it.
        note: Text between heading and table.
        heads: Heads of its columns.
        rows: Cells, row by row.
    """

    title: str
    note: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Content:
    """Everything on the page.

    Attributes:
        name: Name of the run folder.
        rows: Number of rows on record.
        failed: Number of rows whose status is not ``ok``.
        common: Settings that all rows share.
        heads: Heads of the first columns of the table of means: an ablation's axes, or ``method``.
        metrics: Names of all metrics.
        leading: Metrics of the first table, few enough for a screen.
        same: Metrics with the same value in all rows -> that value.
        means: Lines of the table of means; empty if there are tables of a comparison.
        sheets: Files of contact sheets.
        plots: Files of plots.
        more_sheets: Number of sheets that are not shown.
        subjects: The rows by prompt, seed and regions, up to the limit.
        hidden: Number of rows beyond the limit.
        config: The run's configuration as YAML; empty if there is none.
        tables: Tables of a comparison, see :func:`read_tables`.
        problems: Errors on cells of the records that could not be read and are left out.
    """

    name: str
    rows: int
    failed: int
    common: Mapping[str, str]
    heads: Sequence[str]
    metrics: Sequence[str]
    leading: Sequence[str]
    same: Mapping[str, str]
    means: Sequence[Means]
    sheets: Sequence[Path]
    plots: Sequence[Path]
    more_sheets: int
    subjects: Sequence[Subject]
    hidden: int
    config: str
    tables: Sequence[Table] = ()
    problems: Sequence[str] = ()


def read_content(folder: str | Path, *, limit: int = 200) -> Content:
    """Read a run folder.

    Args:
        folder: The run folder, with ``records.csv`` and ``samples/``.
        limit: Most rows whose pictures are shown; means are over all rows.

    Raises:
        ValueError: If the folder holds no run, or the limit is negative.
    """
    folder = Path(folder)
    if limit < 0:
        raise ValueError(f"limit must be at least 0; got {limit}.")
    records = read_records(folder)
    if not records:
        raise ValueError(f"Folder {str(folder)!r} holds no run: no row is on record in it.")
    problems = list(_unreadable(records))
    records = [_without(record, {name for at, name, _ in problems if at == record["id"]}) for record in records]
    metrics = metrics_of(records)
    same = _same(records, metrics)
    label, axes = _labeller(records), varied_axes(records)
    sheets = [*folder.glob("sheet.png"), *sorted(folder.glob("sheets/*.png"))]
    config, tables = folder / CONFIG_FILE, read_tables(folder / TABLE_FILE)
    return Content(
        name=folder.resolve().name,
        rows=len(records),
        failed=sum(verdict(record["status"]) != "ok" for record in records),
        common={name: records[0][name] for name in (*_SUBJECT, *_VARIANT) if _shared(records, name) and records[0].get(name)},
        heads=list(axes) or ["method"],
        metrics=metrics,
        leading=_leading([name for name in metrics if name not in same]),
        same=same,
        means=[] if tables else _means(records, axes, label, metrics),  # a comparison's tables have intervals over prompts
        sheets=sheets[: _MOST_SHEETS + 1],
        plots=sorted(folder.glob("plots/*.png"), key=lambda path: ("-against-" not in path.name, "-and-" in path.name, path)),
        more_sheets=max(0, len(sheets) - _MOST_SHEETS - 1),
        subjects=[
            Subject(prompt, seed, [_row(folder, record, label(record), metrics) for record in rows])
            for (prompt, seed, _), rows in grouped(records[:limit], _SUBJECT).items()
        ],
        hidden=max(0, len(records) - limit),
        config=config.read_text(encoding="utf-8", errors="backslashreplace") if config.is_file() else "",
        tables=tables,
        problems=[f"row {id!r}: {name}: {why}" for id, name, why in problems],
    )


def _means(
    records: Sequence[Record], axes: Mapping[str, Sequence[str]], label: Callable[[Record], str], metrics: Sequence[str]
) -> list[Means]:
    """A line of means for each cell of an ablation, or for each method with its options."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(_place(record, list(axes)) or (label(record),), []).append(record)
    if axes:
        groups = {place: groups[place] for place in sorted(groups, key=lambda place: _order(place, axes))}
    return [
        Means(place, _color(rows), len(rows), {metric: estimate(rows, metric) for metric in metrics})
        for place, rows in groups.items()
    ]


def _order(place: Sequence[str], axes: Mapping[str, Sequence[str]]) -> list[int]:
    """Sort key of a line of means: the index of its value on each axis, plain rows first."""
    return [values.index(value) if value in values else -1 for value, values in zip(place, axes.values(), strict=True)]


def _place(record: Record, axes: Sequence[str]) -> tuple[str, ...]:
    """A record's values of the axes, empty without axes; a plain row has ``plain`` on the first axis that it lacks."""
    values = [record.get(AXIS + name, "") for name in axes]
    if "" in values:
        values[values.index("")] = record.get(CELL, "").split(", ")[0]
    return tuple(values)


def _color(records: Sequence[Record]) -> str:
    methods = {record.get("method", "") for record in records}
    return css(method_color(methods.pop())) if len(methods) == 1 else "transparent"


def _same(records: Sequence[Record], metrics: Sequence[str]) -> dict[str, str]:
    """Metrics with one value in all rows whose status is ok -> that value as text; empty for fewer than two such rows."""
    judged = [record for record in records if verdict(record["status"]) == "ok"]
    if len(judged) < 2:
        return {}
    found = {metric: {record.get(metric, "") for record in judged} for metric in metrics}
    return {metric: _number(*values) for metric, values in found.items() if len(values) == 1 and "" not in values}


def _leading(metrics: Sequence[str]) -> list[str]:
    """The first scores and the first costs, at most :data:`_LEADING` in all."""
    costs = [name for name in metrics if name in COSTS][:_LEADING_COSTS]
    return [*[name for name in metrics if name not in COSTS][: _LEADING - len(costs)], *costs]


def _unreadable(records: Sequence[Record]) -> Iterator[tuple[str, str, str]]:
    """Row id, column and error of each cell that should hold a number or regions and does not."""
    metrics = metrics_of(records)
    for record in records:
        for name in metrics:
            if record.get(name) and not _is_number(record[name]):
                yield record["id"], name, f"expected a finite number; got {record[name][:40]!r}"
        try:
            places(record)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            yield record["id"], "regions", f"expected regions as JSON; got {record['regions'][:40]!r}"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _without(record: Record, names: Set[str]) -> dict[str, str]:
    return {name: "" if name in names else text for name, text in record.items()}


def _labeller(records: Sequence[Record]) -> Callable[[Record], str]:
    """A function from a record to its label, which depends on all records of the run."""
    labels = {id(record): label for record, label in zip(records, variant_labels(records, method=True), strict=True)}
    return lambda record: labels[id(record)]


def _shared(records: Sequence[Record], name: str) -> bool:
    return len({record.get(name, "") for record in records}) == 1


def _row(folder: Path, record: Record, label: str, metrics: Sequence[str]) -> Row:
    picture = folder / SAMPLES_FOLDER / f"{record['id']}.png"
    numbers = {name: _number(record[name]) for name in metrics if record.get(name)}
    failed = "" if record["status"] == "ok" else record["status"]
    maps = dict(_word_maps(folder / "maps" / record["id"]))
    return Row(record["id"], label, picture if picture.is_file() else None, record, maps, numbers, failed, _color([record]))


def _word_maps(folder: Path) -> Iterator[tuple[str, Path]]:
    """Phrase and file of each mean map over the picture, without the strips over steps and the overview."""
    for path in sorted(folder.glob("*.png")):
        if not path.stem.endswith("-steps") and not path.name.startswith("_"):
            yield path.stem.replace("_", " "), path


def _number(text: str) -> str:
    return f"{float(text):.4g}"


def inked_places(record: Record) -> list[tuple[str, str]]:
    """CSS colour and text of each region of a row."""
    found = json.loads(record["regions"]) if record.get("regions") else []
    colors = region_colors([region["phrase"] for region in found])
    return [(css(color), f"{region['phrase']}{_box(region)}") for color, region in zip(colors, found, strict=True)]


def places(record: Record) -> str:
    """Text of a row's regions: phrases, with boxes as fractions of the picture."""
    found = json.loads(record["regions"]) if record.get("regions") else []
    return "; ".join(f"{region['phrase']}{_box(region)}" for region in found)


def _box(region: Mapping[str, object]) -> str:
    box = region.get("box")
    return " " + ", ".join(f"{float(value):.2g}" for value in box) if isinstance(box, list) else ""


def read_tables(path: Path) -> list[Table]:
    """Tables of a Markdown file with one table per section; empty if the file does not exist."""
    if not path.is_file():
        return []
    found = []
    for section in path.read_text(encoding="utf-8", errors="backslashreplace").split("\n## ")[1:]:
        title, _, rest = section.partition("\n")
        lines = [_cells(line) for line in rest.splitlines() if line.startswith("|")]
        note = " ".join(line for line in rest.splitlines() if line and not line.startswith(("|", "* "))).replace("`", "")
        if len(lines) > 1:
            found.append(Table(title, note, lines[0], lines[2:]))
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
