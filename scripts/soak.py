"""Kills runs, fills their disk and removes their folder, and counts lost, doubled and broken rows.

    python scripts/soak.py                # 50 kills, about a minute and a half on two cores
    python scripts/soak.py --kills 500

Every run is a child forked from this process, which has imported everything and loaded the embedded model, so that a trial
takes a second instead of ten. After each trial the run folder is compared with that of a run that nobody disturbed. Counted are

    lost      rows that were on record as finished and no longer are, or that a resumed run left out
    doubled   lines of a table that say the same of the same row twice
    broken    rows on record as finished whose picture or maps are not, byte by byte, those of the undisturbed run
    endings   exit statuses other than those expected, tracebacks, and errors of more than a line

The exit status is 1 if any of them is not 0.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

from attnguide.cli import main as attnguide
from attnguide.run_folder.records import RECORDS_FILE, ROW_TABLES, finished_ids, read_records
from attnguide.run_folder.tables import read_table

WORDS = ["sample", "a cat and a dog", "--region", "cat=0,0.2,0.5,0.8", "--method", "mask_guidance"]
WORDS += ["--seed", "0..1", "--steps", "1", "--height", "64", "--width", "64", "--batch-size", "1", "--logger", "none"]
ROWS = 4
ENOUGH = 64 << 20


@dataclass
class Count:
    """Counts of one kind of trial."""

    kind: str
    trials: int = 0
    lost: int = 0
    doubled: int = 0
    broken: int = 0
    endings: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        return self.lost + self.doubled + self.broken + self.endings

    def expect(self, good: bool, note: str) -> None:
        if not good:
            self.endings += 1
            self.notes.append(note)


# ----------------------------------------------------------------------------------------------------------- one process


class Run:
    """``attnguide`` in a child process whose output goes to a file.

    Args:
        folder: The run folder.
        extra: Words of the command line after those of every trial.
        first: Function that is called in the child before the command.
    """

    def __init__(self, folder: Path, *extra: str, first: Callable[[], object] = lambda: None) -> None:
        self.said = folder.with_name(f"{folder.name}.txt")
        sys.stdout.flush(), sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._be_the_child([*WORDS, "--out", str(folder), *extra], first)

    def _be_the_child(self, words: Sequence[str], first: Callable[[], object]) -> None:
        status = 99
        try:
            os.setsid()
            log = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            first()
            status = attnguide(words)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)

    def ended(self) -> bool:
        """Whether the child has ended by itself."""
        if self._pid:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._pid, self._status = 0, os.waitstatus_to_exitcode(status)
        return not self._pid

    def wait(self) -> int:
        """Wait for the child; returns its exit status, negative for a signal."""
        while not self.ended():
            time.sleep(0.005)
        return self._status

    def kill_after(self, seconds: float) -> bool:
        """Kill the child after some seconds; returns whether it was still running."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.ended():
            time.sleep(0.001)
        if self.ended():
            return False
        os.killpg(self._pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL


@contextmanager
def closing(*numbers: int) -> Any:
    """A hook that sends a child's streams to a pipe, and a function that reads one line and closes the pipe."""
    reading, writing = os.pipe()

    def first() -> None:
        os.close(reading)
        for number in numbers:
            os.dup2(writing, number)

    def read_a_line() -> None:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            pipe.readline()

    yield first, read_a_line


def with_room(room: int) -> Callable[[], None]:
    """A hook after which a child's writes to files fail with ENOSPC once ``room`` bytes are written."""

    def first() -> None:
        true, left = os.write, [room]

        def write(descriptor: int, content: bytes) -> int:
            if descriptor in (1, 2):
                return true(descriptor, content)
            if not left[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = true(descriptor, content[: left[0]])
            left[0] -= written
            return written

        os.write = write  # type: ignore[assignment]

    return first


# -------------------------------------------------------------------------------------------------------------- checking


def content(folder: Path) -> dict[str, bytes]:
    """Pictures and raw maps, by row and name."""
    files = [*folder.glob("samples/*.png"), *folder.glob("maps/*/*.npy")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def of_row(found: dict[str, bytes], id: str) -> dict[str, bytes]:
    return {name: data for name, data in found.items() if name == f"samples/{id}.png" or name.startswith(f"maps/{id}/")}


def check(folder: Path, true: dict[str, bytes], count: Count, before: set[str], *, complete: bool = False) -> set[str]:
    """Compare a folder with that of the undisturbed run.

    Args:
        folder: Folder of the disturbed run.
        true: Content of the undisturbed run.
        count: Counts, to which the findings are added.
        before: Rows that were finished already.
        complete: Whether all rows must be present, and every table without doubles.

    Returns:
        The rows that are finished now.
    """
    finished, found = finished_ids(folder), content(folder)
    on_record = {record["id"] for record in read_records(folder) if record["status"] == "ok"}
    count.lost += len((before | ({*map(_row, true)} if complete else set())) - finished)
    for id in sorted(finished | on_record):
        here, there = of_row(found, id), of_row(true, id)
        if here != there:
            count.broken += 1
            count.notes.append(f"{id}: {', '.join(sorted(name for name in there if here.get(name) != there[name]))}")
    for name, key in ROW_TABLES.items() if complete else [(RECORDS_FILE, ("id",))]:
        lines = [tuple(line.get(column, "") for column in key or line) for line in read_table(folder / name)]
        count.doubled += len(lines) - len(set(lines))
    return finished


def _row(name: str) -> str:
    return Path(name).stem if name.startswith("samples/") else Path(name).parts[1]


def complete(folder: Path, true: dict[str, bytes], count: Count, before: set[str]) -> None:
    """Let a run go on to its end, and compare."""
    run = Run(folder, "--resume")
    status = run.wait()
    count.expect(status == 0, f"went on with status {status}: {run.said.read_text()[-300:]}")
    check(folder, true, count, before, complete=True)
    left = [path.name for path in folder.rglob(".*") if path.name not in (".lock", ".run.lock")]
    count.expect(not left, f"left {left}")


def one_line_error(run: Run, count: Count) -> None:
    said = run.said.read_text()
    count.expect("Traceback" not in said and said.count("error: ") == 1, f"said {said[-300:]}")


# ---------------------------------------------------------------------------------------------------------------- trials


def kills(work: Path, true: dict[str, bytes], seconds: float, number: int) -> Count:
    """Kill a run at random moments, each time going on from what is there."""
    count, folder, finished = Count("killed"), work / "killed", set[str]()
    while count.trials < number:
        if Run(folder, "--resume").kill_after(random.uniform(0, seconds)):
            count.trials += 1
            finished = check(folder, true, count, finished) if folder.exists() else set()
        if len(finished) == ROWS or not folder.exists() or len(finished_ids(folder)) == ROWS:
            finished = _afresh(folder, true, count, finished)
    complete(folder, true, count, finished)
    return count


def _afresh(folder: Path, true: dict[str, bytes], count: Count, finished: set[str]) -> set[str]:
    """A run that was killed to its end makes room for a new one."""
    if folder.exists():
        complete(folder, true, count, finished)
        shutil.rmtree(folder)
    return set()


def two_at_once(work: Path, true: dict[str, bytes], number: int) -> Count:
    """Start two runs on one folder."""
    count = Count("two at once")
    for trial in range(number):
        folder = work / f"two{trial}"
        runs = [Run(folder, "--resume") for _ in range(2)]
        first, second = (run.wait() for run in runs)
        count.trials += 1
        count.expect({first, second} <= {0, 2} and 0 in (first, second), f"two at once ended with {first} and {second}")
        complete(folder, true, count, check(folder, true, count, set()))
    return count


def full_disk(work: Path, true: dict[str, bytes], size: int, number: int) -> Count:
    """Give a run less room than it needs, then enough."""
    disk = work / "disk"
    disk.mkdir()
    mounted = _mount(disk, ENOUGH)
    count = Count("disk full" + (" (tmpfs)" if mounted else " (os.write)"))
    try:
        for trial in range(number):
            room = round(size * (trial + 0.5) / number)
            folder = disk / f"run{trial}"
            if mounted:
                _mount(disk, room, "remount,")
            run = Run(folder, first=(lambda: None) if mounted else with_room(room))
            status = run.wait()
            count.trials += 1
            finished = check(folder, true, count, set()) if folder.exists() else set()
            expected = {1, *([2] if not folder.exists() else []), *([0] if len(finished) == ROWS else [])}
            # With 0 only report.html lacked room, with 2 nothing could be begun.
            count.expect(status in expected, f"a full disk ended with {status}, {len(finished)} rows finished")
            if status:
                one_line_error(run, count)
            if mounted:
                _mount(disk, ENOUGH, "remount,")
            complete(folder, true, count, finished)
            shutil.rmtree(folder)
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=False)
    return count


def _mount(folder: Path, size: int, how: str = "") -> bool:
    """A small disk in memory, where one may mount."""
    if shutil.which("mount") is None:
        return False
    words = ["mount", "-t", "tmpfs", "-o", f"{how}size={max(size, 4096)}", "tmpfs", str(folder)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def removed_folder(work: Path, true: dict[str, bytes], seconds: float, number: int) -> Count:
    """Remove a run's folder while it is written, then make the run again."""
    count = Count("folder removed")
    for trial in range(number):
        folder = work / f"removed{trial}"
        run = Run(folder)
        until = time.monotonic() + seconds * (trial + 0.5) / number
        while not run.ended() and (time.monotonic() < until or not (folder / "config.yaml").exists()):
            time.sleep(0.005)
        while folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        status = run.wait()
        count.trials += 1
        count.expect(status in (0, 1), f"a removed folder ended with {status}")
        if status:
            one_line_error(run, count)
        complete(folder, true, count, check(folder, true, count, set()) if folder.exists() else set())
    return count


def closed_streams(work: Path, true: dict[str, bytes]) -> Count:
    """Close a run's output after its first line."""
    count = Count("streams closed")
    for numbers in ((1,), (1, 2)):
        folder = work / f"closed{''.join(map(str, numbers))}"
        with closing(*numbers) as (first, read_a_line):
            run = Run(folder, first=first)
            read_a_line()
            status = run.wait()
        count.trials += 1
        count.expect(status in (0, 1) and "Traceback" not in run.said.read_text(), f"closed streams ended with {status}")
        count.expect((folder / "report.html").exists(), "closed streams left no report")
        check(folder, true, count, set(), complete=True)
    return count


# ------------------------------------------------------------------------------------------------------------ the script


def prepare() -> None:
    """Import everything and load the model once, without a thread or a gradient, which a fork would not survive."""
    import torch

    import attnguide.callbacks
    import attnguide.cli.execute
    import attnguide.metrics.scoring
    import attnguide.models.load
    import attnguide.module
    import attnguide.report.page

    torch.set_num_threads(1)
    load = attnguide.models.load
    load.quiet_libraries()
    model = load.load_model("shapes", device="cpu")
    load.load_model = lambda *_, **__: model  # type: ignore[assignment]


def table(counts: Sequence[Count]) -> str:
    lines: list[tuple[str, ...]] = [("", "trials", "lost", "doubled", "broken", "endings")]
    lines += [(c.kind, *map(str, (c.trials, c.lost, c.doubled, c.broken, c.endings))) for c in counts]
    width = max(len(line[0]) for line in lines)
    return "\n".join(line[0].ljust(width) + "".join(cell.rjust(9) for cell in line[1:]) for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="runs that are killed at a random moment")
    parser.add_argument("--others", type=int, default=5, help="trials of each other kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args(argv)
    random.seed(asked.seed)
    prepare()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        began = time.monotonic()
        if status := (run := Run(work / "true")).wait():
            print(f"the undisturbed run ended with {status}: {run.said.read_text()}", file=sys.stderr)
            return 1
        seconds, true = time.monotonic() - began, content(work / "true")
        size = sum(path.stat().st_size for path in (work / "true").rglob("*") if path.is_file())
        print(f"a run of {ROWS} rows takes {seconds:.1f} s and {size / 1024:.0f} KiB", flush=True)
        counts = [
            kills(work, true, seconds, asked.kills),
            two_at_once(work, true, asked.others),
            full_disk(work, true, size, asked.others),
            removed_folder(work, true, seconds, asked.others),
            closed_streams(work, true),
        ]
    print(table(counts))
    for count in counts:
        for note in count.notes:
            print(f"{count.kind}: {note}")
    return 1 if any(count.faults for count in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
