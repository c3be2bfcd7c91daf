"""Layout files of other projects, small ones made by hand, as rows of one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnguide.layouts.boxes import BoxFormat, box_format
from attnguide.layouts.geneval import boxes_by_rule
from attnguide.layouts.words import amount, listed, phrase_of, plural
from attnguide.metrics.asked import asked_of
from attnguide.rows.tables import read_samples
from attnguide.types import Sample

GENEVAL = (
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "sandwich", "count": 2}],
        "exclude": [{"class": "sandwich", "count": 3}],
        "prompt": "a photo of two sandwichs",
    },
    {
        "tag": "position",
        "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a teddy bear",
    },
    {
        "tag": "color_attr",
        "include": [{"class": "cup", "count": 1, "color": "red"}, {"class": "bus", "count": 1, "color": "blue"}],
        "prompt": "a photo of a red cup and a blue bus",
    },
)


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    lines = "\n".join(json.dumps(row) for row in content) if name.endswith(".jsonl") else json.dumps(content)
    path.write_text(lines)
    return path


def boxes(row: Sample) -> dict[str, list[tuple[float, ...] | None]]:
    found: dict[str, list[tuple[float, ...] | None]] = {}
    for region in row.regions:
        found.setdefault(region.phrase, []).append(region.box)
    return found


def test_geneval(tmp_path: Path) -> None:
    rows = read_samples(written(tmp_path, "geneval.jsonl", GENEVAL))
    assert [row.tags["category"] for row in rows] == ["single_object", "counting", "position", "color_attr"]
    assert not any(row.problem for row in rows)
    one, two, side, colours = map(boxes, rows)
    assert one == {"bench": [(0.2, 0.2, 0.8, 0.8)]}
    assert two == {"sandwichs": [(0.05, 0.05, 0.45, 0.95), (0.55, 0.05, 0.95, 0.95)]}
    assert side["dog"] == [(0.55, 0.2, 0.95, 0.8)] and side["teddy bear"] == [(0.05, 0.2, 0.45, 0.8)]
    assert list(colours) == ["red cup", "blue bus"]
    asked = asked_of(rows[2])
    assert asked.labels == ("teddy bear", "dog") and asked.relations == ((1, "right of", 0),)
    assert asked_of(rows[1]).objects[0].label == "sandwich" and asked_of(rows[1]).objects[0].count == 2
    assert (asked_of(rows[3]).objects[1].noun, asked_of(rows[3]).objects[1].attribute) == ("bus", "blue")


def test_boxes_by_rule_of_several() -> None:
    (four,) = boxes_by_rule([4])
    assert four == [(0.05, 0.05, 0.45, 0.45), (0.55, 0.05, 0.95, 0.45), (0.05, 0.55, 0.45, 0.95), (0.55, 0.55, 0.95, 0.95)]
    first, second = boxes_by_rule([1, 2])
    assert len(first) == 1 and len(second) == 2 and len({*first, *second}) == 3
    assert boxes_by_rule([1, 1], [(0, "above", 1)]) == [[(0.2, 0.05, 0.8, 0.45)], [(0.2, 0.55, 0.8, 0.95)]]
    with pytest.raises(ValueError, match="another of the 2 classes; got 2"):
        boxes_by_rule([1, 1], [(0, "above", 2)])


def test_coco(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "height": 100, "width": 200}, {"id": 8, "height": 50, "width": 50}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "person"}],
        "annotations": [
            {"image_id": 7, "category_id": 2, "bbox": [0, 0, 100, 50]},
            {"image_id": 7, "category_id": 1, "bbox": [100, 50, 100.5, 50]},
            {"image_id": 7, "category_id": 2, "bbox": [0, 50, 50, 50]},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": 1},
        ],
    }
    (row,) = read_samples(written(tmp_path, "instances.json", content))
    assert row.id == "coco7" and row.prompt == "two people and a dog"
    assert boxes(row) == {"people": [(0.0, 0.0, 0.5, 0.5), (0.0, 0.5, 0.25, 1.0)], "dog": [(0.5, 0.5, 1.0, 1.0)]}
    assert [(one.label, one.count) for one in asked_of(row).objects] == [("person", 2), ("dog", 1)]


def test_gligen(tmp_path: Path) -> None:
    row = {"prompt": "a cat and a dog and a cat", "phrases": ["a cat", "a dog", "a cat"]}
    places = [[0, 0, 0.3, 1], [0.3, 0, 0.6, 1], [0.6, 0, 1, 1]]
    for name, content in (("one.json", {**row, "locations": places}), ("many.jsonl", [{**row, "locations": places}])):
        (found,) = read_samples(written(tmp_path, name, content))
        assert boxes(found) == {"cat": [(0, 0, 0.3, 1), (0.6, 0, 1, 1)], "dog": [(0.3, 0, 0.6, 1)]}
        assert [region.occurrence for region in found.regions] == [None, None, 1]
    scaled = [[0, 0, 300, 1000], [300, 0, 600, 1000], [600, 0, 1000, 1000]]
    (found,) = read_samples(written(tmp_path, "permille.json", {**row, "locations": scaled}), box_format="permille")
    assert boxes(found)["dog"] == [(0.3, 0, 0.6, 1)]


def test_llm_grounded(tmp_path: Path) -> None:
    layouts = [
        {"caption": "A dog beside a tree", "gen_boxes": [["a dog", [0, 256, 256, 256]], ["a tree", [256, 0, 256, 512]]]},
        {"prompt": "a ball", "gen_boxes": [{"name": "a ball", "bounding_box": [128, 128, 256, 256]}], "bg_prompt": "grass"},
    ]
    first, second = read_samples(written(tmp_path, "layouts.json", layouts))
    assert boxes(first) == {"dog": [(0, 0.5, 0.5, 1)], "tree": [(0.5, 0, 1, 1)]}
    assert boxes(second) == {"ball": [(0.25, 0.25, 0.75, 0.75)]}
    assert asked_of(first).labels == ("dog", "tree")
    (halved,) = read_samples(written(tmp_path, "small.json", layouts[1:]), size=(1024, 1024))
    assert boxes(halved) == {"ball": [(0.125, 0.125, 0.375, 0.375)]}


def test_layout_sam(tmp_path: Path) -> None:
    row = {
        "global_caption": "A brown dog runs over wet grass.",
        "region_captions": ["a dog with a red collar", "A tall giraffe."],
        "bbox_list": [[0, 0, 100, 50], [100, 0, 200, 100]],
        "height": 100,
        "width": 200,
    }
    (found,) = read_samples(written(tmp_path, "layoutsam.jsonl", [row]))
    assert "giraffe" in (found.problem or "")  # no word of its caption stands in the prompt, and the row says so
    known = {**row, "region_captions": ["a dog with a red collar", "wet grass"]}
    (found,) = read_samples(written(tmp_path, "two.jsonl", [known]))
    assert boxes(found) == {"dog": [(0, 0, 0.5, 0.5)], "wet grass": [(0.5, 0, 1, 1)]}
    assert asked_of(found).labels == ("dog with a red collar", "wet grass")


def test_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dog on grass \n")
    rows = read_samples(path)
    assert [(row.id, row.prompt) for row in rows] == [("0000", "a cat"), ("0001", "a dog on grass")]


def test_csv_boxes_in_any_way(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('id,prompt,obj1,bbox1\n0,a cat,cat,"128,0,128,256"\n')
    (row,) = read_samples(path, size=(512, 256), box_format="xywh")
    assert boxes(row) == {"cat": [(0.5, 0, 1, 0.5)]}
    with pytest.raises(ValueError, match="--box-size"):
        read_samples(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"prompt": "a", "phrases": ["a"], "locations": []}], "must be equally long; got 1 and 0"),
        ([{"prompt": "a", "phrases": "a", "locations": []}], "must be a list of texts"),
        ([{"caption": "a", "gen_boxes": [["a"]]}], "gen_boxes must be names with boxes"),
        ([{"caption": 7, "gen_boxes": []}], "prompt or caption must be text"),
        ([{"caption": "a", "gen_boxes": [["a", [1, 2]]]}], "four numbers x,y,width,height"),
        ([{"prompt": "a", "include": 7}], "include must be a list of classes"),
        ([{"prompt": "a", "include": [{"class": "a", "count": 0}]}], "count from 1 to"),
        ([{"prompt": "a", "include": [{"class": "a", "position": ["near", 0]}]}], "position must be"),
        ({"images": [], "annotations": [{"bbox": [0, 0, 1, 1]}]}, "COCO's instances need"),
        ([{"prompt": "a", "phrases": ["a"], "locations": [[0, 0, 50, 50]]}], "--box-size"),
    ],
    ids=["lengths", "no list", "no box", "no caption", "short box", "include", "count", "position", "coco", "pixels"],
)
def test_malformed_files_are_one_line(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        read_samples(written(tmp_path, "rows.json", content))
    assert "rows.json" in str(error.value) and "\n" not in str(error.value)


def test_a_format_for_a_file_without_boxes(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.json", [{"prompt": "a cat"}])
    with pytest.raises(ValueError, match=r"box_format is for boxes as layout files write them"):
        read_samples(path, box_format="xywh")


def test_formats_by_name() -> None:
    assert box_format("xywh-permille") == BoxFormat("xywh", "permille")
    assert box_format("fractions", BoxFormat("xywh", "pixels")) == BoxFormat("xywh", "fractions")
    with pytest.raises(ValueError, match="expected xyxy or xywh"):
        box_format("cxcywh")


def test_words() -> None:
    assert [plural(word) for word in ("wine glass", "person", "bench", "dog")] == ["wine glasses", "people", "benches", "dogs"]
    assert [amount("dog", 1), amount("orange", 1), amount("dog", 12)] == ["a dog", "an orange", "12 dogs"]
    assert listed(["a dog"]) == "a dog" and listed(["a", "b", "c"]) == "a, b and c"
    assert phrase_of("Two wine glasses", "wine glass") == "wine glasses"
    assert phrase_of("a cat", "the giraffe") == "giraffe"
