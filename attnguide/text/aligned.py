"""Formats tables as aligned text that fits a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

_GAP = "  "
_LEAST = 12
"""Least width in characters to which the first column is shortened."""


def terminal_width() -> int:
    """Width of the terminal in characters; 80 without a terminal."""
    return shutil.get_terminal_size((80, 24)).columns


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None, kept: int = 1) -> tuple[str, int]:
    """Lay out a table within a width.

    Columns are left out from the right until the others fit. If the first ``kept`` columns are still too wide, cells of the
    first one lose their middle.

    Args:
        heads: Names of the columns.
        rows: Cells, row by row.
        width: Width of a line in characters; the terminal's when ``None``.
        kept: Number of columns at the left that are never left out.

    Returns:
        The text, and the number of columns left out.
    """
    width = terminal_width() if width is None else width
    chosen = list(range(len(heads)))
    widths = [max(map(len, (heads[i], *(row[i] for row in rows)))) for i in range(len(heads))]
    while len(chosen) > kept and sum(widths[i] + len(_GAP) for i in chosen) - len(_GAP) > width:
        chosen.pop()
    room = max(_LEAST, width - sum(widths[i] + len(_GAP) for i in chosen[1:]))
    widths[0] = min(widths[0], room)
    lines = [[_shortened(line[i], widths[i]) if i == 0 else line[i] for i in chosen] for line in (heads, *rows)]
    text = "\n".join(
        _GAP.join(_justified(cell, widths[i]) for cell, i in zip(line, chosen, strict=True)).rstrip() for line in lines
    )
    return text, len(heads) - len(chosen)


def _shortened(cell: str, width: int) -> str:
    if len(cell) <= width:
        return cell
    head = (width - 3) // 2
    return f"{cell[:head]}...{cell[len(cell) - (width - 3 - head) :]}"


def _justified(cell: str, width: int) -> str:
    number = cell.replace(".", "", 1).replace("-", "", 1).isdigit()
    return cell.rjust(width) if number else cell.ljust(width)
