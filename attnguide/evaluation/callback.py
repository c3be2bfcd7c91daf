"""Writes a comparison's tables and sheets when its rows are done, and shows them in the loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L

from attnguide.callbacks.base import SamplingCallback, run_folder
from attnguide.callbacks.keys import EVAL_SHEETS, EVAL_TABLE
from attnguide.callbacks.sinks import Picture, sinks_of
from attnguide.evaluation.choosing import Tuned
from attnguide.evaluation.compare import Comparison, compare_folder
from attnguide.evaluation.outputs import SHEETS_FOLDER, write_comparison, write_tuned
from attnguide.evaluation.tables import COLUMNS, table_lines
from attnguide.types import Sample


class EvalLog(SamplingCallback):
    """Puts tables and sheets into the run folder, also of a run that is stopped.

    Loggers get the table as ``eval/table`` and the sheets as ``eval/sheets``.

    Args:
        samples: All rows of the comparison.
        tries: For each steered arm the number of plain pictures that cost as much.
        title: Of the tables.
        about: What was compared, by name.
        reference: Folder of real pictures that the arms' pictures are compared with.
        tuned: What came of tuning, where the arms were tuned.
        common: Settings of all rows, which go into the tuned configurations.

    Attributes:
        found: The comparison, once its files were written by this process.
        sheets: Files of the sheets.
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

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """All rows are on record: compare, and show the table."""
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        found = self.write(run_folder(trainer))
        lines = table_lines(found)
        for sink in sinks_of(trainer):
            sink.table(EVAL_TABLE, list(COLUMNS), [{name: line.get(name) for name in COLUMNS} for line in lines])
            sink.pictures(EVAL_SHEETS, [Picture(path, path.stem) for path in self.sheets])

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """A run that is stopped still shows what it finished."""
        with suppress(OSError):
            if trainer.is_global_zero:
                self.write(run_folder(trainer))

    def write(self, folder: Path) -> Comparison:
        """Write the files of what there is."""
        self.found = compare_folder(folder, self.samples, self.tries, self.reference)
        files = list(write_comparison(folder, self.found, self.title, self.about, self.tuned))
        files += write_tuned(folder, self.tuned, self.common)
        self.sheets = [path for path in files if path.parent.name == SHEETS_FOLDER]
        return self.found
