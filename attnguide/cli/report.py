"""``attnguide report``: a run folder as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnguide.cli import values
from attnguide.cli.arguments import parse
from attnguide.cli.errors import UsageError
from attnguide.cli.values import Setting

DESCRIPTION = """\
Write a run folder as one page of HTML that needs no other file: means with intervals, sheets and curves, every picture with its
numbers, the configuration. Runs write it themselves when they end; this is for runs that were stopped, or another place."""

EXAMPLES = """\
examples:
  attnguide report runs/2026-01-31_12-00-00
  attnguide report runs/sweep --out sweep.html --limit 1000"""


def run(argv: Sequence[str]) -> int:
    """Write the page and say where."""
    settings = [
        Setting("folder", values.words, None, "of a run", metavar="DIR"),
        Setting("out", values.words, None, "the page; DIR/report.html by default", metavar="FILE"),
        Setting("limit", values.whole(0), 200, "most rows whose pictures are shown; means are over all", metavar="N"),
    ]
    asked = parse("attnguide report", argv, settings, description=DESCRIPTION, examples=EXAMPLES)
    if asked["folder"] is None:
        raise UsageError("folder: expected the folder of a run; got none")
    from attnguide.report.page import write_report

    try:
        print(write_report(Path(asked["folder"]), asked["out"], limit=asked["limit"]))
    except (ValueError, OSError) as error:
        raise UsageError(f"folder: {error}" if isinstance(error, ValueError) else f"out: {error.strerror or error}") from error
    return 0
