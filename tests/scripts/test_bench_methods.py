"""Which rows the methods get, and what is measured beside `attnguide eval`."""

import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_methods

from attnguide.methods import METHODS
from attnguide.run_folder.records import read_records
from attnguide.shapes.layouts import Layout, layout_scene
from attnguide.shapes.renderer import render

LAYOUT = Layout(
    "a0",
    "two_objects",
    "a red circle and a blue square",
    ("red circle", "blue square"),
    ((0.1, 0.1, 0.4, 0.4), (0.6, 0.6, 0.9, 0.9)),
)


def test_source_changes_the_first_colour_alone() -> None:
    source = bench_methods.source_layout(LAYOUT)
    assert source.prompt == "a green circle and a blue square"
    assert source.phrases == ("green circle", "blue square")


def test_source_minds_the_article_and_takes_no_colour_of_the_row() -> None:
    layout = Layout("a1", "single", "an orange star", ("orange star",), (LAYOUT.boxes[0],))
    assert bench_methods.source_layout(layout).prompt == "a purple star"
    pair = Layout("a2", "two_objects", "a brown star and a red heart", ("brown star", "red heart"), LAYOUT.boxes)
    assert bench_methods.source_layout(pair).prompt == "a green star and a red heart"  # red comes next but is taken


@pytest.mark.parametrize("name", [name for name in METHODS if name not in bench_methods.ALONE])
def test_every_method_has_a_file_of_its_settings(name: str) -> None:
    assert bench_methods.method_file(name).exists() and bench_methods.read_methods(name)[0].name == name


def test_wrong_arguments_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"Unknown method 'box_dif' .did you mean 'box_diff'"):
        bench_methods.main(["--methods", "box_dif", "--out", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()


def test_kept_by_hand() -> None:
    picture = render(layout_scene(LAYOUT))
    recoloured = render(layout_scene(bench_methods.source_layout(LAYOUT)))
    moved = Image.new("RGB", picture.size, "white")
    moved.paste(picture.crop((0, 0, 64, 64)), (0, 0))
    moved.paste(picture.crop((64, 64, 128, 128)), (64, 0))
    assert bench_methods.kept(picture, recoloured) == 1.0
    assert bench_methods.kept(picture, moved) == 0.5
    assert bench_methods.kept(Image.new("RGB", (128, 128), "white"), picture) is None


def test_places_editing_and_costs_are_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "costs.json").write_text(json.dumps({"plain": [10.0, 100.0], "pag": [25.0, 130.0], "masactrl": [20.0, 90.0]}))
    words = ["--methods", "pag", "masactrl", "--categories", "single", "--limit", "1", "--seed", "0", "--steps", "2"]
    bench_methods.main([*words, "--costs", "--out", str(tmp_path)])
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "| pag | 2.50 | 130 |" in text and "## Editing" in text and text.count("## Scores") == 2
    with (tmp_path / "editing.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    edited = next(record for record in read_records(tmp_path / "editing") if record["method"] == "masactrl")
    assert json.loads(edited["options"])["masactrl"]["source_prompt"] == row["source_prompt"]
    assert read_records(tmp_path / "source")[0]["prompt"] == row["source_prompt"] != row["prompt"]
