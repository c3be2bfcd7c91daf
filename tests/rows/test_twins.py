from dataclasses import replace

from attnguide.rows.twins import with_twins
from attnguide.types import MethodConfig, Region, Sample

GUIDED = (MethodConfig("mask_guidance"),)
ROW = Sample("a", "a red cat", methods=GUIDED, regions=(Region("red cat", box=(0, 0, 0.5, 1)),))


def ids(*rows: Sample) -> list[str]:
    return [row.id for row in with_twins(rows, lambda row: row, lambda row: replace(row, id=f"{row.id}-plain", methods=()))]


def test_a_twin_stands_before_the_first_row_that_needs_it() -> None:
    other = replace(ROW, id="b", methods=(MethodConfig("inject1"),))
    assert ids(ROW, other) == ["a-plain", "a", "b"]


def test_rows_with_other_plain_pictures_or_scores_have_twins_of_their_own() -> None:
    places = (Region("red cat", box=(0.5, 0, 1, 1)),)
    others = [{"seed": 1}, {"steps": 5}, {"prompt_syntax": "weights"}, {"regions": places}, {"groups": (("red", "cat"),)}]
    rows = [replace(ROW, id=f"r{index}", **other) for index, other in enumerate(others)]
    assert ids(ROW, *rows) == ["a-plain", "a", *(name for index in range(5) for name in (f"r{index}-plain", f"r{index}"))]


def test_a_plain_row_of_the_table_is_the_twin_and_a_bad_row_needs_none() -> None:
    plain = replace(ROW, id="p", methods=())
    assert ids(ROW, plain) == ["a", "p"]
    assert ids(replace(ROW, problem="no such word")) == ["a"]
