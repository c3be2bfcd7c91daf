"""Name of a run's HTML page, and the check that a path may be written. Importing this needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

REPORT_FILE = "report.html"

_BEGIN, _MARK = 1000, b'<meta name="generator" content="attnguide">'
"""Number of bytes at the start of a page that contain the mark, and the mark by which a page is recognised."""


def check_target(path: Path) -> None:
    """Check that a path is free, or holds an earlier page that may be overwritten.

    Raises:
        ValueError: If the path is a folder, a device or a file that is no page of a run.
    """
    if not os.path.lexists(path):
        return
    if path.is_file():
        with path.open("rb") as file:
            if _MARK in file.read(_BEGIN):
                return
    raise ValueError(f"out: expected a new file, or an earlier page of a run; {str(path)!r} is something else")
