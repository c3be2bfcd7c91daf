"""One picture of a whole run: the same prompt and seed under every method, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from attnguide.prompt.notation import region_from_dict
from attnguide.records import SAMPLES_FOLDER, read_records
from attnguide.sources.files import target_path
from attnguide.types import Region
from attnguide.variants import variant_labels
from attnguide.visual import contact_sheet, draw_regions

_CELL = 256
_SUBJECT = ("prompt", "negative_prompt", "seed", "regions")
_VARIANT = ("method", "options", "steps", "cfg_scale", "true_cfg_scale", "scheduler", "height", "width")

Record = Mapping[str, str]
_Key = tuple[str, ...]


def run_sheet(folder: str | Path, *, limit: int = 48) -> Image.Image | None:
    """Draw a run folder's finished rows: one line per prompt, regions and seed, one column per method, plain first.

    Args:
        folder: With ``records.csv`` and ``samples/``.
        limit: Most lines on the sheet.

    Returns:
        The sheet, or ``None`` if no picture is there.
    """
    folder = Path(folder)
    subjects: dict[_Key, dict[_Key, Record]] = {}
    for record in read_records(folder):
        if _picture_path(folder, record).exists():
            variant, subject = tuple(record[name] for name in _VARIANT), tuple(record[name] for name in _SUBJECT)
            while variant in subjects.get(subject, {}):  # rows that differ in nothing the sheet knows get lines of their own
                subject = (*subject, "again")
            subjects.setdefault(subject, {})[variant] = record
    if not subjects:
        return None
    found = dict.fromkeys(variant for rows in subjects.values() for variant in rows)
    variants = sorted(found, key=lambda variant: variant[0] != "plain")
    columns = [_common([rows[variant] for rows in subjects.values() if variant in rows]) for variant in variants]
    shown = list(subjects.items())[:limit]
    pictures = [[record_picture(folder, rows.get(variant)) for variant in variants] for _, rows in shown]
    labels = [f"seed {subject[2]}: {subject[0]}" for subject, _ in shown]
    return contact_sheet(pictures, column_labels=variant_labels(columns), row_labels=labels, cell=_CELL)


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
    except ValueError:  # a mask's file has gone since
        return picture


def recorded_regions(folder: Path, record: Record) -> list[Region]:
    """Regions of a record as :func:`record_regions` has them, those with a source with the mask that the run kept of it.

    Raises:
        ValueError: If the cell holds something else.
    """
    regions = record_regions(record)
    paths = [target_path(folder, record["id"], regions, index) for index in range(len(regions))]
    return [
        replace(region, mask=path) if region.source is not None else region for region, path in zip(regions, paths, strict=True)
    ]


def record_regions(record: Record) -> list[Region]:
    """Regions of a record that can be read back; mask tensors cannot.

    Raises:
        ValueError: If the cell holds something else.
    """
    plain = json.loads(record["regions"]) if record["regions"] else []
    if not isinstance(plain, list) or not all(isinstance(region, dict) for region in plain):
        raise ValueError(f"regions: expected a list of mappings; got {record['regions'][:60]!r}.")
    return [region_from_dict(region) for region in plain if not str(region.get("mask", "")).startswith("tensor (")]


def _common(records: Sequence[Record]) -> Record:
    """What all records of a column agree on."""
    return {name: value for name, value in records[0].items() if all(other.get(name) == value for other in records)}
