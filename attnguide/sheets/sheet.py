"""The contact sheet of a run: pictures of the same prompt and seed side by side, by method or by ablation axis."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from attnguide.prompt.notation import region_from_dict
from attnguide.run_folder.records import AXIS, CELL, SAMPLES_FOLDER, read_records
from attnguide.sheets.colors import method_color
from attnguide.sheets.grid import Grid, draw_grids
from attnguide.sheets.overlays import draw_regions
from attnguide.sheets.variants import across_axis, variant_labels, varied_axes
from attnguide.sources.files import target_path
from attnguide.text.html import Color
from attnguide.types import PLAIN, Region

_CELL = 256
_SUBJECT = ("prompt", "negative_prompt", "seed", "regions", "init_image", "inpaint_mask")
_VARIANT = (
    *("method", "options", "steps", "cfg_scale", "true_cfg_scale", "prompt_syntax", "scheduler", "height", "width"),
    *("strength", "control"),
)

Record = Mapping[str, str]
_Key = tuple[str, ...]


def run_sheet(folder: str | Path, *, limit: int = 48) -> Image.Image | None:
    """Draw a run folder's finished rows as one contact sheet.

    Prompts and seeds go down; methods and differing settings go across, plain first. In an ablation the values of the last
    numeric axis go across, in one grid for each combination of the other axes.

    Args:
        folder: The run folder, with ``records.csv`` and ``samples/``.
        limit: Most lines of pictures on the sheet.

    Returns:
        The sheet, or ``None`` if no row has a picture.
    """
    folder = Path(folder)
    records = [record for record in read_records(folder) if _picture_path(folder, record).exists()]
    if not records:
        return None
    prompts = {record["prompt"] for record in records}
    axes = varied_axes(records)
    tables = _by_axes(records, axes, limit) if axes else [_by_variant(records, limit)]
    grids = [
        Grid(
            [[record_picture(folder, record) for record in line] for line in table.lines],
            table.columns,
            [_line_label(line, len(prompts) > 1) for line in table.lines],
            table.title,
            [_color(column) for column in zip(*table.lines, strict=True)],
            table.kept,
        )
        for table in tables
    ]
    return draw_grids(grids, title=prompts.pop() if len(prompts) == 1 else "", cell=_CELL)


@dataclass(frozen=True)
class _Table:
    """A grid of records, before their pictures are read.

    Attributes:
        title: Title above the grid.
        columns: Labels of the columns.
        lines: Lines from top to bottom; ``None`` for an empty cell.
        kept: Number of columns of plain pictures at the left.
    """

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[Record | None]]
    kept: int


def _by_variant(records: Sequence[Record], limit: int) -> _Table:
    """A column for each method with its options and settings, a line for each prompt, regions and seed."""
    subjects: dict[_Key, dict[_Key, Record]] = {}
    for record in records:
        variant, subject = (tuple(record.get(name, "") for name in names) for names in (_VARIANT, _SUBJECT))
        while variant in subjects.get(subject, {}):  # rows with equal settings get lines of their own
            subject = (*subject, "again")
        subjects.setdefault(subject, {})[variant] = record
    found = dict.fromkeys(variant for rows in subjects.values() for variant in rows)
    variants = sorted(found, key=lambda variant: variant[0] != PLAIN)
    columns = [_common([rows[variant] for rows in subjects.values() if variant in rows]) for variant in variants]
    lines = [[rows.get(variant) for variant in variants] for rows in list(subjects.values())[:limit]]
    plain = sum(variant[0] == PLAIN for variant in variants)
    return _Table("", variant_labels(columns), lines, plain if plain < len(variants) else 0)


def _by_axes(records: Sequence[Record], axes: Mapping[str, Sequence[str]], limit: int) -> list[_Table]:
    """A table for each combination of the other axes' values; the values of :func:`across_axis` go across."""
    across = across_axis(axes)
    down = [name for name in axes if name != across]
    tables: dict[_Key, list[Record]] = {}
    for record in records:
        if all(record.get(AXIS + name) for name in axes):
            tables.setdefault(tuple(record[AXIS + name] for name in down), []).append(record)
    plain = [record for record in records if record.get(CELL, "").split(", ")[0] == PLAIN]
    prompts = list(dict.fromkeys(record["prompt"] for record in records))
    most = max(1, limit // max(1, len(tables)))
    found = []
    for key in sorted(tables, key=lambda key: [axes[name].index(value) for name, value in zip(down, key, strict=True)]):
        here = dict(zip(down, key, strict=True))
        beside = [record for record in plain if _fits(record, here)]
        along = {value: [one for one in tables[key] if one[AXIS + across] == value] for value in axes[across]}
        shown = [value for value, members in along.items() if members]
        lines = _lines([beside, *(along[value] for value in shown)], prompts)
        title = ", ".join(f"{name} = {value}" for name, value in here.items())
        cut = f"the first {most} of {len(lines)} lines" if len(lines) > most else ""
        labels = [PLAIN, *(f"{across} = {value}" for value in shown)]
        if not beside:
            labels, lines = labels[1:], [line[1:] for line in lines]
        found.append(_Table("; ".join(filter(None, [title, cut])), labels, lines[:most], 1 if beside else 0))
    return found


def _fits(record: Record, here: Mapping[str, str]) -> bool:
    """Whether a plain record agrees with these axis values, on the axes that it has."""
    return all(record.get(AXIS + name, "") in ("", value) for name, value in here.items())


def _lines(columns: Sequence[Sequence[Record]], prompts: Sequence[str]) -> list[list[Record | None]]:
    """Arrange the columns' records in lines of one prompt, set of regions and seed each, by prompt and seed.

    If no two steered columns share such a subject, lines are of one seed only, with its records in the order they were made.

    Args:
        columns: Records of each column, plain ones first.
        prompts: Prompts of the run, in order.
    """
    steered = [{_subject(record) for record in members} for members in columns[1:]]
    shared = len(steered) < 2 or any(one & other for one, other in itertools.combinations(steered, 2))
    found: dict[tuple[_Key, int], list[Record | None]] = {}
    for column, members in enumerate(columns):
        count: Counter[_Key] = Counter()
        for record in members:
            key = _subject(record) if shared else (record["seed"],)
            line = found.setdefault((key, count[key]), [None] * len(columns))
            line[column] = record
            count[key] += 1
    kept = [line for line in found.values() if len(line) < 2 or any(line[1:])]
    return sorted(kept, key=lambda line: (prompts.index(_first(line)["prompt"]) if shared else 0, int(_first(line)["seed"])))


def _subject(record: Record) -> _Key:
    return tuple(record.get(name, "") for name in _SUBJECT)


def _first(line: Sequence[Record | None]) -> Record:
    return next(record for record in line if record is not None)


def _line_label(line: Sequence[Record | None], with_prompt: bool) -> str:
    known = [record for record in line if record is not None]
    prompts = {record["prompt"] for record in known}
    return f"seed {known[0]['seed']}" + (f": {known[0]['prompt']}" if with_prompt and len(prompts) == 1 else "")


def _color(column: Sequence[Record | None]) -> Color | None:
    """Colour of the one method of a column's records; ``None`` if they have several."""
    methods = {record.get("method", "") for record in column if record is not None}
    return method_color(methods.pop()) if len(methods) == 1 else None


def _picture_path(folder: Path, record: Record) -> Path:
    return folder / SAMPLES_FOLDER / f"{record['id']}.png"


def record_picture(folder: Path, record: Record | None) -> Image.Image | None:
    """A record's picture at the sheet's size, its regions drawn; ``None`` without a record or a picture."""
    if record is None or not _picture_path(folder, record).exists():
        return None
    with Image.open(_picture_path(folder, record)) as file:
        picture = file.convert("RGB")
    scale = _CELL / max(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    try:
        return draw_regions(picture, recorded_regions(folder, record))
    except ValueError:  # the file of a mask no longer exists
        return picture


def recorded_regions(folder: Path, record: Record) -> list[Region]:
    """Regions of a record; a region with a source gets the mask that the run kept in ``targets/``.

    Raises:
        ValueError: If the cell ``regions`` is invalid.
    """
    regions = record_regions(record)
    paths = [target_path(folder, record["id"], regions, index) for index in range(len(regions))]
    return [
        replace(region, mask=path) if region.source is not None else region for region, path in zip(regions, paths, strict=True)
    ]


def record_regions(record: Record) -> list[Region]:
    """Regions in a record, without those whose mask was a tensor, which the record does not hold.

    Raises:
        ValueError: If the cell ``regions`` is not a list of mappings.
    """
    plain = json.loads(record["regions"]) if record["regions"] else []
    if not isinstance(plain, list) or not all(isinstance(region, dict) for region in plain):
        raise ValueError(f"regions: expected a list of mappings; got {record['regions'][:60]!r}.")
    return [region_from_dict(region) for region in plain if not str(region.get("mask", "")).startswith("tensor (")]


def _common(records: Sequence[Record]) -> Record:
    """Entries that are equal in all records of a column."""
    return {name: value for name, value in records[0].items() if all(other.get(name) == value for other in records)}
