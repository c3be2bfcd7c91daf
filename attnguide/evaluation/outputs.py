"""Writes a comparison's files: tables, sheets of examples, configurations of tuned arms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnguide.evaluation.arms import slug
from attnguide.evaluation.choosing import Tuned
from attnguide.evaluation.compare import Comparison
from attnguide.evaluation.entries import Entry
from attnguide.evaluation.tables import COLUMNS, TABLE_FILES, latex, markdown, table_lines
from attnguide.run_folder.files import replacing, write_atomic, write_picture
from attnguide.run_folder.folder import config_text
from attnguide.run_folder.records import read_records
from attnguide.run_folder.tables import append_table
from attnguide.sheets.colors import method_color
from attnguide.sheets.grid import Grid, draw_grids
from attnguide.sheets.sheet import record_picture

SHEETS_FOLDER, TUNED_FOLDER = "sheets", "tuned"
MOST_SHEETS, MOST_EXAMPLES = 12, 6
"""Most categories that get a sheet, and most rows of the benchmark on a sheet."""


def write_comparison(
    folder: Path, found: Comparison, title: str, about: Mapping[str, str], tuned: Sequence[Tuned] = ()
) -> Iterator[Path]:
    """Write ``table.md``, ``table.csv``, ``table.tex`` and a sheet of examples for each category; yields each path.

    Args:
        folder: The run folder.
        found: The comparison.
        title: Title of the tables.
        about: Lines below the title: name -> text.
        tuned: Outcomes of tuning.
    """
    text, table, tex = (folder / name for name in TABLE_FILES)
    write_atomic(text, markdown(found, title, about, tuned))
    yield text
    with replacing(table) as temporary:
        append_table(temporary, COLUMNS, table_lines(found))
    yield table
    write_atomic(tex, latex(found, title))
    yield tex
    yield from write_sheets(folder, found)


def write_tuned(folder: Path, tuned: Sequence[Tuned], common: Mapping[str, Any]) -> Iterator[Path]:
    """Write ``tuned/<arm>.yaml`` for each tuned arm, as ``--method FILE`` and ``--config FILE`` take it; yields each path.

    Args:
        folder: The run folder.
        tuned: Outcomes of tuning.
        common: Sampling settings of all rows, under which the settings were chosen.
    """
    for one in tuned:
        methods = [{"name": config.name, **config.options} for config in one.arm.methods]
        path = folder / TUNED_FOLDER / f"{slug(one.arm.name)}.yaml"
        write_atomic(path, config_text({"methods": methods, **common}))
        yield path


def write_sheets(folder: Path, found: Comparison) -> Iterator[Path]:
    """Write ``sheets/<category>.png``: rows of the benchmark downwards, arms across, regions drawn; yields each path."""
    records = {record["id"]: record for record in read_records(folder)}
    made = {arm: {entry.key: entry for entry in own if entry.ended == "ok"} for arm, own in found.entries.items()}
    kinds: dict[str, dict[tuple[str, int], Entry]] = {}
    for entry in (entry for own in made.values() for entry in own.values()):
        kinds.setdefault(entry.category, {}).setdefault(entry.key, entry)
    for category, own in list(kinds.items())[:MOST_SHEETS]:
        keys = _examples(list(own))
        rows = [
            [record_picture(folder, records.get(made[arm][key].id) if key in made[arm] else None) for arm in found.arms]
            for key in keys
        ]
        if any(picture is not None for row in rows for picture in row):
            labels = [f"{own[key].subject}, seed {key[1]}: {own[key].prompt}" for key in keys]
            path = folder / SHEETS_FOLDER / f"{slug(category or 'examples')}.png"
            arms = list(found.arms)
            grid = Grid(rows, arms, labels, colors=[method_color(arm) for arm in arms], kept=1)
            write_picture(path, draw_grids([grid]))
            yield path


def _examples(keys: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """At most :data:`MOST_EXAMPLES` keys, evenly spaced, of different benchmark rows if there are enough."""
    firsts = list({subject: (subject, seed) for subject, seed in reversed(keys)}.values())[::-1]
    chosen = firsts if len(firsts) >= MOST_EXAMPLES else list(keys)
    count = min(MOST_EXAMPLES, len(chosen))
    return [chosen[index * len(chosen) // count] for index in range(count)]
