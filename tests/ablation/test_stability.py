"""The stability number on curves whose answer is known, and from records."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from attnguide.ablation.axes import Axis, Point, Tradeoff
from attnguide.ablation.stability import climbs, stability, stability_table, stable_range, write_stability
from attnguide.ablation.summary import Record
from attnguide.ablation.tradeoff import write_tradeoff
from attnguide.run_folder.tables import read_table

OCTAVES = [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("control", "quality", "least", "first", "last"),
    [
        # Control reaches 0.9 at nine tenths of the first octave; quality falls to 0.5 in the middle of the last.
        ([0, 1, 1, 1], [1, 1, 1, 0], 0.5, 2**0.9, 2**2.5),
        # Ten percent below the best is good enough, and so is the least quality itself.
        ([0.9, 1, 0.9, 0.5], [1, 1, 1, 1], 1.0, 1, 4),
        # Two runs: the longer one counts. Quality is 0.5 a quarter into the second octave's fall and rises again.
        ([1, 1, 1, 1], [1, 0, 0.5, 1], 0.5, 4, 8),
        # Strong only where quality is gone, but for the point where both lines cross their limits.
        ([0, 0.8, 1, 1], [1, 1, 0.5, 0], 0.75, 2**1.5, 2**1.5),
        ([1, 1, 1, 1], [1, 1, 1, 1], 0.5, 1, 8),
        # Good enough at one strength alone.
        ([0, 1, 0, 0], [0, 1, 0, 0], 1.0, 2, 2),
    ],
)
def test_ranges_by_hand(control: list[float], quality: list[float], least: float, first: float, last: float) -> None:
    found = stable_range(OCTAVES, control, quality, least)
    assert found is not None
    assert (found.first, found.last) == pytest.approx((first, last))
    assert found.octaves == pytest.approx(math.log2(last / first))
    assert (found.open_below, found.open_above) == (first == 1, last == 8)


@pytest.mark.parametrize(
    ("control", "quality"),
    [([0, 0.5, 0.5, 1], [1, 1, 1, 0]), ([0, 0, 0, 0], [1, 1, 1, 1]), ([1, 1, 1, 1], [0, 0, 0, 0])],
)
def test_there_may_be_none(control: list[float], quality: list[float]) -> None:
    assert stable_range(OCTAVES, control, quality, 0.9) is None


def test_uneven_steps_are_read_as_octaves() -> None:
    found = stable_range([1, 16], [0.9, 1.0], [1.0, 0.0], 0.5)
    assert found is not None and (found.first, found.last) == pytest.approx((1, 4))


_TWENTIETHS = st.integers(0, 20).map(lambda n: n / 20)  # coarse enough for the grid to see every gap between two runs
_VALUES = st.lists(_TWENTIETHS, min_size=4, max_size=4)


@given(control=_VALUES, quality=_VALUES, least=_TWENTIETHS)
def test_range_against_a_fine_grid(control: list[float], quality: list[float], least: float) -> None:
    found = stable_range(OCTAVES, control, quality, least)
    grid = np.linspace(0, 3, 3001)
    fine = (np.interp(grid, range(4), control) >= 0.9 * max(control)) & (np.interp(grid, range(4), quality) >= least)
    longest = run = 0
    for good in fine & (max(control) > 0):
        run = run + 1 if good else 0
        longest = max(longest, run)
    assert (found.octaves if found else 0.0) == pytest.approx(max(longest - 1, 0) / 1000, abs=3e-3)


# ----------------------------------------------------------------------------------------------------- from records

AXES = (
    Axis("way", (Point("strong", {}, 1), Point("safe", {}, 1))),
    Axis("strength", tuple(Point(value, {}, 1) for value in (0, 1, 2, 4))),
)
TRADEOFF = Tradeoff("strength", control="region_hit", quality="explained")
HITS = {"strong": [0, 0.5, 1, 1], "safe": [0, 0.5, 0.5, 0.5]}
QUALITIES = {"strong": [1, 1, 0.9, 0.2], "safe": [1, 0.99, 0.99, 0.99]}


def _record(cell: str, seed: int, hit: float, explained: float, **own: str) -> dict[str, str]:
    fixed = {"id": f"{cell}-{seed}", "prompt": "a cat", "seed": str(seed), "regions": "[]", "method": "m", "status": "ok"}
    return {**fixed, "cell": cell, "region_hit": str(hit), "explained": str(explained), **own}


def _records() -> list[Record]:
    found: list[Record] = [_record("plain", seed, 0.1, 1.0) for seed in (0, 1)]
    for way, hits in HITS.items():
        for index, value in enumerate((0, 1, 2, 4)):
            for seed, change in ((0, -0.1), (1, 0.1)):
                place = {"axis.way": way, "axis.strength": str(value)}
                found.append(_record(f"{way}, {value}", seed, hits[index] + change, QUALITIES[way][index], **place))
    return found


def test_curves_climb_from_the_weakest_strength_and_leave_zero_out() -> None:
    found = climbs(_records(), AXES, "strength")
    assert [(climb.label, climb.strengths) for climb in found] == [("strong", (1, 2, 4)), ("safe", (1, 2, 4))]
    assert all(len(rows) == 2 for climb in found for rows in climb.records)


def test_stability_of_two_curves(tmp_path: Path) -> None:
    lines = stability(_records(), AXES, TRADEOFF)
    strong, safe = lines
    assert (strong["curve"], strong["octaves"], strong["from"]) == ("strong", 0.0, None)  # 0.9 of its best only below 0.98
    assert (safe["octaves"], safe["from"], safe["to"], safe["open"]) == (2.0, 1.0, 4.0, "below and above")
    assert (strong["best_control"], strong["best_strength"]) == pytest.approx((1.0, 2.0))
    assert (strong["kept_control"], strong["kept_strength"]) == pytest.approx((0.5, 1.0))
    assert strong["plain_quality"] == 1.0 and strong["n"] == 2
    assert strong["control_seed_std"] == pytest.approx(0.2 / math.sqrt(2)) and strong["quality_seed_std"] == 0
    assert safe["low"] <= safe["octaves"] <= safe["high"]  # type: ignore[operator]
    assert write_stability(tmp_path / "stability.csv", lines)
    assert [line["curve"] for line in read_table(tmp_path / "stability.csv")] == ["strong", "safe"]
    told = stability_table(lines, TRADEOFF).splitlines()
    assert "90%" in told[0] and "0.02" in told[0] and told[3].split()[:2] == ["safe", "2"]


def test_a_row_without_a_picture_counts_as_nothing_right() -> None:
    records = _records()
    records[-1] = {**records[-1], "region_hit": "", "explained": "", "status": "nan"}
    safe = stability(records, AXES, TRADEOFF)[1]
    assert safe["to"] == pytest.approx(2 ** (1 + 0.01 / (0.99 / 2)))  # quality falls from 0.99 to half of it
    assert safe["open"] == "below"


def test_without_plain_pictures_or_metrics_there_is_nothing_to_say() -> None:
    assert stability(_records()[2:], AXES, TRADEOFF) == []
    assert stability(_records(), AXES, Tradeoff("strength", control="count")) == []


def test_control_is_drawn_against_quality(tmp_path: Path) -> None:
    (path,) = write_tradeoff(tmp_path, AXES, _records(), TRADEOFF)
    assert path == tmp_path / "plots" / "region_hit-against-explained.png"
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
    for colour in ((31, 119, 180), (255, 127, 14), (0, 0, 0)):  # two curves and the plain point
        assert (np.abs(pixels - colour).sum(1) < 40).sum() > 30
    assert list(write_tradeoff(tmp_path, AXES, _records(), Tradeoff("strength", control="count"))) == []
