"""``attnguide report``: writes a run folder as one HTML page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from attnguide.cli import values
from attnguide.cli.arguments import parse
from attnguide.cli.errors import RunError, UsageError, one_line, reason
from attnguide.cli.folders import local_path, probe
from attnguide.cli.values import Setting
from attnguide.report.target import REPORT_FILE, check_target
from attnguide.run_folder.records import read_records

DESCRIPTION = """\
Write a run folder as one page of HTML that needs no other file: means with intervals, sheets and curves, every picture with its
numbers, the configuration. Runs write it themselves when they end; this is for runs that were stopped, or another place."""

EXAMPLES = """\
examples:
  attnguide report runs/2026-01-31_12-00-00-123
  attnguide report runs/sweep --out sweep.html --limit 1000"""


def settings() -> list[Setting]:
    """Settings of ``attnguide report``."""
    return [
        Setting("folder", values.words, None, "folder of a run", metavar="DIR"),
        Setting("out", local_path, None, "the page; DIR/report.html by default", metavar="FILE"),
        Setting("limit", values.whole(0), 200, "most rows whose pictures are shown; means are over all rows", metavar="N"),
    ]


def run(argv: Sequence[str]) -> int:
    """Write the page and print its path."""
    asked = parse("attnguide report", argv, settings(), description=DESCRIPTION, examples=EXAMPLES)
    if asked["folder"] is None:
        raise UsageError("folder: expected the folder of a run; got none")
    folder = Path(asked["folder"]).expanduser()
    if not folder.is_dir():
        raise UsageError(f"folder: expected the folder of a run; {str(folder)!r} is none")
    page = Path(asked["out"]) if asked["out"] else folder / REPORT_FILE
    try:
        check_target(page)
        probe(page.parent, page.name)
        rows = len(read_records(folder))
        if not rows:
            raise ValueError(f"folder: expected the folder of a run; {str(folder)!r} holds no run: no row is on record in it")
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    print(f"reading {rows} rows of {folder} ...", file=sys.stderr)
    from attnguide.report.page import write_report

    try:
        print(write_report(folder, page, limit=asked["limit"]))
    except OSError as error:
        raise RunError(f"no page was written: {reason(error)}") from error
    return 0
