"""How much room a method leaves: over which strengths it controls almost as well as it can and spoils nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from attnguide.ablation.axes import Axis, Tradeoff
from attnguide.ablation.plots import plain_of, steered
from attnguide.ablation.summary import Record, estimate, grouped, seed_std
from attnguide.run_folder.files import replacing
from attnguide.run_folder.records import AXIS
from attnguide.run_folder.tables import append_table
from attnguide.text.aligned import aligned
from attnguide.types import verdict

STABILITY_FILE = "stability.csv"

CONTROL_SHARE = 0.9
"""Share of its best that a curve's control must reach."""

QUALITY_LOSS = 0.02
"""By how much quality may lie below that of plain pictures."""

_DRAWS = 200


@dataclass(frozen=True)
class Climb:
    """A method from its weakest to its strongest.

    Attributes:
        label: Values of all axes but the strength.
        strengths: Above 0, rising.
        records: Of each strength.
    """

    label: str
    strengths: tuple[float, ...]
    records: tuple[tuple[Record, ...], ...]


@dataclass(frozen=True)
class Range:
    """The longest run of strengths at which control and quality are good enough.

    Attributes:
        first: Its lower end.
        last: Its upper end.
        open_below: Whether it begins at the weakest strength that was tried, and may go on below.
        open_above: Likewise at the strongest.
    """

    first: float
    last: float
    open_below: bool = False
    open_above: bool = False

    @property
    def octaves(self) -> float:
        """``log2(last / first)``."""
        return math.log2(self.last / self.first)


def counted(records: Iterable[Record], metrics: Sequence[str]) -> list[Record]:
    """Records in which a row that gave no picture has 0 in these metrics, instead of being left out."""
    return [record if verdict(record["status"]) == "ok" else {**record, **dict.fromkeys(metrics, "0")} for record in records]


def climbs(records: Sequence[Record], axes: Sequence[Axis], strength: str) -> list[Climb]:
    """One for each combination of the other axes; strengths of 0 or below have no place on a scale of octaves.

    Args:
        records: Lines of ``records.csv``.
        axes: Of the ablation.
        strength: Name of the axis of strengths.
    """
    others = [AXIS + axis.name for axis in axes if axis.name != strength]
    found = []
    for key, rows in grouped(steered(records, axes), others).items():
        along = {float(x): tuple(members) for (x,), members in grouped(rows, [AXIS + strength]).items()}
        rising = sorted(x for x in along if x > 0)
        if rising:
            label = ", ".join(value for value in key if value) or strength
            found.append(Climb(label, tuple(rising), tuple(along[x] for x in rising)))
    return found


def stable_range(
    strengths: Sequence[float], control: Sequence[float], quality: Sequence[float], least_quality: float
) -> Range | None:
    """The longest run of strengths with control of at least 90 % of its best, and quality of at least ``least_quality``.

    Both are read off straight lines between the points, over the logarithm of strength.

    Args:
        strengths: Above 0, rising.
        control: At each of them; higher is better.
        quality: Likewise.
        least_quality: What quality must reach.

    Returns:
        The run, which may be a single point; ``None`` if no strength is good enough, or nothing is ever controlled.

    Example:
        >>> stable_range([1, 2, 4, 8], [0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], 0.5).octaves
        1.6...
    """
    best = max(control, default=0.0)
    if best <= 0:
        return None
    places = [math.log2(strength) for strength in strengths]
    margins = [min(c - CONTROL_SHARE * best, q - least_quality) for c, q in zip(control, quality, strict=True)]
    parts = [(x, x) for x, margin in zip(places, margins, strict=True) if margin >= 0]
    for index in range(len(places) - 1):
        ends = places[index : index + 2]
        inside = _both(
            [c - CONTROL_SHARE * best for c in control[index : index + 2]], quality[index : index + 2], least_quality
        )
        if inside is not None:
            parts.append((_between(ends, inside[0]), _between(ends, inside[1])))
    if not parts:
        return None
    first, last = max(_joined(parts), key=lambda run: run[1] - run[0])
    return Range(2**first, 2**last, first == places[0], last == places[-1])


def _between(ends: Sequence[float], share: float) -> float:
    """Exactly an end at 0 and 1."""
    return ends[0] if share <= 0 else ends[1] if share >= 1 else ends[0] + share * (ends[1] - ends[0])


def _both(margins: Sequence[float], quality: Sequence[float], least_quality: float) -> tuple[float, float] | None:
    """The part of a segment, in [0, 1], where two lines are at least 0."""
    low, high = 0.0, 1.0
    for left, right in (margins, [value - least_quality for value in quality]):
        if left < 0 and right < 0:
            return None
        if left < 0:
            low = max(low, left / (left - right))
        elif right < 0:
            high = min(high, left / (left - right))
    return (low, high) if low <= high else None


def _joined(parts: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Runs of parts that touch."""
    run: tuple[float, float] | None = None
    for first, last in sorted(parts):
        if run is not None and first > run[1] + 1e-9:
            yield run
            run = None
        run = (first, last) if run is None else (run[0], max(run[1], last))
    if run is not None:
        yield run


# ---------------------------------------------------------------------------------------------------------- from records


def stability(records: Sequence[Record], axes: Sequence[Axis], tradeoff: Tradeoff) -> list[dict[str, object]]:
    """A line for each curve: its stable range in octaves with a 95 % interval, and how well it does inside and outside.

    The interval is a bootstrap over prompts and seeds, the same draws for the curve and for plain pictures. Rows without a
    picture count as 0 in control and quality.

    Returns:
        ``curve``; ``octaves`` with ``low`` and ``high``; the range's ends ``from`` and ``to``, and at which of them (``open``)
        the strengths that were tried end, not the range; ``best_control`` and the strength where it is; ``kept_control``, the
        best at a strength that keeps quality, and that strength; quality of plain pictures; spread over seeds of control and
        quality, as the mean over strengths; ``n`` rows at each strength, or at most. Nothing without plain pictures to compare
        with, or without the two metrics.
    """
    metrics = (tradeoff.control, tradeoff.quality)
    records = counted(records, metrics)
    plain = plain_of(records)
    if estimate(plain, tradeoff.quality) is None:
        return []
    return [
        _line(climb, plain, tradeoff)
        for climb in climbs(records, axes, tradeoff.strength)
        if all(estimate(rows, metric) is not None for rows in climb.records for metric in metrics)
    ]


def _line(climb: Climb, plain: Sequence[Record], tradeoff: Tradeoff) -> dict[str, object]:
    control = [fmean(_values(rows, tradeoff.control).values()) for rows in climb.records]
    quality = [fmean(_values(rows, tradeoff.quality).values()) for rows in climb.records]
    plain_quality = fmean(_values(plain, tradeoff.quality).values())
    found = stable_range(climb.strengths, control, quality, plain_quality - QUALITY_LOSS)
    low, high = _interval(climb, plain, tradeoff)
    best = max(range(len(control)), key=control.__getitem__)
    good = [index for index, value in enumerate(quality) if value >= plain_quality - QUALITY_LOSS]
    kept = max(good, key=control.__getitem__, default=None)
    return {
        "curve": climb.label,
        "octaves": found.octaves if found else 0.0,
        "low": low,
        "high": high,
        "from": found.first if found else None,
        "to": found.last if found else None,
        "open": _open(found),
        "best_control": control[best],
        "best_strength": climb.strengths[best],
        "kept_control": None if kept is None else control[kept],
        "kept_strength": None if kept is None else climb.strengths[kept],
        "plain_quality": plain_quality,
        "control_seed_std": _spread(climb, tradeoff.control),
        "quality_seed_std": _spread(climb, tradeoff.quality),
        "n": max(map(len, climb.records)),
    }


def _open(found: Range | None) -> str:
    ends = [] if found is None else [name for name in ("below", "above") if getattr(found, f"open_{name}")]
    return " and ".join(ends)


def _spread(climb: Climb, metric: str) -> float | None:
    spreads = [value for value in (seed_std(rows, metric) for rows in climb.records) if value is not None]
    return fmean(spreads) if spreads else None


def _values(records: Iterable[Record], metric: str) -> dict[tuple[str, ...], float]:
    """A metric by prompt and seed."""
    return {
        (record.get("prompt", ""), record.get("regions", ""), record["seed"]): float(record[metric])
        for record in records
        if record.get(metric)
    }


def _interval(climb: Climb, plain: Sequence[Record], tradeoff: Tradeoff) -> tuple[float, float]:
    """95 % percentile bootstrap of the octaves."""
    control = [_values(rows, tradeoff.control) for rows in climb.records]
    quality = [_values(rows, tradeoff.quality) for rows in climb.records]
    plain_quality = _values(plain, tradeoff.quality)
    tables = [*control, *quality, plain_quality]
    subjects = [subject for subject in plain_quality if all(subject in table for table in tables)]
    if not subjects:
        return math.nan, math.nan
    rng, octaves = random.Random(0), []
    for _ in range(_DRAWS):
        drawn = rng.choices(subjects, k=len(subjects))
        means = [fmean(map(table.__getitem__, drawn)) for table in tables]
        ends = means[: len(control)], means[len(control) : -1], means[-1] - QUALITY_LOSS
        found = stable_range(climb.strengths, *ends)
        octaves.append(found.octaves if found else 0.0)
    octaves.sort()
    return octaves[int(0.025 * _DRAWS)], octaves[int(0.975 * _DRAWS) - 1]


def write_stability(path: Path, lines: Sequence[Mapping[str, object]]) -> bool:
    """Write :func:`stability` as a CSV file, whole or not at all; whether there was anything to write."""
    if lines:
        with replacing(path) as temporary:
            append_table(temporary, tuple(lines[0]), lines)
    return bool(lines)


def stability_table(lines: Sequence[Mapping[str, object]], tradeoff: Tradeoff) -> str:
    """:func:`stability` as aligned text."""
    title = (
        f"stable range of {tradeoff.strength}: {tradeoff.control} at least {CONTROL_SHARE:.0%} of the curve's best, "
        f"{tradeoff.quality} at most {QUALITY_LOSS:g} below plain"
    )
    columns = ("curve", "octaves", "low", "high", "from", "to", "open", "best_control", "kept_control", "control_seed_std")
    told, _ = aligned(columns, [[_text(line[column]) for column in columns] for line in lines], kept=4)
    return f"{title}\n{told}"


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
