"""``attnguide tune``: what it asks, what it finds on the embedded model, what it leaves."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from attnguide.run_folder.records import read_records
from tests import tiny

from .conftest import Command

SMALL = ["--height", "32", "--width", "32", "--steps", "2", "--device", "cpu"]
REGION = ["--region", "red cat=0,0,0.5,1"]


def test_the_embedded_model_is_tuned_and_the_result_used(attnguide: Command) -> None:
    words = ["tune", "--method", "forward_layout", "--value", "0.1", "1", "--steps", "6", "--seed", "0..2"]
    ended = attnguide(*words, "--out", "tuned", "--device", "cpu")
    assert ended.status == 0, ended.err
    trials = list(csv.DictReader(Path("tuned/tuning.csv").open()))
    assert [trial["value"] for trial in trials] == ["", "0.1", "1"]
    inside = [float(trial["inside"]) for trial in trials]
    assert inside == sorted(inside)
    (chosen,) = (trial for trial in trials if trial["chosen"] == "1")
    assert chosen["value"] == "1"
    kept = yaml.safe_load(Path("tuned/tuned.yaml").read_text())
    assert kept["methods"] == [{"name": "forward_layout", "scale": float(chosen["value"])}]
    assert kept["seed"] == [0, 1, 2] and kept["prompt"] in ended.out
    told = ended.out.splitlines()[-1].split()
    assert told == ["attnguide", "sample", "--config", "tuned/tuned.yaml"]
    again = ["--steps", "1", "--seed", "0", "--no-plain", "--no-maps", "--no-norms", "--logger", "none", "--out", "run"]
    assert attnguide(*told[1:], *again).status == 0
    (record,) = read_records("run")
    assert record["method"] == "forward_layout"


def test_rows_of_a_table_are_not_kept(tiny_folder: Path, attnguide: Command) -> None:
    Path("rows.csv").write_text("prompt,obj1,bbox1\n" + f'{tiny.PROMPT},red cat,"0,0,0.5,1"\n' * 3)
    words = ["tune", "--rows", "rows.csv", "--method", "inject1", "--method.start", "0", "--value", "0.01", "5", *SMALL]
    ended = attnguide(*words, "--model", tiny_folder, "--out", "tuned")
    assert ended.status in (0, 1) and Path("tuned/tuning.csv").exists(), ended.err  # random weights may follow or not
    if ended.status == 0:
        kept = yaml.safe_load(Path("tuned/tuned.yaml").read_text())
        assert "rows" not in kept and "prompt" not in kept and kept["methods"][0]["start"] == 0
    else:
        assert not Path("tuned/tuned.yaml").exists() and "no strength" in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "inject1", "--method", "pag"], "method: expected one method"),
        (["--method", "plain"], "method: expected one method"),
        (["--seed", "0", "1"], "seed: expected at least 3 rows"),
        (["--knob", "losses"], "knob: Method 'forward_layout' needs an option 'losses' that is a number above 0"),
        (["--method", "forward_layout", "--value", "0.5", "2"], "value: scale must"),
        (["--value", "1", "0"], "values: expected numbers above 0"),
        (["--value", "many"], "values: expected a"),
    ],
    ids=["two", "none", "few", "knob", "range", "zero", "words"],
)
def test_mistakes_are_told_before_a_model_is_loaded(words: list[str], said: str, attnguide: Command, no_model: None) -> None:
    ended = attnguide("tune", "a red cat", *REGION, *words)
    assert ended.status == 2 and said in ended.err and not list(Path().iterdir())


def test_regions_that_cover_the_picture_are_told(attnguide: Command) -> None:
    words = ["--region", "red circle=0,0,1,1", "--steps", "2", "--seed", "0..2", "--value", "0.5", "--device", "cpu"]
    ended = attnguide("tune", "a red circle", *words)
    assert ended.status == 1 and "the regions cover the picture" in ended.out


def test_rows_of_several_sizes_cannot_be_compared(attnguide: Command, no_model: None) -> None:
    sizes = [64, 96, 64]
    rows = [{"prompt": "a red cat", "regions": {"cat": [0, 0, 0.5, 1]}, "seed": n, "width": w} for n, w in enumerate(sizes)]
    Path("rows.yaml").write_text(yaml.safe_dump(rows))
    ended = attnguide("tune", "--rows", "rows.yaml")
    assert ended.status == 2 and "rows: expected pictures of one size, whose latents can be compared; got 2 sizes" in ended.err


def test_regions_need_places(attnguide: Command, no_model: None) -> None:
    ended = attnguide("tune", "a red cat", "--region", "cat", "--method", "attend_and_excite")
    assert ended.status == 2 and "region: expected a place" in ended.err


def test_a_folder_in_use_is_refused(attnguide: Command, no_model: None) -> None:
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    ended = attnguide("tune", "a red cat", *REGION, "--out", "full")
    assert ended.status == 2 and "out: expected a new or empty folder" in ended.err
