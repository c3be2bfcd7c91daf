"""Judges applied to finished rows: scores for their records, and detections in ``judged.csv``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from attnguide.callbacks.base import SamplingCallback, run_folder
from attnguide.engine.observer import BatchInfo
from attnguide.judges.base import Judge, Seen
from attnguide.metrics.scoring import JudgeScores
from attnguide.run_folder.records import JUDGED_FILE
from attnguide.run_folder.tables import append_table
from attnguide.types import SampleResult

_COLUMNS = ("id", "judge", "numbers", "detections")


class Judging(SamplingCallback):
    """Runs judges on every finished picture; their scores become columns of the record.

    ``judged.csv`` gets a line for each row and judge: its numbers, and its detections as labels, boxes in fractions and scores,
    from which whole-table metrics (average precision) are computed. Put it before
    :class:`~attnguide.callbacks.run_folder.RunFolder`, so that a row is on record only when what was seen of it is on disk.

    Args:
        judges: Judges with distinct names.

    Attributes:
        looked: Number of pictures shown to the judges, on this process.
        judged: Number of those for which at least one judge gave a score.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        self.scores = JudgeScores(judges)
        self.looked = self.judged = 0
        self._found: dict[str, dict[str, float]] = {}
        self._seen: dict[str, dict[str, tuple[Seen, dict[str, float]]]] = {}

    def on_predict_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Move the judges' networks to the model's device."""
        self.scores.to(module.device)

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        self._found.clear()

    def row_metrics(self, result: SampleResult) -> Mapping[str, float]:
        if result.sample.id not in self._found:
            self._look([result])
        return self._found[result.sample.id]

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        self._look([result for result in results if result.sample.id not in self._found])
        append_judged(run_folder(trainer), [(id, seen) for id, seen in self._seen.items()])
        self._seen.clear()

    def _look(self, results: Sequence[SampleResult]) -> None:
        for result, (numbers, seen) in zip(results, self.scores.look(results), strict=True):
            self._found[result.sample.id] = numbers
            self._seen[result.sample.id] = seen
            self.looked += result.image is not None
            self.judged += bool(numbers)


def append_judged(folder: Path, found: Sequence[tuple[str, Mapping[str, tuple[Seen, Mapping[str, float]]]]]) -> None:
    """Append lines to ``judged.csv``, one for each row and judge.

    Args:
        folder: The run folder.
        found: For each row its id, and by judge the detections and the scores.
    """
    lines = [
        {
            "id": id,
            "judge": judge,
            "numbers": json.dumps({name: round(value, 6) for name, value in numbers.items()}),
            "detections": json.dumps(_detections(seen)) if seen.detections is not None else "",
        }
        for id, said in found
        for judge, (seen, numbers) in said.items()
    ]
    if lines:
        append_table(folder / JUDGED_FILE, _COLUMNS, lines)


def _detections(seen: Seen) -> list[list[Any]]:
    return [
        [found.label, [round(float(edge), 5) for edge in found.box], round(float(found.score), 5)]
        for found in seen.detections or ()
    ]
