"""``--judge``: who looks at the pictures of a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.judges import networks

ROW = ("a red circle and a blue square", "--region", "red circle=0,0,0.5,1", "--region", "blue square=0.5,0,1,1", "--steps", 2)
QUIET = ("--logger", "none", "--no-maps", "--no-norms", "--out", "run")


def records(name: str = "records.csv") -> list[dict[str, str]]:
    with Path("run", name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_several_judges_and_what_they_saw(attnguide: Command, tmp_path: Path) -> None:
    clip, owl = networks.clip(tmp_path / "clip"), networks.owl(tmp_path / "owl")
    judged = ("--judge", "shapes", "--judge", f"detector={owl}", "--judge.threshold", 0.01, "--judge", f"clip={clip}")
    ended = attnguide("sample", *ROW, *judged, *QUIET)
    assert ended.status == 0, ended.err
    plain, steered = records()
    for row in (plain, steered):
        assert row["shapes.presence"] and row["detector.presence"] and row["clip"] and row["clip_region"]
    lines = records("judged.csv")
    assert [(line["id"], line["judge"]) for line in lines] == [
        (row["id"], judge) for row in (plain, steered) for judge in ("shapes", "detector", "clip")
    ]
    label, box, score = json.loads(lines[1]["detections"])[0]
    assert label.split()[1] in ("circle", "square") and len(box) == 4 and 0 < score <= 1  # in whatever colour it sees
    assert json.loads(lines[2]["numbers"]).keys() == {"clip", "clip_region"} and lines[2]["detections"] == ""
    assert "threshold: 0.01" in Path("run", "config.yaml").read_text()


def test_a_stopped_run_is_judged_by_the_same_judges(attnguide: Command) -> None:
    assert attnguide("sample", *ROW, *QUIET).status == 0
    resumed = attnguide("sample", "--resume", "--judge", "none", "--out", "run")
    assert resumed.status == 2 and "another 'judge'" in resumed.err


def test_nobody_looks(attnguide: Command) -> None:
    ended = attnguide("sample", *ROW, "--judge", "none", *QUIET)
    assert ended.status == 0 and "not judged" not in ended.out
    assert "presence" not in records()[0] and not Path("run", "judged.csv").exists()


@pytest.mark.parametrize("judges", [[], ["--judge", "patches"], ["--judge", "shapes", "--judge", "patches"]], ids=len)
def test_a_prompt_that_no_judge_knows_is_told_once_with_what_to_add(
    judges: list[str], attnguide: Command, tiny_folder: Path
) -> None:
    row = ("sample", "a red cat", "--region", "cat=0,0,.5,1")
    ended = attnguide(*row, "--model", tiny_folder, "--seed", "0..2", "--steps", 2, *judges, *QUIET)
    assert ended.status == 0
    assert ended.out.count("not judged: no judge knows these prompts; add --judge detector=MODEL") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--judge", "detector=nobody/nothing"], "judge: detector: 'nobody/nothing' cannot be opened here"),
        (["--judge", "detector=./nowhere"], "judge: detector: expected a model's folder or hub id; './nowhere' is no folder"),
        (["--judge", "clip=/nowhere"], "judge: clip: expected a model's folder or hub id; '/nowhere' is no folder"),
        (["--judge", "vqa=~/nowhere"], "judge: vqa: expected a model's folder or hub id; '~/nowhere' is no folder"),
        (["--judge", "detector"], "judge: expected detector=MODEL"),
        (["--judge", "shaps"], "unknown judge 'shaps' (did you mean 'shapes'?)"),
        (["--judge", "shapes", "--judge.threshold", "0.5"], "judge: judge shapes: unknown option 'threshold'"),
        (["--judge.threshold", "0.5"], "--judge.threshold: expected a --judge before it"),
        (["--judge", "nowhere:Judge"], "cannot be imported"),
    ],
    ids=["offline", "no detector", "no clip", "no vqa", "no model", "misspelt", "option", "no judge", "own"],
)
def test_judges_that_cannot_look_are_one_line_before_anything_is_written(
    attnguide: Command, no_model: None, words: list[str], said: str
) -> None:
    ended = attnguide("sample", *ROW, *words, *QUIET)
    assert ended.status == 2 and said in ended.err and ended.err.count("\n") == 1
    assert not list(Path().iterdir())
