"""Entries of a comparison: outcome, scores and cost of each arm's rows, from the files of a run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from attnguide.evaluation.arms import ARM, ATTEMPT, BEST, SUBJECT
from attnguide.judges.base import Asked, Detection, Seen
from attnguide.judges.names import COUNT_FOUND
from attnguide.run_folder.records import JUDGED_FILE, read_records
from attnguide.run_folder.tables import read_table
from attnguide.types import PLAIN, Sample, verdict

CATEGORY = "category"


@dataclass(frozen=True)
class Entry:
    """Outcome of one row of a comparison: its status, scores and cost.

    Attributes:
        id: Id of the row, which names its picture's file.
        arm: Name of the arm.
        subject: Id of the benchmark's row.
        seed: Seed of the pair that is compared; tries of best of k share it.
        prompt: The row's prompt; pictures of one prompt are one cluster of the bootstrap.
        category: Category of the benchmark's row; empty if it has none.
        attempt: Index of the try for best of k, from 0.
        status: Status in ``records.csv``; empty if the row was not made yet.
        numbers: Scores of the judges, by name.
        passes: Forward and backward passes.
        seconds: Time of the row.
    """

    id: str
    arm: str
    subject: str
    seed: int
    prompt: str = ""
    category: str = ""
    attempt: int = 0
    status: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    passes: tuple[int, int] = (0, 0)
    seconds: float = 0.0

    @cached_property
    def key(self) -> tuple[str, int]:
        """Benchmark row and seed, by which pictures of different arms are paired."""
        return self.subject, self.seed

    @cached_property
    def ended(self) -> str:
        """Outcome: ``ok``, ``refused``, ``failed`` or ``missing``."""
        return verdict(self.status) if self.status else "missing"

    def value(self, metric: str) -> float | None:
        """Value of a metric; 0 for a failed row, ``None`` if the metric does not apply or the row was refused or is missing."""
        return 0.0 if self.ended == "failed" else self.numbers.get(metric)


def entries_of(folder: str | Path, samples: Sequence[Sample]) -> list[Entry]:
    """Entries of a comparison's rows, in their order.

    Args:
        folder: The run folder, with ``records.csv`` and ``judged.csv``.
        samples: Its rows, as :func:`~attnguide.evaluation.arms.arm_rows` made them.
    """
    records = {record["id"]: record for record in read_records(folder)}
    numbers: dict[str, dict[str, float]] = {}
    for line in judged_lines(folder):
        numbers.setdefault(line["id"], {}).update(json.loads(line["numbers"] or "{}"))
    return [_entry(sample, records.get(sample.id), numbers.get(sample.id, {})) for sample in samples]


def judged_lines(folder: str | Path) -> list[dict[str, str]]:
    """Lines of ``judged.csv``, only the last one of each row and judge."""
    lines = read_table(Path(folder) / JUDGED_FILE)
    return list({(line["id"], line["judge"]): line for line in lines}.values())


def _entry(sample: Sample, record: Mapping[str, str] | None, numbers: Mapping[str, float]) -> Entry:
    tags = sample.tags
    attempt = int(tags.get(ATTEMPT, 0))
    # Tries have seeds of their own; the subject's stands in their id before "-try".
    seed = int(sample.id.rsplit("-try", 1)[0].rsplit("-", 1)[1]) if attempt else sample.seed
    made = Entry(sample.id, str(tags[ARM]), str(tags[SUBJECT]), seed, sample.prompt, str(tags.get(CATEGORY, "")), attempt)
    if record is None:
        return made
    passes = (int(record["unet_forwards"] or 0), int(record["unet_backwards"] or 0))
    return replace(made, status=record["status"], numbers=numbers, passes=passes, seconds=float(record["seconds"] or 0))


def with_best(entries: Sequence[Entry], k: int) -> list[Entry]:
    """Entries of the arm ``best_of_k``, which keeps the plain picture with the highest mean score of ``k``; costs are summed.

    The judges that choose also score it: an oracle, and so an upper bound of choosing among ``k`` pictures.

    Args:
        entries: Entries of all arms.
        k: Number of plain pictures to choose from, at least 1.
    """
    tries: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        if entry.arm == PLAIN and entry.attempt < k:
            tries.setdefault(entry.key, []).append(entry)
    return [_best(own, k) for own in tries.values()]


def _best(tries: Sequence[Entry], k: int) -> Entry:
    kept = max(tries, key=_worth)  # the first of equals
    passes = (sum(one.passes[0] for one in tries), sum(one.passes[1] for one in tries))
    return replace(kept, arm=f"{BEST}{k}", attempt=0, passes=passes, seconds=sum(one.seconds for one in tries))


def _worth(entry: Entry) -> tuple[bool, float]:
    values = [value for name, value in entry.numbers.items() if not name.endswith(COUNT_FOUND)]
    return entry.ended == "ok", fmean(values) if values else 0.0


def seen_by(folder: str | Path, samples: Iterable[Sample]) -> dict[str, list[tuple[str, Seen, Asked]]]:
    """Judge that finds objects -> ``(row id, detections, what the row asks for)`` of each row that it looked at."""
    from attnguide.metrics.asked import asked_of  # metrics import torch, which the planning of a comparison avoids

    rows = {sample.id: sample for sample in samples}
    found: dict[str, list[tuple[str, Seen, Asked]]] = {}
    asked: dict[str, Asked] = {}
    for line in judged_lines(folder):
        sample = rows.get(line["id"])
        if sample is None or not line["detections"]:
            continue
        subject = str(sample.tags.get(SUBJECT, sample.id))
        if subject not in asked:
            asked[subject] = asked_of(sample)
        seen = Seen(tuple(_detection(one) for one in json.loads(line["detections"])))
        found.setdefault(line["judge"], []).append((line["id"], seen, asked[subject]))
    return found


def _detection(told: Sequence[Any]) -> Detection:
    label, (x0, y0, x1, y1), score = told
    return Detection(str(label), (x0, y0, x1, y1), float(score))
