"""Rows from files of layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnguide.ablation.layouts import LayoutsError, layout_rows
from attnguide.shapes.layouts import load_layouts

FILE = 'id,category,prompt,obj1,bbox1\na,one,a cat,cat,"0,0,64,128"\nb,two,a dog,dog,"0,0,1,1"\nc,one,a cat,cat,"0,0,9,9"\n'


@pytest.mark.parametrize("name", ["development", "benchmark"])
def test_shipped_layouts_are_read_as_the_benchmark_reads_them(name: str) -> None:
    rows = {row["id"]: row for row in layout_rows(name)}
    for layout in load_layouts(name):
        row = rows[layout.id]
        assert (row["prompt"], row["tags"]["category"]) == (layout.prompt, layout.category)
        assert [region["phrase"] for region in row["regions"]] == list(layout.phrases)
        assert [tuple(region["box"]) for region in row["regions"]] == list(layout.boxes)
    assert len(rows) == len(load_layouts(name))


def test_prompts_are_spread_over_each_category() -> None:
    rows = layout_rows("development", ["counting", "boxes"], 2)
    layouts = load_layouts("development")
    ids = {name: [layout.id for layout in layouts if layout.category == name] for name in ("counting", "boxes")}
    assert [row["id"] for row in rows] == [ids["counting"][0], ids["counting"][5], ids["boxes"][0], ids["boxes"][4]]


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(FILE)
    (row, _) = layout_rows(str(path), ["one"])
    assert row == {
        "id": "a",
        "prompt": "a cat",
        "regions": [{"phrase": "cat", "box": [0, 0, 0.5, 1]}],
        "tags": {"category": "one"},
    }
    assert layout_rows(str(path), prompts=1, size=(256, 256))[0]["regions"][0]["box"] == [0, 0, 0.25, 0.5]
    assert [row["id"] for row in layout_rows(str(path), prompts=1)] == ["a", "b"]


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(FILE.replace('"0,0,1,1"', "here"))
    with pytest.raises(LayoutsError, match=r"layouts: expected .*did you mean 'development'.*got 'developmnt'"):
        layout_rows("developmnt")
    with pytest.raises(LayoutsError, match=r"categories: expected some of single, .*did you mean 'boxes'.*got 'boxs'"):
        layout_rows("development", ["boxs"])
    with pytest.raises(ValueError, match=r"own.csv, line 3: .*'here'"):
        layout_rows(str(path))


def test_boxes_in_pixels_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "layouts.csv"
    path.write_text('prompt,obj1,bbox1\na cat,cat,"0,128,256,512"\n', encoding="utf-8")
    (row,) = layout_rows(str(path), size=(512, 512))
    assert row["regions"] == [{"phrase": "cat", "box": [0, 0.25, 0.5, 1]}]
