"""Rows of an ablation from a file of layouts: prompts with a box for each object. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnguide.row_values import nearest
from attnguide.rows import sample_to_dict
from attnguide.shapes.layouts import FILES, spread
from attnguide.shapes.renderer import SIDE
from attnguide.tables import read_samples
from attnguide.types import Sample

_KEPT = ("id", "prompt", "regions", "groups", "tags", "problem")
"""What a layout says of a row; all else is the run's."""


class LayoutsError(ValueError):
    """Layouts cannot be found or chosen from; the message begins with the setting.

    Attributes:
        setting: The one at fault.
    """

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(f"{setting}: {message}")
        self.setting = setting


def layout_rows(
    source: str,
    categories: Sequence[str] | None = None,
    prompts: int | None = None,
    size: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Rows as plain values, with a region for each object; category and the like are tags.

    Args:
        source: A name in :data:`~attnguide.shapes.layouts.FILES`, or a CSV file with their columns.
        categories: Which; all when ``None``.
        prompts: How many of each category, :func:`~attnguide.shapes.layouts.spread` over it; all when ``None``.
        size: Height and width in pixels of the picture that the boxes of a CSV file refer to; the shapes world's when ``None``.

    Raises:
        LayoutsError: If there is no such file or category.
        ValueError: With the file's line, if the file is malformed.
    """
    path = FILES.get(source, Path(source))
    if not path.is_file() or path.suffix.lower() != ".csv":
        known = ", ".join(FILES)
        raise LayoutsError("layouts", f"expected {known}, or a CSV file{nearest(source, tuple(FILES))}; got {source!r}")
    height, width = (SIDE, SIDE) if size is None or source in FILES else size
    kinds: dict[str, list[Sample]] = {}
    for sample in read_samples(path, size=(height, width)):
        kinds.setdefault(str(sample.tags.get("category", "")), []).append(sample)
    for category in categories or ():
        if category not in kinds:
            raise LayoutsError("categories", f"expected some of {', '.join(kinds)}{nearest(category, kinds)}; got {category!r}")
    chosen = [sample_to_dict(sample) for category in categories or kinds for sample in spread(kinds[category], prompts)]
    return [{key: value for key, value in row.items() if key in _KEPT} for row in chosen]
