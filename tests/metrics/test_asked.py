"""What rows ask for."""

from __future__ import annotations

import pytest

from attnguide.benchmark import layout_samples
from attnguide.judges.base import Asked, AskedObject
from attnguide.judges.shapes import asked_from_layout
from attnguide.metrics.asked import asked_of, stated_relations
from attnguide.shapes.expectation import expectation_from_layout
from attnguide.shapes.layouts import load_layouts
from attnguide.types import Region, Sample

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def test_regions_name_objects_count_them_and_place_them() -> None:
    regions = (Region("a dog", box=LEFT), Region("a dog", box=RIGHT), Region("the red cat"))
    asked = asked_of(Sample("0", "a dog and a dog to the left of the red cat", regions=regions))
    assert asked.objects == (AskedObject("dog", 2, (LEFT, RIGHT)), AskedObject("red cat", noun="cat", attribute="red"))
    assert asked.relations == ((0, "left of", 1),)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("A fox below a table", [(0, "below", 1)]),
        ("a table on the right of the fox", [(1, "right of", 0)]),
        ("a fox near a table", []),
        ("a foxglove above a table", []),
        ("a fox over a table", [(0, "above", 1)]),
    ],
    ids=["below", "on the right of", "near", "part of a word", "over"],
)
def test_relations_are_read_word_for_word(prompt: str, found: list[tuple[int, str, int]]) -> None:
    assert stated_relations(prompt, ["fox", "table"]) == found


def test_a_caption_of_the_shapes_world_is_read_as_one() -> None:
    regions = (Region("a red circle", box=LEFT),)
    asked = asked_of(Sample("0", "a red circle above two blue squares on a white background", regions=regions))
    assert asked.labels == ("red circle", "blue square") and asked.objects[1].count == 2
    assert asked.objects[0].boxes == (LEFT,) and asked.objects[0].attribute == "red" and asked.background == "white"
    assert asked.relations == ((0, "above", 1),)


def test_a_tag_says_it_all() -> None:
    told = {
        "objects": [
            {"label": "clock", "count": 2, "phrase": "clocks"},
            {"label": "blue dog", "noun": "dog", "attribute": "blue"},
        ],
        "relations": [[0, "above", 1]],
    }
    regions = (Region("clocks", box=LEFT), Region("clocks", box=RIGHT))
    asked = asked_of(Sample("0", "two clocks above a blue dog", regions=regions, tags={"asked": told}))
    expected = (AskedObject("clock", 2, (LEFT, RIGHT)), AskedObject("blue dog", noun="dog", attribute="blue"))
    assert asked == Asked("two clocks above a blue dog", expected, ((0, "above", 1),))


@pytest.mark.parametrize(
    "told",
    [
        {"objects": [{"count": 2}]},
        {"objects": 7},
        "no JSON",
        {"objects": [{"label": "a"}], "relations": [[0, "left of", 1]]},
        [1],
    ],
    ids=["no label", "no list", "no JSON", "no second object", "no mapping"],
)
def test_a_tag_that_says_nothing(told: object) -> None:
    with pytest.raises(ValueError, match=r"tag 'asked' of row '0'"):
        asked_of(Sample("0", "a dog", tags={"asked": told}))


def test_the_benchmarks_rows_ask_for_what_its_layouts_do() -> None:
    layouts = load_layouts("benchmark")
    for layout, row in zip(layouts, layout_samples(layouts, [0]), strict=True):
        expected, asked = asked_from_layout(layout), asked_of(row)
        by_label = {one.label: one for one in expected.objects}
        assert {one.label: one for one in asked.objects} == by_label, layout.id
        assert expected.background == asked.background
        names = [(expected.labels[a], named, expected.labels[b]) for a, named, b in expected.relations]
        assert names == [(asked.labels[a], named, asked.labels[b]) for a, named, b in asked.relations], layout.id
        assert expectation_from_layout(layout).names == expected.labels
