"""Values of columns, and picking some of an axis."""

from __future__ import annotations

import pytest

from attnguide.ablation.axes import Axis, Cell, Point, column_value, narrowed


def _axis(*values: object) -> Axis:
    return Axis("x", tuple(Point(column_value(value), {"x": value}, 1) for value in values))


def test_values_of_columns_are_numbers_and_text() -> None:
    assert [column_value(value) for value in (1, 2.5, "a", True, None, [0, 1])] == [1, 2.5, "a", "true", "none", "[0,1]"]


def test_curves_need_two_numbers() -> None:
    assert _axis(1, 2.5).is_numeric
    assert not _axis(1).is_numeric and not _axis(1, "a").is_numeric and not _axis(True, False).is_numeric


def test_values_are_picked_as_they_are_typed_or_as_wandb_writes_them() -> None:
    axis = _axis(1, 2.5, "a", [0, 1], True)
    assert [point.label for point in narrowed(axis, ["2.50", "1.0"]).points] == ["1", "2.5"]
    assert [point.label for point in narrowed(axis, ["[0, 1]", "True"]).points] == ["[0,1]", "true"]
    with pytest.raises(ValueError, match=r"x: expected a value of the axis, one of 1, 2.5, a.*'b'"):
        narrowed(axis, ["b"])


def test_a_name_is_picked_before_what_a_value_sets() -> None:
    points = (Point("stable", {"method": "stable"}, 1), Point("injection alone", {"method": "stable"}, 2))
    assert narrowed(Axis("way", points), ["stable"]).points == points[:1]


def test_a_cell_without_axes_has_a_name() -> None:
    assert Cell({}).name == "base"
