"""Renders a run folder's content as an HTML page with embedded pictures."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape
from PIL import Image

from attnguide.report.content import Row, inked_places, places, read_content
from attnguide.report.target import REPORT_FILE, check_target
from attnguide.run_folder.files import write_atomic
from attnguide.sheets.colors import css, method_color
from attnguide.sheets.sheet import record_picture

_LARGE = 200_000
"""Size in bytes above which a figure is embedded as JPEG."""

_TOLD = 5
"""Most warnings about files that could not be read; the page lists all of them."""


def write_report(folder: str | Path, path: str | Path | None = None, *, limit: int = 200) -> Path:
    """Write a run folder's page: means with intervals, sheets and curves, every picture with its numbers, the configuration.

    Args:
        folder: Folder of a run, finished or not.
        path: File of the page; ``report.html`` in the folder when ``None``.
        limit: Most rows whose pictures are shown.

    Returns:
        The path that was written.

    Raises:
        ValueError: If the folder holds no run, or ``path`` is taken by a file that is no such page.

    Files and cells that cannot be read are named on the page, and the first of them in warnings.
    """
    path = Path(folder) / REPORT_FILE if path is None else Path(path)
    check_target(path)
    write_atomic(path, report_page(folder, limit=limit))
    return path


def report_page(folder: str | Path, *, limit: int = 200) -> str:
    """HTML of the page; see :func:`write_report`."""
    folder = Path(folder)
    content = read_content(folder, limit=limit)
    pictures = _Pictures(folder, content.problems)
    text = _template().render(content=content, pictures=pictures, places=places, inked_places=inked_places)
    for problem in pictures.problems[:_TOLD]:
        warnings.warn(f"{folder}: {problem}", stacklevel=2)
    if len(pictures.problems) > _TOLD:
        warnings.warn(f"{folder}: {len(pictures.problems) - _TOLD} more things could not be read; see the page", stacklevel=2)
    return text


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("attnguide.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["two_lines"] = _two_lines
    environment.filters["method_ink"] = lambda arm: css(method_color(arm))
    return environment.get_template("page.html.jinja")


def _two_lines(cell: str) -> Markup:
    """A cell with its interval, ``31.2 [12, 56]*``, as the number over the interval, so that tables stay narrow."""
    found = re.fullmatch(r"(\S+) \[([^\]]+)\](.*)", cell)
    return Markup("{}{}<small>{}</small>").format(found[1], found[3], found[2]) if found else escape(cell)


def _breakable(name: str) -> Markup:
    """A name with break opportunities after ``_`` and dots, so that tables stay narrow."""
    return Markup(re.sub(r"([_.])", r"\1<wbr>", str(escape(name))))


class _Pictures:
    """Encodes a run folder's pictures as data URLs; an unreadable file gives ``None`` and a problem.

    Args:
        folder: The run folder.
        problems: Errors found before, to which those of pictures are added.
    """

    def __init__(self, folder: Path, problems: Sequence[str]) -> None:
        self.folder = folder
        self.problems = list(problems)

    def figure(self, path: Path) -> str | None:
        """Data URL of a sheet or plot."""
        return self._read(path, lambda: _figure(path))

    def word_map(self, path: Path) -> str | None:
        """Data URL of a word's heat map."""
        return self._read(path, lambda: _jpeg(path))

    def picture(self, row: Row) -> str | None:
        """Data URL of a row's picture with its regions drawn."""
        return None if row.picture is None else self._read(row.picture, lambda: _picture(self.folder, row))

    def _read(self, path: Path, read: Callable[[], str | None]) -> str | None:
        try:
            return read()
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            self.problems.append(f"{path.relative_to(self.folder)}: not a picture that can be read ({type(error).__name__})")
            return None


def _figure(path: Path) -> str:
    """Data URL of a PNG file; large ones are converted to JPEG."""
    if path.stat().st_size <= _LARGE:
        with Image.open(path) as file:
            file.verify()
        return _address(path.read_bytes(), "png")
    return _jpeg(path)


def _picture(folder: Path, row: Row) -> str | None:
    """A row's picture with its regions drawn."""
    drawn = record_picture(folder, row.record)
    return None if drawn is None else _encoded(drawn)


def _jpeg(path: Path) -> str:
    """Data URL of a picture's file as JPEG, since a page has hundreds of them."""
    with Image.open(path) as file:
        return _encoded(file.convert("RGB"))


def _encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=88)
    return _address(buffer.getvalue(), "jpeg")


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
