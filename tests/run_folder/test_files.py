"""Files are written whole or not at all, also where a disk fills up."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from attnguide.run_folder.files import append, replacing, whole_size, write_atomic, write_picture
from attnguide.run_folder.tables import append_table, read_table


def fill_up(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """A disk with room for so many bytes: the write that does not fit writes what fits, the next nothing."""
    true, left = os.write, [room]

    def write(descriptor: int, content: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = true(descriptor, content[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_atomic(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_a_full_disk_leaves_no_half_file_and_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a.txt", "old")
    append_table(tmp_path / "t.csv", ("id", "a"), [{"id": "x", "a": 1}])
    for room in range(12):
        fill_up(monkeypatch, room)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(tmp_path / "a.txt", "twelve bytes")
        monkeypatch.undo()
        fill_up(monkeypatch, room)
        with pytest.raises(OSError, match="No space left"):
            append_table(tmp_path / "t.csv", ("id", "a"), [{"id": "y", "a": 1}, {"id": "z", "a": 12345}])
        monkeypatch.undo()
    assert (tmp_path / "a.txt").read_text() == "old" and (tmp_path / "t.csv").read_text() == "id,a\nx,1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.txt", "t.csv"]
    append_table(tmp_path / "t.csv", ("id", "a"), [{"id": "y", "a": 1}])
    assert [row["id"] for row in read_table(tmp_path / "t.csv")] == ["x", "y"]


def test_an_interrupted_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").write_text("whole\n")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        append(tmp_path / "t", b"half")
    assert (tmp_path / "t").read_text() == "whole\n"


def test_names_and_contents_are_synced_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, move = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        done.append("named")
        move(source, target)

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "a" / "b.txt", "x")
    assert done == ["file", "named", "folder"]


def test_only_a_whole_picture_has_a_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert whole_size(path) is None
    write_picture(path, Image.effect_noise((40, 30), 50))
    assert whole_size(path) == (40, 30)
    content = path.read_bytes()
    for length in (0, 1, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert whole_size(path) is None, length
    at = len(content) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert whole_size(path) is None, "one bit flipped"
    Image.new("RGB", (4, 4)).save(path, format="JPEG")
    assert whole_size(path) is None
