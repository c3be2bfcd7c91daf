"""A run's folder belongs to one run at a time, and is tidy before a run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from attnguide.run_folder.files import write_atomic, write_picture
from attnguide.run_folder.folder import LOCK_FILE, locked_run, tidy
from attnguide.run_folder.records import RECORDS_FILE, ROW_TABLES, Defaults, read_records, record_of
from attnguide.run_folder.tables import append_table, read_table
from attnguide.types import Cost, Sample, SampleResult

HOLDING = """
import sys, time
from attnguide.run_folder.folder import locked_run
with locked_run(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_by_one_run(tmp_path: Path) -> None:
    with locked_run(tmp_path / "run"), pytest.raises(ValueError, match=f"is being written by process {os.getpid()} on "):
        with locked_run(tmp_path / "run"):
            raise AssertionError("held twice")
    with locked_run(tmp_path / "run"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", HOLDING, folder], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=f"is being written by process {process.pid} on "), locked_run(folder):
            pass
        assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
        process.kill()
        process.wait()
    with locked_run(folder):
        (folder / "config.yaml").touch()
    assert (folder / LOCK_FILE).read_text() == ""


def test_where_nothing_was_written_nothing_is_left(tmp_path: Path) -> None:
    with locked_run(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK_FILE).exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "own").mkdir()
    with locked_run(tmp_path / "own"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "own"]
    with pytest.raises(ZeroDivisionError), locked_run(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "config.yaml").touch()
        raise ZeroDivisionError
    assert (tmp_path / "a" / "b" / "config.yaml").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match="file/run' cannot be written to: Not a directory"),
        locked_run(tmp_path / "file" / "run"),
    ):
        pass


def test_a_folder_that_was_removed_is_no_longer_held(tmp_path: Path) -> None:
    with locked_run(tmp_path / "run") as lock:
        lock.check()
        (tmp_path / "run" / LOCK_FILE).unlink()
        with pytest.raises(FileNotFoundError, match="was removed while the run was writing to it"):
            lock.check()
        (tmp_path / "run" / "other").touch()
        (tmp_path / "run" / LOCK_FILE).touch()
        with pytest.raises(FileNotFoundError):
            lock.check()


def _record(folder: Path, id: str, status: str = "ok", size: tuple[int, int] = (8, 8)) -> None:
    record = record_of(SampleResult(Sample(id, "a cat"), None, None, Cost(1, 0, 1.0, 1.0), status), {}, Defaults(*size, "ddim"))
    append_table(folder / RECORDS_FILE, tuple(record), [record])
    write_picture(folder / "samples" / f"{id}.png", Image.new("RGB", size[::-1]))


def test_tidy_drops_doubles_half_rows_and_temporary_files(tmp_path: Path) -> None:
    for id in ("a", "b", "a", "c", "b", "d"):
        _record(tmp_path, id, "nothing is finite" if id == "d" else "ok")
    (tmp_path / "samples" / "c.png").write_bytes(b"")
    tables = {
        "map_norms.csv": [
            {"id": id, "step": step, "stage": "after", "site": "x", "region": 0} for id in "aacab" for step in (0, 1)
        ],
        "judged.csv": [{"id": id, "judge": "shapes", "presence": 1.0} for id in "aab"],
        "loss_trace.csv": [{"id": id, "step": 0, "loss": loss} for id in "aab" for loss in (0.1, 0.2)],
        "value_invariance.csv": [{"id": id, "site": "x", "largest": index} for index, id in enumerate("aab")],
    }
    for name, lines in tables.items():
        append_table(tmp_path / name, tuple(lines[0]), lines)
    left = [".records-0123abcd.csv", "samples/.a-0123abcd.png", "maps/a/.cat-0123abcd.npy"]
    own = ["samples/.a-0123abcd-own.png", ".note-0123.png", "-0123abcd.csv"]
    for name in left + own:
        write_atomic(tmp_path / name, "x")
    assert [record["id"] for record in read_records(tmp_path)] == ["a", "b", "c", "d"], "ids are counted, not lines"
    assert tidy(tmp_path) == {"a", "b"}
    assert [line["id"] for line in read_table(tmp_path / RECORDS_FILE)] == ["a", "b"]
    assert [(line["id"], line["step"]) for line in read_table(tmp_path / "map_norms.csv")] == [
        *zip("aabb", "0101", strict=True)
    ]
    losses = [(line["id"], line["loss"]) for line in read_table(tmp_path / "loss_trace.csv")]
    assert losses == [("a", "0.1"), ("a", "0.2"), ("b", "0.1"), ("b", "0.2")]
    assert [line["largest"] for line in read_table(tmp_path / "value_invariance.csv")] == ["1", "2"], "the last of two"
    assert [name for name in left if (tmp_path / name).exists()] == []
    assert [name for name in own if not (tmp_path / name).exists()] == []
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in map(tmp_path.joinpath, ROW_TABLES)}
    assert tidy(tmp_path) == {"a", "b"}
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before, "what is tidy is left alone"
