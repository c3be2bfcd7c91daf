"""The table of all methods: which rows an arm gets, and that its numbers are those of the records."""

import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_methods

from attnguide.methods import METHODS
from attnguide.shapes.layouts import Layout, layout_scene
from attnguide.shapes.renderer import render

LAYOUT = Layout(
    "a0",
    "two_objects",
    "a red circle and a blue square",
    ("red circle", "blue square"),
    ((0.1, 0.1, 0.4, 0.4), (0.6, 0.6, 0.9, 0.9)),
)


def write_records(folder: Path, scores: dict[str, dict[str, float]]) -> None:
    folder.mkdir(parents=True)
    with (folder / "records.csv").open("w", newline="") as file:
        fields = ["id", "category", "seed", "status", "unet_forwards", "unet_backwards", "scores"]
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for name, own in scores.items():
            cost = {"unet_forwards": 60, "unet_backwards": 10}
            writer.writerow(
                {"id": name, "category": "two_objects", "seed": name[-1], "status": "ok", "scores": json.dumps(own), **cost}
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


def test_every_method_has_an_arm_and_editing_brings_its_source() -> None:
    names = [arm.name for arm in bench_methods.arms(None, "tuned")]
    assert set(names) == {"plain", "source", *METHODS} - {"map_injection"}
    assert names.index("source") < names.index("prompt_to_prompt")
    assert [arm.name for arm in bench_methods.arms(["box_diff"], "paper")] == ["plain", "box_diff"]


def test_options_behind_a_method_change_its_file_s() -> None:
    _, arm = bench_methods.arms(["mask_guidance,space=noise,fused=true,step_size=60"], "tuned")
    assert arm.name == "mask_guidance,space=noise,fused=true,step_size=60" and arm.tuned
    (method,) = arm.methods
    assert {"space": "noise", "fused": True, "step_size": 60, "stop": 0.8}.items() <= method.options.items()
    with pytest.raises(ValueError, match="expected option=value behind a method's comma; got 'fused'"):
        bench_methods.arms(["mask_guidance,fused"], "tuned")


def test_wrong_arguments_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"Unknown method 'box_dif' .did you mean 'box_diff'"):
        bench_methods.main(["--methods", "box_dif"])
    for wrong, said in (
        ("--seeds", "seeds and --batch-size must be at least 1; got 0"),
        ("--steps", "steps must be at least 1"),
    ):
        with pytest.raises(SystemExit, match=said):
            bench_methods.main([wrong, "0", "--out", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()


def test_rows_of_all_arms_can_be_compared() -> None:
    plain, source, editing = bench_methods.arms(["prompt_to_prompt"], "paper")
    rows = {arm.name: bench_methods.rows_of(arm, [LAYOUT], 2, 4, 5.0) for arm in (plain, source, editing)}
    assert [[row.id for row in own] for own in rows.values()] == [["a0-0", "a0-1"]] * 3
    assert rows["source"][0].prompt == "a green circle and a blue square" and not rows["source"][0].regions
    (method,) = rows["prompt_to_prompt"][1].methods
    assert method.options["source_prompt"] == rows["source"][1].prompt
    assert rows["prompt_to_prompt"][1].prompt == LAYOUT.prompt


def test_kept_by_hand() -> None:
    picture = render(layout_scene(LAYOUT))
    recoloured = render(layout_scene(bench_methods.source_layout(LAYOUT)))
    moved = Image.new("RGB", picture.size, "white")
    moved.paste(picture.crop((0, 0, 64, 64)), (0, 0))
    moved.paste(picture.crop((64, 64, 128, 128)), (64, 0))
    assert bench_methods.kept(picture, recoloured) == 1.0
    assert bench_methods.kept(picture, moved) == 0.5
    assert bench_methods.kept(Image.new("RGB", (128, 128), "white"), picture) is None


def test_table_by_hand(tmp_path: Path) -> None:
    others = {"a0-2": {"presence": 1.0}, "b1-0": {"presence": 1.0}}  # another seed and another layout, not asked for
    write_records(tmp_path / "plain", {"a0-0": {"presence": 0.5}, "a0-1": {"presence": 0.0}, **others})
    write_records(tmp_path / "box_diff", {"a0-0": {"presence": 1.0}, "a0-1": {"presence": 1.0}})
    (tmp_path / "costs.json").write_text(json.dumps({"plain": [10.0, 100.0], "box_diff": [25.0, 130.0]}))
    chosen = bench_methods.arms(["box_diff"], "paper")
    scores, differences, cost = bench_methods.table(tmp_path, chosen, [LAYOUT], 2).split("\n\n")[0::2]
    assert "| plain |  | 2 | 25.0 [0, 50] |" in scores
    assert "| box_diff | published | 2 | 100.0 [100, 100] |" in scores
    assert "| box_diff | 75.0 [50, 100] |" in differences
    assert "| box_diff | 60.0 | 10.0 | 2.50 | 130 |" in cost


def test_paired_ignores_rows_without_a_twin() -> None:
    twin = {"a0-0": {"id": "a0-0", "status": "ok", "scores": '{"count": 1.0}'}}
    rows = [{"id": name, "status": "ok", "scores": '{"count": 0.0}'} for name in ("a0-0", "a0-7")]
    assert bench_methods.paired(rows, twin, "count") == [-1.0]
    assert bench_methods.paired(rows, twin, "region_hit") == []
