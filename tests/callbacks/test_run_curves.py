"""Curves as means over rows, from tables written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnguide.callbacks.flat_config import flat_config
from attnguide.callbacks.run_curves import run_curves
from attnguide.callbacks.run_log import means, pictures_by_key
from attnguide.types import MethodConfig, Sample

RECORDS = [
    {"id": "a", "method": "x", "steps": "4", "status": "ok"},
    {"id": "b", "method": "x", "steps": "4", "status": "ok"},
    {"id": "c", "method": "x+y", "steps": "4", "status": "ok"},
]

TRACE = """\
id,step,progress,method,iteration,loss,indicator,moved,gradient_norm
a,0,0,x,0,9,0,1,1
a,0,0,x,1,1,0,1,2
b,0,0,x,0,3,0,1,4
a,2,0.5,x,0,5,0,1,1
c,0,0,x,0,7,0,1,1
c,0,0,y,0,8,0,1,1
gone,0,0,x,0,100,0,1,1
"""

NORMS = """\
id,step,stage,site,height,width,region,phrase,mean,l1,l2,max,entropy,inside
a,1,before,s,8,8,0,cat,1,1,50,1,1,0.9
a,1,after,s,8,8,0,cat,1,1,2,1,1,0.2
a,1,after,t,8,8,0,cat,1,1,4,1,1,0.4
b,1,after,s,8,8,0,cat,1,1,9,1,1,0.7
b,1,after,s,8,8,1,dog,1,1,5,1,1,
"""


def test_a_curve_is_the_mean_over_rows_of_their_last_loss(tmp_path: Path) -> None:
    (tmp_path / "loss_trace.csv").write_text(TRACE)
    found = run_curves(tmp_path, RECORDS, {"b"})
    first, second = found.guide
    assert (first.step, second.step, second.progress) == (0, 2, 0.5)
    assert first.values["guide/loss/x"] == 2 and first.values["guide/loss_std/x"] == pytest.approx(2**0.5)
    assert first.values["guide/gradient_norm/x"] == 3
    assert first.values["guide/loss/x_and_y/x"] == 7 and first.values["guide/loss/x_and_y/y"] == 8
    assert second.values == {
        "guide/loss/x": 5,
        "guide/loss_std/x": 0,
        "guide/gradient_norm/x": 1,
        "guide/gradient_norm_std/x": 0,
    }
    assert [(point.step, point.values) for point in found.rows] == [(0, {"rows/loss/b": 3})] and found.maps == []


def test_maps_are_averaged_over_sites_then_over_rows(tmp_path: Path) -> None:
    (tmp_path / "map_norms.csv").write_text(NORMS)
    found = run_curves(tmp_path, RECORDS)
    (point,) = found.maps
    assert point.values["maps/l2/x/placed"] == 6 and point.values["maps/l2/x/unplaced"] == 5
    assert point.values["maps/inside/x/placed"] == pytest.approx(0.5) and "maps/inside/x/unplaced" not in point.values
    (guide,) = found.guide
    assert guide.values["guide/inside/x"] == pytest.approx(0.5)
    assert guide.values["guide/inside_std/x"] == pytest.approx(0.4 / 2**0.5)


def test_means_by_method_and_by_cell_leave_out_what_a_failed_row_cost() -> None:
    numbers = [("ok", "1", "2", "one"), ("ok", "3", "4", "two"), ("refused: no", "", "0", "two")]
    rows = [
        {"id": str(n), "method": "x", "hit": hit, "seconds": seconds, "status": status, "cell": cell, "axis.scale": "7"}
        for n, (status, hit, seconds, cell) in enumerate(numbers)
    ]
    found = means(rows)
    assert found["mean/hit/x"] == 2 and found["std/hit/x"] == pytest.approx(2**0.5) and found["n/x"] == 3
    assert found["mean/seconds/x"] == 3 and found["mean/failed/x"] == pytest.approx(1 / 3)
    assert found["cell/hit/two"] == 3 and found["cell/failed/two"] == 0.5
    assert not any("axis" in key or "/id/" in key for key in found)


def test_every_method_has_the_same_seed_at_the_same_place(tmp_path: Path) -> None:
    rows = [("0", "plain"), ("1", "plain"), ("1", "x"), ("0", "x")]
    records = [{"id": f"{m}{s}", "prompt": "a cat", "regions": "", "seed": s, "method": m, "status": "ok"} for s, m in rows]
    found = pictures_by_key(tmp_path, records)
    assert {key: [p.caption.split(",")[0] for p in pictures] for key, pictures in found.items()} == {
        "pictures/plain": ["seed 0", "seed 1"],
        "pictures/x": ["seed 0", "seed 1"],
    }


def test_a_flat_configuration_says_what_rows_agree_on() -> None:
    rows = [
        Sample(f"r{n}", "a cat", seed=n, steps=4, cfg_scale=3.0 + n, methods=(MethodConfig("x", {"a": 1, "b": n}),))
        for n in range(2)
    ]
    flat = flat_config({"model": "shapes", "rows": [{"id": "r0"}], "trainer": {"devices": 1}, "out": None}, rows)
    assert flat["prompt"] == "a cat" and flat["steps"] == 4 and "cfg_scale" not in flat
    assert flat["x/a"] == 1 and "x/b" not in flat and (flat["rows"], flat["seeds"], flat["methods"]) == (2, 2, "x")
    assert not {"out", "trainer/devices", "height"} & set(flat)
    axes = [Sample(f"r{n}", "a cat", tags={"axis.scale": n, "axis.way": "w", "other": 1}) for n in (2, 1)]
    assert {k: v for k, v in flat_config({}, axes).items() if k.startswith("axis")} == {"axis/scale": "2, 1", "axis/way": "w"}
