from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnguide.shapes.expectation import expectation_from_layout, expectation_from_prompt
from attnguide.shapes.judge import judge
from attnguide.shapes.layouts import FILES, Layout, choose_layouts, layout_scene, load_layouts, spread
from attnguide.shapes.renderer import SIDE, render
from attnguide.shapes.scene import COLORS, HELD_OUT_PAIRS, SHAPES, combination, is_held_out, relation_holds
from scripts.make_layouts import make_layouts, to_csv

CATEGORIES = {
    "single", "two_objects", "color_attribution", "counting", "position", "boxes", "small_boxes", "overlapping_boxes",
}  # fmt: skip


def _sides(row: Layout) -> list[float]:
    return [side * SIDE for x0, y0, x1, y1 in row.boxes for side in (x1 - x0, y1 - y0)]


def _overlaps(row: Layout) -> bool:
    (a, b) = row.boxes
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def test_the_files_are_what_the_script_makes() -> None:
    made = make_layouts()
    for name, path in FILES.items():
        assert path.read_text(encoding="utf-8") == to_csv(made[name])
        assert load_layouts(name) == made[name] == load_layouts(path)


@pytest.mark.parametrize(("name", "least"), [("benchmark", 32), ("development", 8)])
def test_every_category_has_enough_rows(name: str, least: int) -> None:
    rows = load_layouts(name)
    counts = Counter(row.category for row in rows)
    assert set(counts) == CATEGORIES and min(counts.values()) >= least
    assert len({row.id for row in rows}) == len(rows)


def test_the_files_are_disjoint() -> None:
    benchmark, development = load_layouts("benchmark"), load_layouts("development")
    assert not {row.prompt for row in benchmark} & {row.prompt for row in development}
    groups = [{combination(row.names) for row in rows if len(row.names) > 1} for rows in (benchmark, development)]
    assert not groups[0] & groups[1]


@pytest.mark.parametrize("name", FILES)
def test_what_training_never_saw_is_marked(name: str) -> None:
    for row in load_layouts(name):
        unseen = any(tuple(word.split()) in HELD_OUT_PAIRS for word in row.names)
        expected = "pair" if unseen else "combination" if is_held_out(row.names) else "no"
        assert row.held_out == expected, row
        assert len(row.names) == 1 or row.held_out != "no", row


def test_single_rows_are_all_pairs() -> None:
    rows = [row for row in load_layouts("benchmark") if row.category == "single"]
    assert sorted(row.names[0] for row in rows) == sorted(f"{color} {shape}" for color in COLORS for shape in SHAPES)


@pytest.mark.parametrize("name", FILES)
def test_prompts_say_what_the_boxes_hold(name: str) -> None:
    for row in load_layouts(name):
        asked, said = expectation_from_layout(row), expectation_from_prompt(row.prompt)
        assert said is not None, row
        assert (asked.objects, asked.counts, asked.relation) == (said.objects, said.counts, said.relation), row


def test_boxes_keep_the_promise_of_their_category() -> None:
    for row in load_layouts("benchmark"):
        assert min(_sides(row)) >= 24 - 1e-6, row
        if row.category == "small_boxes":
            assert max(_sides(row)) <= 30 + 1e-6, row
        if row.category == "overlapping_boxes":
            assert _overlaps(row), row
        if row.category == "position":
            first, second = (((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in row.boxes)
            assert row.relation is not None and relation_holds(first, second, row.relation, margin=0.2), row
    numbers = {len(row.names) for row in load_layouts("benchmark") if row.category == "counting"}
    assert numbers == {2, 3, 4, 5, 6}
    assert {len(row.names) for row in load_layouts("benchmark") if row.category == "boxes"} == {1, 2, 3, 4}


@pytest.mark.parametrize("name", FILES)
def test_every_row_can_be_fulfilled(name: str) -> None:
    for row in load_layouts(name):
        assert sorted(judge(render(layout_scene(row))).names) == sorted(row.names), row


def _write(path: Path, header: str, *lines: str) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_files_of_other_worlds_and_sizes_are_read(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "other.csv",
        "id,category,prompt,obj1,bbox1,obj2,bbox2",
        '000,any,"A rose and an oak",rose,"128,64,256,512",oak,"0,0,64,64"',
        '001,any,A rose,rose,"0,0,512,512",,',
    )
    rows = load_layouts(path, side=512)
    assert rows[0].boxes == ((0.25, 0.125, 0.5, 1.0), (0.0, 0.0, 0.125, 0.125))
    assert rows[1].names == ("rose",) and rows[1].held_out == "no" and rows[1].relation is None


def test_a_box_without_area_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "flat.csv",
        "id,category,prompt,obj1,bbox1,obj2,bbox2",
        '7,any,a rose and an oak,rose,"5,5,5,5",oak,"0,0,64,64"',
    )
    with pytest.warns(UserWarning, match="'rose' has no area"):
        assert load_layouts(path)[0].phrases == ("oak",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('0,any,a rose,tulip,"0,0,64,64"', "'tulip' does not occur"),
        ('0,any,a rose,rose,"0,0,64"', "'x0,y0,x1,y1'"),
        ('0,any,a rose,rose,"64,0,0,64"', "x0 < x1"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_layouts(_write(tmp_path / "bad.csv", "id,category,prompt,obj1,bbox1", row))


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="benchmark, development"):
        load_layouts("no such file")
    with pytest.raises(ValueError, match="bbox1"):
        load_layouts(_write(tmp_path / "bad.csv", "id,category,prompt,obj1"))


def test_rows_check_themselves() -> None:
    box = (0.1, 0.1, 0.5, 0.5)
    with pytest.raises(ValueError, match="one box per phrase"):
        Layout("0", "any", "a rose", ("rose",), ())
    with pytest.raises(ValueError, match="'beside'"):
        Layout("0", "any", "a rose", ("rose",), (box,), relation="beside")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="held_out"):
        Layout("0", "any", "a rose", ("rose",), (box,), held_out="yes")
    row = Layout("0", "any", "a rose", ("rose",), (box,))
    with pytest.raises(ValueError, match="colour and shape"):
        layout_scene(row)
    with pytest.raises(ValueError, match="'lilac'"):
        layout_scene(Layout("0", "any", "a red star", ("red star",), (box,)), background="lilac")


@given(st.integers(0, 40), st.integers(1, 40))
def test_spread_covers_evenly_and_doubling_keeps_the_rows(size: int, number: int) -> None:
    rows = range(size)
    chosen = spread(rows, number)
    assert len(chosen) == min(size, number) and chosen == sorted(set(chosen)) and chosen[:1] == list(rows[:1])
    assert set(chosen) <= set(spread(rows, 2 * number))
    gaps = {after - before for before, after in pairwise([*chosen, size])}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_spread_takes_all_or_refuses() -> None:
    assert spread("abc", None) == ["a", "b", "c"] and spread("abcdef", 3) == ["a", "c", "e"]
    with pytest.raises(ValueError, match="number must be at least 1; got 0"):
        spread("abc", 0)


def test_chosen_layouts_hold_every_count() -> None:
    rows = choose_layouts(load_layouts("benchmark"), ["counting", "boxes"], 4)
    assert [row.category for row in rows] == ["counting"] * 4 + ["boxes"] * 4
    assert [len(row.boxes) for row in rows[4:]] == [1, 2, 3, 4]
    assert choose_layouts(load_layouts("development"), None, None) == load_layouts("development")
