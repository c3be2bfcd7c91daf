"""The table at the end of a run."""

from __future__ import annotations

import pytest

from attnguide.cli.outcome import guidance_told, means, table

RECORDS = [
    {"id": "seed0-plain", "prompt": "a cat", "seed": "0", "method": "plain", "inside": "0.25", "loss_x": "", "seconds": "1.26"},
    {"id": "seed0-x", "prompt": "a cat", "seed": "0", "method": "x", "inside": "0.5", "loss_x": "-1.5", "seconds": "2"},
    {"id": "seed10-x", "prompt": "a cat", "seed": "10", "method": "x", "inside": "1", "loss_x": "", "seconds": "4"},
]
ROWS = [{**record, "unet_forwards": "60", "empty": "", "status": "ok"} for record in RECORDS]


def test_columns_that_differ_are_aligned() -> None:
    lines = table(ROWS).splitlines()
    assert lines[0].split() == ["id", "seed", "method", "inside", "loss_x", "seconds"]
    assert lines[1].split() == ["seed0-plain", "0", "plain", "0.250", "1.3"]
    assert lines[3].split() == ["seed10-x", "10", "x", "1.000", "4.0"]
    for name in ("method", "inside"):
        assert {line[lines[0].index(name) - 1] for line in lines[:-1]} == {" "}
    assert lines[4:] == ["all columns are in records.csv"]
    assert "forwards" in table(ROWS[:1]), "one row shows what it has"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_table_fits(width: int) -> None:
    numbers = {f"a_metric_with_a_long_name_{index}": str(0.5 + index) for index in range(8)}
    rows = [{**row, **{name: f"{float(text) + at}" for name, text in numbers.items()}} for at, row in enumerate(ROWS)]
    assert max(map(len, table(rows, width).splitlines())) <= width
    long = [{**row, "id": "x" * 150 + row["id"]} for row in rows]
    lines = table(long, width).splitlines()
    assert max(map(len, lines)) <= width and all("..." in line for line in lines[1:4])
    assert "seed0-x" in lines[2], "the end of an id is what tells it apart"


def test_ids_that_look_like_numbers_are_printed_as_they_are() -> None:
    rows = [{**row, "id": id} for row, id in zip(ROWS, ("000", "034", "1e3"), strict=True)]
    assert [line.split()[0] for line in table(rows).splitlines()[1:4]] == ["000", "034", "1e3"]


def test_a_failed_row_shows_in_the_table() -> None:
    lines = table([ROWS[0], {**ROWS[1], "status": "stopped at step 3: NaN"}]).splitlines()
    assert lines[0].split()[1] == "status" and lines[1].split()[1] == "ok" and lines[2].split()[1] == "failed"


def test_means_of_each_method() -> None:
    plain, steered = means(ROWS)
    assert (plain["method"], plain["rows"], plain["inside"]) == ("plain", "1", "0.25")
    assert (steered["rows"], float(steered["inside"]), float(steered["loss_x"])) == ("2", 0.75, -1.5)
    assert plain["loss_x"] == "" and "id" not in plain
    assert table(means(ROWS)).splitlines()[2].split()[:2] == ["x", "2"]


def test_the_guidance_that_acts_is_told() -> None:
    assert guidance_told({"cfg_scale": 5.0, "true_cfg_scale": 1.0}) == "cfg scale 5"
    assert guidance_told({"cfg_scale": 3.5, "true_cfg_scale": 2.0}) == "cfg scale 3.5, true cfg scale 2"
