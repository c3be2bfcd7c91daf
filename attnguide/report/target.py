"""Where a run's page goes. Importing this needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

REPORT_FILE = "report.html"

_BEGIN, _MARK = 1000, b'<meta name="generator" content="attnguide">'
"""By what a page is known, and in how many of its first bytes."""


def check_target(path: Path) -> None:
    """Refuse to write a page over what is none.

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
