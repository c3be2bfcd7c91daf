"""Rows of an ablation from a file of layouts: prompts with a box for each object. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnguide.rows.samples import sample_to_dict
from attnguide.rows.tables import read_samples
from attnguide.rows.values import nearest
from attnguide.shapes.layouts import FILES, spread
from attnguide.shapes.renderer import SIDE
from attnguide.types import Sample

_KEPT = ("id", "prompt", "regions", "groups", "tags", "problem")
"""Fields of a row that its layout sets; all others are the run's."""


class LayoutsError(ValueError):
    """A layout file or a category that does not exist; the message begins with the setting's name.

    Attributes:
        setting: Name of the setting at fault.
    """

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(f"{setting}: {message}")
        self.setting = setting


def layout_rows(
    source: str,
    categories: Sequence[str] | None = None,
    prompts: int | None = None,
    size: Sequence[int] | None = None,
    box_format: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of a layout file as dictionaries, with a region for each object and the category among the tags.

    Args:
        source: A name in :data:`~attnguide.shapes.layouts.FILES`, or a file of :func:`~attnguide.rows.tables.read_table`.
        categories: Categories to keep; all when ``None``.
        prompts: Prompts per category, :func:`~attnguide.shapes.layouts.spread` over it; all when ``None``.
        size: Height and width in pixels of the picture that boxes refer to; for a CSV file the shapes world's when ``None``.
        box_format: Box format, if it is not the file format's own.

    Raises:
        LayoutsError: If there is no such file or category.
        ValueError: With the file's line, if the file is malformed.
    """
    path = FILES.get(source, Path(source))
    if not path.is_file():
        known = ", ".join(FILES)
        raise LayoutsError("layouts", f"expected {known}, or a file{nearest(source, tuple(FILES))}; got {source!r}")
    kinds: dict[str, list[Sample]] = {}
    for sample in read_samples(path, **box_options(source, path, size, box_format)):
        kinds.setdefault(str(sample.tags.get("category", "")), []).append(sample)
    for category in categories or ():
        if category not in kinds:
            raise LayoutsError("categories", f"expected some of {', '.join(kinds)}{nearest(category, kinds)}; got {category!r}")
    chosen = [sample_to_dict(sample) for category in categories or kinds for sample in spread(kinds[category], prompts)]
    return [{key: value for key, value in row.items() if key in _KEPT} for row in chosen]


def box_options(source: str, path: Path, size: Sequence[int] | None, box_format: str | None) -> dict[str, Any]:
    """Arguments of :func:`~attnguide.rows.tables.read_table`; by default a CSV file's boxes are pixels of the shapes world."""
    if source in FILES or (size is None and box_format is None and path.suffix.lower() == ".csv"):
        return {"size": (SIDE, SIDE)}
    return {"size": None if size is None else (size[0], size[1]), "box_format": box_format}
