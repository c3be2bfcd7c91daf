"""The table at the end of a run."""

from __future__ import annotations

from attnguide.cli.outcome import means, table

RECORDS = [
    {"id": "seed0-plain", "prompt": "a cat", "seed": "0", "method": "plain", "inside": "0.25", "loss_x": "", "seconds": "1.26"},
    {"id": "seed0-x", "prompt": "a cat", "seed": "0", "method": "x", "inside": "0.5", "loss_x": "-1.5", "seconds": "2"},
    {"id": "seed10-x", "prompt": "a cat", "seed": "10", "method": "x", "inside": "1", "loss_x": "", "seconds": "4"},
]
ROWS = [{**record, "unet_forwards": "60", "empty": "", "status": "ok"} for record in RECORDS]


def test_columns_are_aligned_and_empty_ones_left_out() -> None:
    lines = table(ROWS).splitlines()
    assert lines[0].split() == ["id", "seed", "method", "inside", "loss_x", "seconds", "forwards"]
    assert lines[1].split() == ["seed0-plain", "0", "plain", "0.250", "1.3", "60"]
    assert lines[3].split() == ["seed10-x", "10", "x", "1.000", "4.0", "60"]
    for name in ("method", "inside"):
        assert {line[lines[0].index(name) - 1] for line in lines} == {" "}


def test_a_failed_row_shows_in_the_table() -> None:
    lines = table([ROWS[0], {**ROWS[1], "status": "stopped at step 3: NaN"}]).splitlines()
    assert lines[0].split()[-1] == "status" and lines[1].split()[-1] == "ok" and lines[2].split()[-1] == "failed"


def test_means_of_each_method() -> None:
    plain, steered = means(ROWS)
    assert (plain["method"], plain["rows"], plain["inside"]) == ("plain", "1", "0.25")
    assert (steered["rows"], float(steered["inside"]), float(steered["loss_x"])) == ("2", 0.75, -1.5)
    assert plain["loss_x"] == "" and "id" not in plain
    assert table(means(ROWS)).splitlines()[2].split()[:2] == ["x", "2"]
