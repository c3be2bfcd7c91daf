"""The net under the command line: whatever ends a command is one line, and what it printed to may fail."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest

from attnguide.cli.errors import RunError, UsageError, one_line, verdict
from attnguide.cli.folders import filling, local_path, probe
from attnguide.cli.signals import ended_like_ctrl_c
from attnguide.cli.streams import Tolerant, tolerant_streams
from attnguide.run_folder.records import read_records
from tests import tiny

from .conftest import Command


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (UsageError("seed: expected one\nnot two"), 2, "seed: expected one not two"),
        (RunError("stopped"), 1, "stopped"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x.csv"), 2, "x.csv: File name too long"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (MemoryError(), 1, "out of memory; try a smaller"),
        (RecursionError("maximum"), 2, "nested too deeply"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "expected text in UTF-8"),
        (OverflowError("too large"), 2, "too large"),
        (ValueError("late"), 2, "late"),
        (KeyError("x"), 1, "internal error: KeyError: 'x'; --debug shows where"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_whatever_ends_a_command(
    error: Exception, status: int, says: str, attnguide: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(words: list[str]) -> int:
        raise error

    monkeypatch.setattr("attnguide.cli.models.run", run)
    ended = attnguide("models")
    assert (ended.status, ended.out) == (status, "")
    assert ended.err.startswith(f"error: {says}") and ended.err.count("\n") == 1
    shown = attnguide("--debug", "models")
    assert shown.status == status and "Traceback" in shown.err and shown.err.splitlines()[-1] == ended.err.strip()
    assert "Traceback" in attnguide("models", "--debug").err


def test_messages_stay_readable() -> None:
    assert one_line("a\nb\tc\x1b[31m\0") == "a b c\\x1b[31m\\x00"
    assert len(one_line("x" * 100_000)) < 1100
    assert verdict(type("OutOfMemoryError", (RuntimeError,), {})("CUDA\nis full")) == (
        1,
        "out of memory: CUDA is full; try a smaller --batch-size or size",
    )


def test_warnings_of_the_package_are_lines_and_those_of_others_are_not_shown(
    attnguide: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import attnguide.cli.models as module

    def run(words: list[str]) -> int:
        warnings.warn_explicit("odd\nprompt", UserWarning, module.__file__, 1)
        warnings.warn_explicit("advice", UserWarning, "/elsewhere/library.py", 1)
        return 0

    monkeypatch.setattr(module, "run", run)
    assert attnguide("models").err == "warning: odd prompt\n"


# --------------------------------------------------------------------------------------------------------------- streams


class _Failing(io.StringIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def test_a_reader_that_goes_away_is_no_failure_and_a_full_disk_is() -> None:
    for number, failed in ((errno.EPIPE, False), (errno.ENOSPC, True)):
        stream = Tolerant(_Failing(number))
        assert stream.write("abc") == 3 and stream.write("d") == 1
        stream.flush()
        assert (stream.failure is not None) == failed


def test_letters_that_the_encoding_lacks_are_escaped() -> None:
    raw = io.BytesIO()
    stream = Tolerant(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("schön\n")
    stream.flush()
    assert raw.getvalue() == b"sch\\xf6n\n"


def test_streams_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    error = sys.stderr
    with tolerant_streams() as (out, _):
        print("nobody hears this")
        assert sys.stdout is out
    assert sys.stdout is None and sys.stderr is error


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_a_run_whose_output_goes_nowhere_is_whole(
    number: int, tiny_folder: Path, attnguide: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [tiny.PROMPT, "--seed", "0", "1", "--steps", "1", "--no-maps", "--no-norms", "--logger", "none"]
    monkeypatch.setattr(sys, "stdout", _Failing(number))
    ended = attnguide("sample", *words, "--model", tiny_folder, "--out", "run")
    assert ended.status == (0 if number == errno.EPIPE else 1)
    assert ("error: standard output could not be written" in ended.err) == (number == errno.ENOSPC)
    assert len(read_records("run")) == 2 and Path("run/report.html").is_file()


# ------------------------------------------------------------------------------------------------------------ the folder


def _tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/sub")
    (tmp_path / "lost").symlink_to("/nowhere/at/all")
    (tmp_path / "file").write_text("x")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_path_is_read_once(work: Path) -> None:
    for text, path in {
        "runs/a": "runs/a",
        "./runs//a/": "runs/a",
        "~/a": "home/a",
        "link/../a": "real/a",
        "link": "real/sub",
        str(work / "b"): "b",
        "./~": str(work / "~"),
        "..": str(work.parent),
        ".": str(work),
    }.items():
        assert local_path(text) == path
        assert local_path(path) == path, "the result is read as itself"
    for wrong in ("s3://bucket/a", "file:///tmp/a", "cache::a", "lost", "lost/a", "a\0b", " "):
        with pytest.raises(ValueError, match="expected"):
            local_path(wrong)


@pytest.mark.parametrize("folder", ["file", "file/a", "new/" + "x" * 300, "x/" * 3000, "/proc/a", "/dev/null/a", "new/a\0b"])
def test_a_folder_that_cannot_be_written_leaves_nothing(folder: str, work: Path) -> None:
    before = _tree(work)
    with pytest.raises(UsageError, match=r"^out: folder .* cannot be written") as caught:
        probe(Path(folder))
    assert len(str(caught.value)) < 500
    assert _tree(work) == before


def test_a_folder_that_can_be_written_is_not_there_yet(work: Path) -> None:
    before = _tree(work)
    probe(Path("new/er/folder"), "maps/a/long_name.png")
    probe(Path("real"))
    assert _tree(work) == before


def test_files_move_up_when_all_are_written(work: Path) -> None:
    before = _tree(work)
    with pytest.raises(RuntimeError), filling(Path("new/maps")) as temporary:
        (temporary / "a.png").write_text("a")
        raise RuntimeError
    assert _tree(work) == before
    with filling(Path("new/maps")) as temporary:
        (temporary / "a.png").write_text("a")
    assert _tree(work / "new") == ["maps", "maps/a.png"]


def test_a_run_goes_where_it_was_checked(work: Path, tiny_folder: Path, attnguide: Command) -> None:
    words = [tiny.PROMPT, "--seed", "0", "--steps", "1", "--no-maps", "--no-norms", "--logger", "csv", "--model", tiny_folder]
    (Path.cwd() / "link").symlink_to(work / "real" / "sub")
    assert attnguide("sample", *words, "--out=~/a").status == 0
    assert attnguide("sample", "--resume", "--out=~/a").status == 0
    assert attnguide("sample", *words, "--out", "link/../b").status == 0
    for folder in (work / "home" / "a", work / "real" / "b"):
        assert len(read_records(folder)) == 1 and (folder / "csv").is_dir() and (folder / "report.html").is_file()
    assert list(Path.cwd().iterdir()) == [Path.cwd() / "link"]


# --------------------------------------------------------------------------------------------------------------- the run


def test_a_run_that_stops_keeps_what_is_finished(
    tiny_folder: Path, attnguide: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnguide.callbacks.samples import Samples

    kept = Samples.on_sample_end

    def full(self: Samples, trainer: object, module: object, results: list[object]) -> None:
        if len(read_records("run")) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", "run/samples/seed2-plain.png")
        kept(self, trainer, module, results)  # type: ignore[arg-type]

    monkeypatch.setattr(Samples, "on_sample_end", full)
    words = [tiny.PROMPT, "--seed", "0..3", "--steps", "1", "--batch-size", "1", "--no-maps", "--no-norms", "--logger", "none"]
    ended = attnguide("sample", *words, "--model", tiny_folder, "--out", "run")
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == (
        "error: the run stopped: run/samples/seed2-plain.png: No space left on device; go on with --resume --out run"
    )
    assert "missing  2 of 4 rows" in ended.out and Path("run/report.html").is_file()
    assert len(read_records("run")) == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_that_end_a_run_like_ctrl_c(name: str) -> None:
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_DFL)  # below nohup it is ignored, which is respected
    try:
        with pytest.raises(KeyboardInterrupt), ended_like_ctrl_c():
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_below_nohup_a_closed_terminal_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_like_ctrl_c():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
