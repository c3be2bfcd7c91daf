"""Reads the rows of a benchmark, selects them and applies settings. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnguide.ablation.layouts import box_options
from attnguide.evaluation.development import Parts, split_lines, split_rows
from attnguide.evaluation.entries import CATEGORY
from attnguide.inputs import INPUTS
from attnguide.judges.names import ASKED_TAG
from attnguide.rows.tables import read_samples
from attnguide.rows.values import nearest
from attnguide.shapes.layouts import FILES as FILES
from attnguide.shapes.layouts import spread
from attnguide.types import Sample

_SETTINGS = (
    *("negative_prompt", "height", "width", "steps", "cfg_scale", "true_cfg_scale", "prompt_syntax", "scheduler"),
    *INPUTS,
)


def benchmark_rows(settings: Mapping[str, Any]) -> list[Sample]:
    """Rows of a benchmark without methods: those of the chosen categories, evenly spread.

    Args:
        settings: Settings ``rows``, ``categories``, ``limit``, ``box_size`` and ``box_format`` of ``attnguide eval``.

    Raises:
        ValueError: If the file cannot be read, a category does not exist, or a row's tag ``asked`` is invalid.
    """
    return _checked(chosen_rows(_read(str(settings["rows"]), settings), settings["categories"], settings["limit"]))


def benchmark_parts(settings: Mapping[str, Any]) -> Parts:
    """Test rows as :func:`benchmark_rows` selects them and, with ``tune``, development rows.

    The embedded benchmark has a development file; any other file gives a quarter of its prompts,
    :func:`~attnguide.evaluation.development.split_rows`.

    Args:
        settings: Settings as for :func:`benchmark_rows`, and ``tune`` and ``tune_limit``.

    Raises:
        ValueError: As for :func:`benchmark_rows`; also if the file has too few prompts to be split.
    """
    if not settings["tune"]:
        return Parts(benchmark_rows(settings))
    source, categories = str(settings["rows"]), settings["categories"]
    rows = chosen_rows(_read(source, settings), categories, None)
    if source == "benchmark":
        test, development, split = rows, chosen_rows(_read("development", settings), categories, None), []
    else:
        test, development = split_rows(rows)
        split = split_lines(test, development)
    return Parts(
        _checked(chosen_rows(test, None, settings["limit"])),
        _checked(chosen_rows(development, None, settings["tune_limit"])),
        split,
    )


def _read(source: str, settings: Mapping[str, Any]) -> list[Sample]:
    path = FILES.get(source, Path(source).expanduser())
    if not path.is_file():
        raise ValueError(f"rows: expected {', '.join(FILES)}, or a file{nearest(source, tuple(FILES))}; got {source!r}")
    return read_samples(path, **_boxes(source, path, settings))


def _checked(rows: Sequence[Sample]) -> list[Sample]:
    """The rows without their own methods, after a check of their tag ``asked``."""
    for row in rows:
        if ASKED_TAG in row.tags:
            from attnguide.metrics.asked import asked_of  # needs torch, which planning avoids if it can

            asked_of(row)
    return [replace(row, methods=()) for row in rows]


def _boxes(source: str, path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    if source in FILES:
        return box_options(source, path, None, None)
    size = settings["box_size"]
    return {"size": (size[0], size[1]) if size else None, "box_format": settings["box_format"]}


def chosen_rows(rows: Sequence[Sample], categories: Sequence[str] | None, limit: int | None) -> list[Sample]:
    """Rows of the given categories, at most ``limit`` of each, evenly spread; ``None`` for no restriction.

    Raises:
        ValueError: If there is no such category.
    """
    kinds: dict[str, list[Sample]] = {}
    for row in rows:
        kinds.setdefault(str(row.tags.get(CATEGORY, "")), []).append(row)
    for category in categories or ():
        if category not in kinds:
            known = ", ".join(kind for kind in kinds if kind) or "none"
            raise ValueError(f"categories: expected some of {known}{nearest(category, kinds)}; got {category!r}")
    return [row for category in categories or kinds for row in spread(kinds[category], limit)]


def with_settings(rows: Sequence[Sample], settings: Mapping[str, Any]) -> list[Sample]:
    """The rows with the run's sampling settings, the same for all rows."""
    common = {name: settings[name] for name in _SETTINGS if settings.get(name) is not None}
    return [replace(row, **common) for row in rows]
