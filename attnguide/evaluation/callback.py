"""Writes and logs a comparison's tables and sheets when its rows are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from attnguide.callbacks.base import run_folder
from attnguide.callbacks.closing import ClosingCallback
from attnguide.callbacks.keys import EVAL_SHEETS, EVAL_TABLE
from attnguide.callbacks.sinks import Picture, sinks_of
from attnguide.evaluation.choosing import Tuned
from attnguide.evaluation.compare import Comparison, compare_folder
from attnguide.evaluation.outputs import SHEETS_FOLDER, write_comparison, write_tuned
from attnguide.evaluation.tables import COLUMNS, table_lines
from attnguide.types import Sample


class EvalLog(ClosingCallback):
    """Writes tables and sheets into the run folder, also for a stopped run.

    Loggers get the table as ``eval/table`` and the sheets as ``eval/sheets``.

    Args:
        samples: All rows of the comparison.
        tries: For each steered arm the number of plain pictures that cost as much.
        title: Title of the tables.
        about: Lines below the title: name -> text, as benchmark, model and judges.
        reference: Folder of real pictures for the kernel distance; no distance when ``None``.
        tuned: Outcomes of tuning, if the arms were tuned.
        common: Sampling settings of all rows, for the configurations of tuned arms.

    Attributes:
        found: The comparison, once this process has written its files.
        sheets: Paths of the sheets.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tries: Mapping[str, int],
        title: str,
        about: Mapping[str, str],
        reference: Path | None = None,
        tuned: Sequence[Tuned] = (),
        common: Mapping[str, Any] | None = None,
    ) -> None:
        self.samples, self.tries, self.title, self.about = tuple(samples), dict(tries), title, dict(about)
        self.reference = reference
        self.tuned, self.common = tuple(tuned), dict(common or {})
        self.found: Comparison | None = None
        self.sheets: list[Path] = []

    def finish(self, trainer: L.Trainer) -> None:
        """Compare, write the files, log table and sheets."""
        lines = table_lines(self.write(run_folder(trainer)))
        for sink in sinks_of(trainer):
            sink.table(EVAL_TABLE, list(COLUMNS), [{name: line.get(name) for name in COLUMNS} for line in lines])
            sink.pictures(EVAL_SHEETS, [Picture(path, path.stem) for path in self.sheets])

    def write(self, folder: Path) -> Comparison:
        """Compare the rows on record, write tables, sheets and tuned configurations, and return the comparison."""
        self.found = compare_folder(folder, self.samples, self.tries, self.reference)
        files = list(write_comparison(folder, self.found, self.title, self.about, self.tuned))
        files += write_tuned(folder, self.tuned, self.common)
        self.sheets = [path for path in files if path.parent.name == SHEETS_FOLDER]
        return self.found
