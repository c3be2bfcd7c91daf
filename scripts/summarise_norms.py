"""Summarises how the norms of words' attention maps vary over sites, steps, words and seeds, from a run's map_norms.csv.

    attnguide ablate configs/ablations/norm_scale.yaml --out runs/norm_scale
    python scripts/summarise_norms.py runs/norm_scale
    python scripts/summarise_norms.py runs/norm_scale --rows plain --statistic max

Prints a line for each attention site (means over steps, words and rows, and what the last step has of the first), and for each
axis how much of the variance of the statistic's logarithm it explains alone, and the largest of its means over the smallest.
A list of numbers that is printed site by site, step after step, repeats with the number of sites where the site explains
most, and is something else where the step does.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

STATISTICS = ("mean", "l1", "l2", "max")


@dataclass(frozen=True)
class Measure:
    """Statistics of one word's map at one site and step of one row.

    Attributes:
        row: Id of the row.
        step: Index of the step.
        site: Name of the attention module.
        size: Size of its maps, ``HEIGHTxWIDTH``.
        phrase: The word or words.
        values: Statistic -> number.
    """

    row: str
    step: int
    site: str
    size: str
    phrase: str
    values: dict[str, float]


AXES: dict[str, Callable[[Measure], object]] = {
    "site": lambda measure: measure.site,
    "map size": lambda measure: measure.size,
    "step": lambda measure: measure.step,
    "word": lambda measure: measure.phrase,
    "row": lambda measure: measure.row,
}


def read(path: Path, rows: str, stage: str) -> list[Measure]:
    """Measures of the rows whose id contains ``rows``.

    Raises:
        ValueError: If there are none.
    """
    with path.open(newline="", encoding="utf-8") as file:
        found = [
            Measure(
                line["id"],
                int(line["step"]),
                line["site"],
                f"{line['height']}x{line['width']}",
                line["phrase"],
                {name: float(line[name]) for name in STATISTICS},
            )
            for line in csv.DictReader(file)
            if rows in line["id"] and line["stage"] == stage
        ]
    if not found:
        raise ValueError(f"{path}: expected a row with {rows!r} in its id and stage {stage!r}; found none")
    return found


def grouped(measures: Sequence[Measure], axis: Callable[[Measure], object]) -> dict[object, list[Measure]]:
    """Value of an axis -> its measures, in order of appearance."""
    found: dict[object, list[Measure]] = defaultdict(list)
    for measure in measures:
        found[axis(measure)].append(measure)
    return found


def explained(measures: Sequence[Measure], axis: Callable[[Measure], object], statistic: str) -> float:
    """Share of the variance of ``log(statistic)`` that lies between the axis's values, in [0, 1]."""
    logs = [math.log(max(measure.values[statistic], 1e-12)) for measure in measures]
    mean = fmean(logs)
    whole = sum((value - mean) ** 2 for value in logs)
    parts: dict[object, list[float]] = defaultdict(list)
    for measure, value in zip(measures, logs, strict=True):
        parts[axis(measure)].append(value)
    between = sum(len(part) * (fmean(part) - mean) ** 2 for part in parts.values())
    return between / whole if whole > 0 else 0.0


def spread(measures: Sequence[Measure], axis: Callable[[Measure], object], statistic: str) -> float:
    """Largest mean of the axis's values over the smallest."""
    means = [fmean(m.values[statistic] for m in part) for part in grouped(measures, axis).values()]
    return max(means) / max(min(means), 1e-12)


def table(measures: Sequence[Measure], statistic: str) -> str:
    """The printed text: lines of sites and of axes."""
    last = max(measure.step for measure in measures)
    lines = [["site", "maps", *STATISTICS, f"{statistic}: last step / first"]]
    for site, part in grouped(measures, AXES["site"]).items():
        first, end = ([m.values[statistic] for m in part if m.step == step] for step in (0, last))
        means = [f"{fmean(m.values[name] for m in part):.3g}" for name in STATISTICS]
        lines.append([str(site), part[0].size, *means, f"{fmean(end) / max(fmean(first), 1e-12):.2f}"])
    second = [["axis", "values", f"variance of log {statistic} explained", "largest mean / smallest"]]
    for name, axis in AXES.items():
        share, ratio = explained(measures, axis, statistic), spread(measures, axis, statistic)
        second.append([name, str(len(grouped(measures, axis))), f"{share:.2f}", f"{ratio:.2f}"])
    rows = len(grouped(measures, AXES["row"]))
    return f"{len(measures)} maps of {rows} rows\n\n{_aligned(lines)}\n\n{_aligned(second)}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the summary of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run that measured norms")
    parser.add_argument("--rows", default="plain", help="only rows whose id contains this")
    parser.add_argument("--stage", default="before", choices=["before", "after"], help="before or after injections")
    parser.add_argument("--statistic", default="mean", choices=STATISTICS)
    args = parser.parse_args(argv)
    path = args.run / "map_norms.csv"
    if not path.is_file():
        raise SystemExit(f"run: expected a folder with map_norms.csv; got {args.run}")
    try:
        print(table(read(path, args.rows, args.stage), args.statistic))
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
