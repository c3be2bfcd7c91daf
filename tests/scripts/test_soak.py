"""The soak test runs, and finds what is broken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import soak

from attnguide.run_folder.files import write_picture
from attnguide.run_folder.records import RECORDS_FILE, Defaults, record_of
from attnguide.run_folder.tables import append_table
from attnguide.types import Cost, Sample, SampleResult


def test_nothing_is_lost() -> None:
    script = Path(soak.__file__)
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    words = [sys.executable, str(script), "--kills", "2", "--others", "1"]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = [line.split() for line in ended.stdout.splitlines()[2:]]
    assert [line[-5:] for line in lines] == [[trials, "0", "0", "0", "0"] for trials in ("2", "1", "1", "1", "2")]


@pytest.mark.parametrize(
    ("break_it", "found"),
    [
        (lambda folder: (folder / "samples" / "b.png").write_bytes(b""), (1, 0, 1)),
        (lambda folder: write_picture(folder / "samples" / "b.png", Image.new("RGB", (8, 8), "red")), (0, 0, 1)),
        (lambda folder: (folder / "maps" / "a" / "cat.npy").unlink(), (0, 0, 1)),
        (lambda folder: _record(folder, "a"), (0, 1, 0)),
        (lambda folder: (folder / RECORDS_FILE).unlink(), (2, 0, 0)),
        (lambda folder: None, (0, 0, 0)),
    ],
)
def test_what_is_broken_is_counted(tmp_path: Path, break_it, found: tuple[int, int, int]) -> None:  # type: ignore[no-untyped-def]
    for id in ("a", "b"):
        _record(tmp_path, id)
        write_picture(tmp_path / "samples" / f"{id}.png", Image.new("RGB", (8, 8)))
        (tmp_path / "maps" / id).mkdir(parents=True)
        (tmp_path / "maps" / id / "cat.npy").write_bytes(b"x")
    true = soak.content(tmp_path)
    break_it(tmp_path)
    count = soak.Count("")
    soak.check(tmp_path, true, count, {"a", "b"}, complete=True)
    assert (count.lost, count.doubled, count.broken) == found


def _record(folder: Path, id: str) -> None:
    record = record_of(SampleResult(Sample(id, "a cat"), None, None, Cost(1, 0, 1.0, 1.0)), {}, Defaults(8, 8))
    append_table(folder / RECORDS_FILE, tuple(record), [record])
