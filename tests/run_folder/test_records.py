"""Files of a run folder."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from attnguide.rows.tables import read_samples
from attnguide.run_folder.files import write_atomic, write_picture
from attnguide.run_folder.folder import check_run_folder, config_of, config_text
from attnguide.run_folder.made_with import CONFIG_FILE
from attnguide.run_folder.records import (
    RECORD_COLUMNS,
    RECORDS_FILE,
    Defaults,
    complete_ids,
    finished_ids,
    read_records,
    record_of,
)
from attnguide.run_folder.tables import append_table, keep_rows, read_table
from attnguide.types import Cost, MethodConfig, Region, Sample, SampleResult

ROW = Sample(
    "a", "a cat, so", seed=3, regions=(Region("cat", box=(0, 0, 1, 1)),), methods=(MethodConfig("inject1", {"scale": 2}),)
)


def result(sample: Sample, status: str = "ok") -> SampleResult:
    return SampleResult(sample, None, None, Cost(10, 2, 1.23456, 512.34), status)


def finish(folder: Path, sample: Sample, status: str = "ok", picture: bool = True) -> None:
    record = record_of(result(sample, status), {"score": 0.5}, Defaults(64, 32, "ddim"))
    append_table(folder / RECORDS_FILE, tuple(record), [record])
    if picture:
        write_picture(folder / "samples" / f"{sample.id}.png", Image.new("RGB", (32, 64)))


def test_a_record_has_settings_metrics_costs_in_this_order() -> None:
    record = record_of(result(ROW), {"score": 0.5}, Defaults(64, 32))
    assert [name for name in record if name != "score"] == list(RECORD_COLUMNS)
    assert list(record).index("score") == list(record).index("unet_forwards") - 1
    assert (record["height"], record["width"], record["method"]) == (64, 32, "inject1")
    assert json.loads(record["options"]) == {"inject1": {"scale": 2}}
    assert json.loads(record["regions"]) == [{"phrase": "cat", "box": [0, 0, 1, 1]}]
    assert (record["unet_forwards"], record["unet_backwards"], record["seconds"], record["status"]) == (10, 2, 1.235, "ok")
    with pytest.raises(ValueError, match="Metric 'seed' has the name of another column"):
        record_of(result(ROW), {"seed": 1})


def test_new_columns_join_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    append_table(path, ("id", "status"), [{"id": "a", "status": "x, y"}])
    append_table(path, ("id", "score", "status"), [{"id": "b", "score": 0.25, "status": "ok"}])
    append_table(path, ("id", "status"), [{"id": "c", "status": "ok"}])
    assert path.read_text() == 'id,score,status\na,,"x, y"\nb,0.25,ok\nc,,ok\n'
    with pytest.raises(ValueError, match="begins with the column 'id', not 'step'"):
        append_table(path, ("step",), [{"step": 1}])


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    append_table(path, ("id", "a", "b"), [{"id": "x", "a": 1, "b": 2}])
    with path.open("a") as file:
        file.write("y,1")
    assert [row["id"] for row in read_table(path)] == ["x"]
    append_table(path, ("id", "a", "b"), [{"id": "z", "a": 1, "b": 2}])
    assert path.read_text() == "id,a,b\nx,1,2\nz,1,2\n"


def test_a_record_from_before_prompts_had_a_syntax_is_one_of_a_plain_prompt(tmp_path: Path) -> None:
    finish(tmp_path, ROW)
    path = tmp_path / RECORDS_FILE
    path.write_text(path.read_text().replace("prompt_syntax", "else", 1))
    assert complete_ids(tmp_path, [ROW]) == {ROW.id}
    with pytest.raises(ValueError, match="was made with prompt_syntax 'plain', not 'weights'"):
        complete_ids(tmp_path, [Sample(**{**vars(ROW), "prompt_syntax": "weights"})])
    finish(tmp_path, Sample("newer", "a cat"))
    assert [record["prompt_syntax"] for record in read_records(tmp_path)] == ["", "plain"]
    assert ROW.id in complete_ids(tmp_path, [ROW])


def test_keep_rows(tmp_path: Path) -> None:
    append_table(tmp_path / "t.csv", ("id", "a"), [{"id": id, "a": number} for number, id in enumerate("abca")])
    append_table(tmp_path / "u.csv", ("step",), [{"step": 1}])
    for name in ("t.csv", "u.csv"):
        keep_rows(tmp_path / name, {"a"})
    assert [row["id"] for row in read_table(tmp_path / "t.csv")] == ["a", "a"]
    assert len(read_table(tmp_path / "u.csv")) == 1


def test_rows_are_complete_with_record_status_and_picture(tmp_path: Path) -> None:
    rows = {id: Sample(id, "a cat") for id in ("done", "stopped", "lost", "never")}
    finish(tmp_path, rows["done"])
    finish(tmp_path, rows["stopped"], status="loss of x is not finite at step 3")
    finish(tmp_path, rows["lost"], picture=False)
    assert finished_ids(tmp_path) == complete_ids(tmp_path, list(rows.values())) == {"done"}
    assert complete_ids(tmp_path, [rows["never"]]) == set()
    assert [record["id"] for record in read_records(tmp_path)] == ["done", "stopped", "lost"]


def test_a_row_with_other_settings_is_no_continuation(tmp_path: Path) -> None:
    finish(tmp_path, ROW)
    assert complete_ids(tmp_path, [Sample(**{**vars(ROW), "regions": (Region("cat", box=(0.0, 0, 1.0, 1)),)})]) == {"a"}
    with pytest.raises(ValueError, match="was made with seed '3', not '4'"):
        complete_ids(tmp_path, [Sample(**{**vars(ROW), "seed": 4})])
    with pytest.raises(ValueError, match="was made with options"):
        complete_ids(tmp_path, [Sample(**{**vars(ROW), "methods": (MethodConfig("inject1", {"scale": 3}),)})])


def test_run_folder_checks_write_nothing(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        check_run_folder(tmp_path / "file" / "run")
    write_atomic(tmp_path / "run" / CONFIG_FILE, config_text({"steps": 4, "out": "a"}))
    with pytest.raises(ValueError, match="already holds a run"):
        check_run_folder(tmp_path / "run")
    check_run_folder(tmp_path / "run", {"out": "b", "steps": 4}, resume=True, ignore=["out"])
    with pytest.raises(ValueError, match="another 'steps' \\(4, now 5\\)"):
        check_run_folder(tmp_path / "run", {"steps": 5, "out": "a"}, resume=True)


def test_the_configuration_of_rows_reads_back_as_a_table(tmp_path: Path) -> None:
    write_atomic(tmp_path / "config.yaml", config_text(config_of([ROW, ROW.plain()])))
    first, second = read_samples(tmp_path / "config.yaml")
    assert (first.id, first.methods, second.id, second.methods) == ("a", ROW.methods, "a-plain", ())
    assert first.regions[0].box == (0, 0, 1, 1)


def test_mask_tensors_are_named_in_records_not_written() -> None:
    row = Sample("a", "a cat", regions=(Region("cat", mask=torch.ones(2, 3)),))
    assert json.loads(record_of(result(row))["regions"]) == [{"phrase": "cat", "mask": "tensor (2, 3)"}]
    assert config_of([row])["samples"][0]["prompt"] == "a cat"


def test_a_record_says_which_words_belong_together() -> None:
    prompt = "a red cat and a blue dog"
    found = Sample("0", prompt, methods=(MethodConfig("syngen"),))
    given = Sample("0", prompt, groups=(("red", "dog"),))
    assert record_of(result(found))["groups"] == "red + cat, blue + dog"
    assert record_of(result(given))["groups"] == "red + dog"
    assert record_of(result(Sample("0", prompt, methods=(MethodConfig("inject1"),))))["groups"] == ""
