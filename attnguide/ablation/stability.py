"""Stable range of a method: the strengths at which control is near its best and quality near that of plain pictures."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from attnguide.ablation.axes import Axis, Tradeoff
from attnguide.ablation.plots import steered
from attnguide.ablation.summary import Record, estimate, grouped, plain_of, seed_std
from attnguide.run_folder.files import replacing
from attnguide.run_folder.records import AXIS
from attnguide.run_folder.tables import append_table
from attnguide.text.aligned import aligned
from attnguide.types import verdict

STABILITY_FILE = "stability.csv"

CONTROL_SHARE = 0.9
"""Share of a curve's best control that is still good enough."""

QUALITY_LOSS = 0.02
"""Largest drop of quality below that of plain pictures, in the metric's unit."""

_DRAWS = 200


@dataclass(frozen=True)
class Climb:
    """Records of a method along its strengths.

    Attributes:
        label: Values of all axes but the strength, as text.
        strengths: Strengths above 0, rising.
        records: Records of the rows at each strength.
    """

    label: str
    strengths: tuple[float, ...]
    records: tuple[tuple[Record, ...], ...]


@dataclass(frozen=True)
class Range:
    """A stable range of strengths.

    Attributes:
        first: Its lower end.
        last: Its upper end.
        open_below: Whether it begins at the weakest strength tried, so that the true range may be longer.
        open_above: Whether it ends at the strongest strength tried.
    """

    first: float
    last: float
    open_below: bool = False
    open_above: bool = False

    @property
    def octaves(self) -> float:
        """Length of the range, ``log2(last / first)``."""
        return math.log2(self.last / self.first)


def counted(records: Iterable[Record], metrics: Sequence[str]) -> list[Record]:
    """The records, with 0 for these metrics in rows that gave no picture, which averages would leave out."""
    return [record if verdict(record["status"]) == "ok" else {**record, **dict.fromkeys(metrics, "0")} for record in records]


def climbs(records: Sequence[Record], axes: Sequence[Axis], strength: str) -> list[Climb]:
    """A climb for each combination of the other axes; strengths of 0 or below are dropped, since octaves need positive ones.

    Args:
        records: Lines of ``records.csv``.
        axes: Axes of the ablation.
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
    """The longest interval of strengths with control of at least 90 % of its best and quality of at least ``least_quality``.

    Both metrics are interpolated linearly over the logarithm of strength.

    Args:
        strengths: Strengths above 0, rising.
        control: Mean control at each strength; higher is better.
        quality: Mean quality at each strength; higher is better.
        least_quality: Lowest quality that is good enough.

    Returns:
        The range, which may be a single strength; ``None`` if no strength is good enough, or control is nowhere above 0.

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
    """Linear interpolation between two ends; exactly an end for shares of 0 and 1."""
    return ends[0] if share <= 0 else ends[1] if share >= 1 else ends[0] + share * (ends[1] - ends[0])


def _both(margins: Sequence[float], quality: Sequence[float], least_quality: float) -> tuple[float, float] | None:
    """Part of a segment, in [0, 1], in which control's margin is at least 0 and quality at least ``least_quality``."""
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
    """The intervals, with touching ones joined."""
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
    """A line for each curve: its stable range in octaves with a 95 % interval, its best control, the best that keeps quality.

    The interval is a bootstrap over prompts, or over seeds where there is one prompt, the same draws for the curve and for
    plain pictures. Rows without a picture count as 0 in control and quality.

    Returns:
        ``curve``; ``octaves`` with ``low`` and ``high``; the range's ends ``from`` and ``to``, and at which of them (``open``)
        the strengths that were tried end, not the range; ``best_control`` and the strength where it is; ``kept_control``, the
        best at a strength that keeps quality, and that strength; quality of plain pictures; spread over seeds of control and
        quality, as the mean over strengths; ``n``, the largest number of rows at a strength. Empty without plain pictures that
        have the quality metric; curves whose rows lack a metric are left out.
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
    """Values of a metric by prompt, regions and seed."""
    return {
        (record.get("prompt", ""), record.get("regions", ""), record["seed"]): float(record[metric])
        for record in records
        if record.get(metric)
    }


def _interval(climb: Climb, plain: Sequence[Record], tradeoff: Tradeoff) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the stable range's octaves, over prompts, or seeds where there is one prompt."""
    control = [_values(rows, tradeoff.control) for rows in climb.records]
    quality = [_values(rows, tradeoff.quality) for rows in climb.records]
    plain_quality = _values(plain, tradeoff.quality)
    tables = [*control, *quality, plain_quality]
    subjects = [subject for subject in plain_quality if all(subject in table for table in tables)]
    if not subjects:
        return math.nan, math.nan
    prompts: dict[Hashable, list[tuple[str, ...]]] = {}
    several = len({prompt for prompt, *_ in subjects}) > 1
    for subject in subjects:
        prompts.setdefault(subject[0] if several else subject, []).append(subject)
    rng, octaves = random.Random(0), []
    for _ in range(_DRAWS):
        drawn = [subject for own in rng.choices([*prompts.values()], k=len(prompts)) for subject in own]
        means = [fmean(map(table.__getitem__, drawn)) for table in tables]
        ends = means[: len(control)], means[len(control) : -1], means[-1] - QUALITY_LOSS
        found = stable_range(climb.strengths, *ends)
        octaves.append(found.octaves if found else 0.0)
    octaves.sort()
    return octaves[int(0.025 * _DRAWS)], octaves[int(0.975 * _DRAWS) - 1]


def write_stability(path: Path, lines: Sequence[Mapping[str, object]]) -> bool:
    """Write lines of :func:`stability` as a CSV file, atomically; False if there are none."""
    if lines:
        with replacing(path) as temporary:
            append_table(temporary, tuple(lines[0]), lines)
    return bool(lines)


def stability_table(lines: Sequence[Mapping[str, object]], tradeoff: Tradeoff) -> str:
    """Lines of :func:`stability` as an aligned text table."""
    title = (
        f"stable range of {tradeoff.strength}: {tradeoff.control} at least {CONTROL_SHARE:.0%} of the curve's best, "
        f"{tradeoff.quality} at most {QUALITY_LOSS:g} below plain"
    )
    columns = ("curve", "octaves", "low", "high", "from", "to", "open", "best_control", "kept_control", "control_seed_std")
    told, _ = aligned(columns, [[_text(line[column]) for column in columns] for line in lines], kept=4)
    return f"{title}\n{told}"


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
