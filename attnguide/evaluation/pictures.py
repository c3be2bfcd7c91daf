"""Turns existing pictures into rows of a comparison, and judges them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from attnguide.callbacks.judging import append_judged
from attnguide.evaluation.arms import ARM, SUBJECT, slug
from attnguide.judges.base import Judge
from attnguide.metrics.scoring import JudgeScores
from attnguide.run_folder.files import write_picture
from attnguide.run_folder.records import RECORDS_FILE, SAMPLES_FOLDER, record_of
from attnguide.run_folder.tables import append_table
from attnguide.types import Cost, Sample, SampleResult

KINDS = (".png", ".jpg", ".jpeg", ".webp")

_AT_ONCE = 8
"""Most pictures in memory at once."""


def picture_rows(folder: Path, rows: Sequence[Sample]) -> list[tuple[Sample, Path | None]]:
    """Rows of a comparison for the pictures of a folder, and for benchmark rows without a picture.

    A picture belongs to the row whose id is its file name, or the part of it before a ``-`` or ``_``; pictures of one row are
    numbered in the order of their names, and the number serves as the seed. Each folder with pictures inside ``folder`` is an
    arm; without any, ``folder`` itself is the only arm.

    Args:
        folder: Folder of pictures, or of a folder of pictures for each arm.
        rows: Rows of the benchmark.

    Returns:
        Rows as :func:`~attnguide.evaluation.arms.arm_rows` makes them, each with its picture's path or ``None``.

    Raises:
        ValueError: If no picture belongs to a row.
    """
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and any(_pictures(path)))
    found: list[tuple[Sample, Path | None]] = []
    for arm in inner or [folder]:
        by_row = _by_row(list(_pictures(arm)), rows)
        for row in rows:
            own: Sequence[Path | None] = by_row.get(row.id) or [None]
            for number, path in enumerate(own):
                tags = {**row.tags, ARM: arm.name, SUBJECT: row.id}
                id = f"{row.id}-{slug(arm.name)}-{number}"
                found.append((replace(row, id=id, seed=number, tags=tags, problem=None), path))
    if not any(path for _, path in found):
        raise ValueError(f"pictures: expected files named by rows, like {rows[0].id}.png; {str(folder)!r} has none")
    # An arm of the name "plain" is the baseline of the comparison and must come first.
    return sorted(found, key=lambda pair: pair[0].tags[ARM] != "plain")


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix.lower() in KINDS)


def _by_row(paths: Sequence[Path], rows: Sequence[Sample]) -> Mapping[str, list[Path]]:
    ids = {row.id for row in rows}
    found: dict[str, list[Path]] = {}
    for path in paths:
        heads = [path.stem, *(path.stem[: match.start()] for match in reversed(list(re.finditer("[-_]", path.stem))))]
        id = next((head for head in heads if head in ids), None)  # the longest
        if id is not None:
            found.setdefault(id, []).append(path)
    return found


def judge_files(folder: Path, found: Sequence[tuple[Sample, Path | None]], judges: Sequence[Judge]) -> None:
    """Judge pictures, and write ``records.csv``, ``judged.csv`` and copies of the pictures as a run does.

    Args:
        folder: The run folder to write to.
        found: Rows with their pictures, from :func:`picture_rows`.
        judges: Judges with distinct names.
    """
    scores = JudgeScores(judges)
    for start in range(0, len(found), _AT_ONCE):
        results = [_result(sample, path) for sample, path in found[start : start + _AT_ONCE]]
        said = scores.look(results)
        append_judged(folder, [(result.sample.id, seen) for result, (_, seen) in zip(results, said, strict=True)])
        for result, (numbers, _) in zip(results, said, strict=True):
            if result.image is not None:
                write_picture(folder / SAMPLES_FOLDER / f"{result.sample.id}.png", result.image)
            record = record_of(result, numbers)
            append_table(folder / RECORDS_FILE, tuple(record), [record])


def _result(sample: Sample, path: Path | None) -> SampleResult:
    nothing = Cost(0, 0, 0.0, 0.0)
    if path is None:
        return SampleResult(sample, None, None, nothing, "refused: there is no picture of this row")
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return SampleResult(sample, None, None, nothing, f"refused: {path.name} cannot be read ({type(error).__name__})")
    return SampleResult(replace(sample, height=None, width=None), picture, None, nothing)
