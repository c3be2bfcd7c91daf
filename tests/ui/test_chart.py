"""The drawing of losses."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from attnguide.ui.chart import loss_chart, ticks


def _lines(chart: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polyline points="([^"]+)"', chart)
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in line.split())] for line in found]


def test_a_line_a_row_falls_as_its_loss_does() -> None:
    chart = loss_chart([(0, 0.8, "seed 0"), (0, 0.4, "seed 1"), (1, 0.4, "seed 0"), (2, 0.0, "seed 0")], 5, "#123456")
    ElementTree.fromstring(f"<div>{chart}</div>")
    first, second = _lines(chart)
    assert len(first) == 3 and len(second) == 1 and second[0][0] == first[0][0]
    (x0, y0), (x1, y1), (x2, y2) = first
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 - y0 == pytest.approx(y2 - y1, abs=0.2) and y2 > y1 > y0
    assert second[0][1] == y1, "one loss, one height"
    assert x2 - x0 == pytest.approx((560 - 56 - 8) / 2, abs=0.2), "the axis spans all five steps"
    assert chart.count("#123456") == 6 and "seed 0" in chart and "seed 1" in chart


def test_losses_that_are_no_numbers_are_left_out_and_names_cannot_leave_their_place() -> None:
    chart = loss_chart([(0, float("nan"), "a"), (0, -1.0, "<b>"), (1, 2.0, "<b>")], 2, "red")
    assert len(_lines(chart)) == 1 and "<b>" not in chart and "nan" not in chart
    for none in ([], [(0, float("inf"), "a")]):
        assert "no loss" in loss_chart(none, 3, "red")
    assert len(_lines(loss_chart([(0, 0.0, "a")], 1, "red"))) == 1


@pytest.mark.parametrize("high", [1e-4, 0.03, 0.7, 1, 3, 7, 99, 12345])
def test_ticks_are_a_few_round_numbers_within(high: float) -> None:
    found = ticks(0, high)
    assert 3 <= len(found) <= 8 and found[0] == 0 and found[-1] <= high * (1 + 1e-9)
    assert found == pytest.approx([float(f"{value:.2g}") for value in found])
    whole = ticks(0, high, whole=True)
    assert len(whole) <= 8 and all(value == int(value) for value in whole)
