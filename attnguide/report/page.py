"""The page itself: pictures embedded, nothing fetched."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from attnguide.files import write_atomic
from attnguide.report.content import Row, places, read_content
from attnguide.sheet import record_picture

REPORT_FILE = "report.html"

_LARGE = 200_000
"""Bytes from which on a figure is embedded as JPEG."""


def write_report(folder: str | Path, path: str | Path | None = None, *, limit: int = 200) -> Path:
    """Write a run folder's page: means with intervals, sheets and curves, every picture with its numbers, the configuration.

    Args:
        folder: Of a run, finished or not.
        path: The page; ``report.html`` in the folder when ``None``.
        limit: Most rows whose pictures are shown.

    Returns:
        Where it was written.

    Raises:
        ValueError: If the folder holds no run.
    """
    path = Path(folder) / REPORT_FILE if path is None else Path(path)
    write_atomic(path, report_page(folder, limit=limit))
    return path


def report_page(folder: str | Path, *, limit: int = 200) -> str:
    """The page as text; see :func:`write_report`."""
    folder = Path(folder)
    environment = Environment(
        loader=PackageLoader("attnguide.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.jinja")
    return template.render(
        content=read_content(folder, limit=limit),
        figure=_figure,
        picture=lambda row: _picture(folder, row),
        word_map=_jpeg,
        places=places,
    )


def _figure(path: Path) -> str:
    """A file as a data address; large ones as JPEG."""
    if path.stat().st_size <= _LARGE:
        return _address(path.read_bytes(), "png")
    return _jpeg(path)


def _picture(folder: Path, row: Row) -> str | None:
    """A row's picture with its regions drawn."""
    drawn = record_picture(folder, row.record)
    return None if drawn is None else _encoded(drawn)


def _jpeg(path: Path) -> str:
    """A picture's file, smaller: a page has hundreds of them."""
    with Image.open(path) as file:
        return _encoded(file.convert("RGB"))


def _encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=88)
    return _address(buffer.getvalue(), "jpeg")


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
