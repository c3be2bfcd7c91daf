"""Compares arms: means, paired differences to plain sampling and to best of k at equal compute, and rows without a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image

from attnguide.evaluation.arms import BEST
from attnguide.evaluation.entries import Entry, entries_of, seen_by, with_best
from attnguide.judges.names import COUNT_FOUND
from attnguide.metrics.distance import PictureDistance
from attnguide.metrics.functional import DETAILS, QUESTIONS
from attnguide.metrics.precision import AveragePrecision
from attnguide.run_folder.records import SAMPLES_FOLDER
from attnguide.statistics import Difference, Mean, clustered_mean, holm, paired_difference
from attnguide.types import PLAIN, Sample

PRECISION, DISTANCE = "ap", "distance"
"""Metrics over all pictures of an arm together: average precision, and kernel distance to real pictures."""

_FEWEST = 8
"""Fewest pictures for a kernel distance."""

_ORDER = (*QUESTIONS, *DETAILS)

Valued = Mapping[str, Sequence[tuple[Entry, float]]]
"""Arm -> its pictures, each with its value of one metric."""


@dataclass(frozen=True)
class Line:
    """One metric of one arm.

    Attributes:
        arm: Name of the arm.
        metric: Name of the metric.
        mean: Mean over pictures, with an interval over prompts, or over pictures where all are of one prompt.
        category: Category of the benchmark; empty for all rows.
        to_plain: Paired difference to plain pictures of the same rows and seeds; its p is corrected over arms (Holm).
        to_best: Paired difference to the best of as many plain pictures as cost as much; p corrected alike.
        best: Name of that best-of-k arm; empty if there is none.
    """

    arm: str
    metric: str
    mean: Mean
    category: str = ""
    to_plain: Difference | None = None
    to_best: Difference | None = None
    best: str = ""


@dataclass(frozen=True)
class Account:
    """Outcomes and cost of an arm's rows.

    Attributes:
        arm: Name of the arm.
        ended: Number of rows by outcome: ``ok``, ``refused``, ``failed``, ``missing``.
        reasons: Benchmark row and status of each row that was refused or failed.
        passes: Mean forward and backward passes of a picture.
        seconds: Mean time of a picture.
    """

    arm: str
    ended: Mapping[str, int]
    reasons: Sequence[tuple[str, str]]
    passes: tuple[float, float]
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison, from which the tables are written.

    Attributes:
        arms: Names of the arms, plain first.
        metrics: Names of the metrics, in the order of columns.
        lines: A line for each arm and metric over all rows, then over each category if there are several.
        accounts: Outcomes and cost of each arm.
        totals: Metrics over all pictures of an arm together, ``(arm, name) -> value``: :data:`PRECISION` of each judge that
            finds objects, :data:`DISTANCE`.
        entries: Arm -> its pictures.
    """

    arms: Sequence[str]
    metrics: Sequence[str]
    lines: Sequence[Line]
    accounts: Sequence[Account]
    totals: Mapping[tuple[str, str], float]
    entries: Mapping[str, Sequence[Entry]]

    def line(self, arm: str, metric: str, category: str = "") -> Line | None:
        """The line of an arm, metric and category; ``None`` if there is none."""
        return self._by_name.get((arm, metric, category))

    @cached_property
    def _by_name(self) -> Mapping[tuple[str, str, str], Line]:
        return {(line.arm, line.metric, line.category): line for line in self.lines}

    @property
    def categories(self) -> list[str]:
        """Categories in the order of the benchmark; empty unless there are at least two."""
        found = list(dict.fromkeys(line.category for line in self.lines if line.category))
        return found if len(found) > 1 else []


def compare_folder(
    folder: str | Path, samples: Sequence[Sample], tries: Mapping[str, int], reference: Path | None = None
) -> Comparison:
    """Compare the arms of a run.

    Args:
        folder: The run folder, with ``records.csv`` and ``judged.csv``.
        samples: Its rows, as :func:`~attnguide.evaluation.arms.arm_rows` made them.
        tries: Steered arm -> number of plain pictures that cost as much; other arms are not compared at equal compute.
        reference: Folder of real pictures for the kernel distance; no distance when ``None``.
    """
    entries = entries_of(folder, samples)
    arms: dict[str, list[Entry]] = {}
    for entry in entries:
        if not entry.attempt:
            arms.setdefault(entry.arm, []).append(entry)
    for k in sorted({k for k in tries.values() if k > 1}):
        arms[f"{BEST}{k}"] = with_best(entries, k)
    rivals = {arm: f"{BEST}{k}" if k > 1 else PLAIN for arm, k in tries.items() if arm in arms}
    found = compare(arms, rivals)
    distance = {} if reference is None else _distances(Path(folder), arms, reference)
    return replace(found, totals={**_precision(folder, samples, arms), **distance})


def compare(arms: Mapping[str, Sequence[Entry]], rivals: Mapping[str, str]) -> Comparison:
    """Compare the judged pictures of arms.

    Args:
        arms: Arm -> its pictures.
        rivals: Steered arm -> the arm of equal compute that it is compared with.
    """
    metrics = ordered({name: None for own in arms.values() for entry in own for name in entry.numbers})
    valued = {metric: _valued(metric, arms) for metric in metrics}
    lines = [line for metric in metrics for line in _lines(metric, valued[metric], rivals)]
    categories = list(dict.fromkeys(entry.category for own in arms.values() for entry in own))
    if len(categories) > 1:
        inside = {metric: _by_category(own) for metric, own in valued.items()}
        for category in categories:
            lines += [replace(one, category=category) for m in metrics for one in _means(m, inside[m].get(category, {}))]
    return Comparison(list(arms), metrics, lines, [_account(arm, own) for arm, own in arms.items()], {}, arms)


def ordered(names: Iterable[str]) -> list[str]:
    """Names of metrics: the package's in its own order, then those of other judges; counts of objects are left out."""
    known = {name: place for place, name in enumerate(_ORDER)}

    def place(name: str) -> tuple[int, int]:
        own = name.rpartition(".")[2]
        return (0 if own in known else 1, known.get(own, 0))

    return sorted((name for name in names if not name.endswith(COUNT_FOUND)), key=place)


def _valued(metric: str, arms: Mapping[str, Sequence[Entry]]) -> Valued:
    """Pictures of each arm to which a metric applies, with their values.

    A failed picture counts as 0 only where another picture of its row has the metric.
    """
    subjects = {entry.subject for own in arms.values() for entry in own if metric in entry.numbers}
    return {
        arm: [(one, value) for one in own if one.subject in subjects and (value := one.value(metric)) is not None]
        for arm, own in arms.items()
    }


def _by_category(valued: Valued) -> dict[str, dict[str, list[tuple[Entry, float]]]]:
    found: dict[str, dict[str, list[tuple[Entry, float]]]] = {}
    for arm, own in valued.items():
        for pair in own:
            found.setdefault(pair[0].category, {}).setdefault(arm, []).append(pair)
    return found


def _means(metric: str, valued: Valued) -> list[Line]:
    lines, of = [], _clusters(valued)
    for arm, pairs in valued.items():
        clusters: dict[Hashable, list[float]] = {}
        for entry, value in pairs:
            clusters.setdefault(of[entry.key], []).append(value)
        mean = clustered_mean(clusters)
        if mean is not None:
            lines.append(Line(arm, metric, mean))
    return lines


def _clusters(valued: Valued) -> dict[tuple[str, int], Hashable]:
    """Cluster of each picture, by its key: its prompt, or the picture itself where all are of one prompt."""
    entries = [entry for pairs in valued.values() for entry, _ in pairs]
    alone = len({entry.prompt for entry in entries}) == 1
    return {entry.key: entry.key if alone else entry.prompt for entry in entries}


def _lines(metric: str, valued: Valued, rivals: Mapping[str, str]) -> list[Line]:
    """Lines of one metric for all arms, with p-values corrected for the number of arms."""
    clusters = _clusters(valued)
    values = {arm: {entry.key: value for entry, value in own} for arm, own in valued.items()}
    steered = [arm for arm in valued if arm != PLAIN]
    to_plain = _corrected(steered, lambda arm: paired_difference(values[arm], values.get(PLAIN, {}), clusters))
    to_best = _corrected(
        [arm for arm in steered if arm in rivals], lambda arm: paired_difference(values[arm], values[rivals[arm]], clusters)
    )
    return [
        replace(line, to_plain=to_plain.get(line.arm), to_best=to_best.get(line.arm), best=rivals.get(line.arm, ""))
        for line in _means(metric, valued)
    ]


def _corrected(arms: Sequence[str], differ: Callable[[str], Difference | None]) -> dict[str, Difference]:
    found = {arm: one for arm in arms if (one := differ(arm)) is not None}
    ps = holm([one.p for one in found.values()])
    return {arm: replace(one, p=p) for (arm, one), p in zip(found.items(), ps, strict=True)}


def _account(arm: str, entries: Sequence[Entry]) -> Account:
    made = [entry for entry in entries if entry.ended == "ok"]
    reasons = [(entry.subject, entry.status) for entry in entries if entry.ended in ("refused", "failed")]
    passes = [[entry.passes[index] for entry in made] for index in (0, 1)]
    return Account(
        arm,
        Counter(entry.ended for entry in entries),
        reasons,
        (fmean(passes[0]) if made else 0.0, fmean(passes[1]) if made else 0.0),
        fmean(entry.seconds for entry in made) if made else 0.0,
    )


def _precision(
    folder: str | Path, samples: Sequence[Sample], arms: Mapping[str, Sequence[Entry]]
) -> dict[tuple[str, str], float]:
    """Average precision of each arm by each judge that gives detections; only for arms whose rows have boxes."""
    found = {}
    judges = seen_by(folder, samples)
    for judge, said in judges.items():
        by_id = {id: (seen, asked) for id, seen, asked in said}
        for arm, entries in arms.items():
            pairs = [by_id[entry.id] for entry in entries if entry.id in by_id]
            if any(one.boxes for _, asked in pairs for one in asked.objects):
                metric = AveragePrecision(sync_on_compute=False)  # this process has the pictures of all processes
                metric.update([seen for seen, _ in pairs], [asked for _, asked in pairs])
                found[arm, f"{judge}.{PRECISION}" if len(judges) > 1 else PRECISION] = float(metric.compute())
    return found


def _distances(folder: Path, arms: Mapping[str, Sequence[Entry]], reference: Path) -> dict[tuple[str, str], float]:
    """Kernel distance of each arm's pictures to those of a folder, see :class:`~attnguide.metrics.distance.PictureDistance`."""
    real = sorted(path for path in reference.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    found = {}
    for arm, entries in arms.items():
        made = [folder / SAMPLES_FOLDER / f"{entry.id}.png" for entry in entries if entry.ended == "ok"]
        if min(len(real), len(made)) >= _FEWEST:
            metric = PictureDistance(subset_size=min(len(real), len(made), 50), sync_on_compute=False)
            for paths, is_real in ((real, True), (made, False)):
                for path in paths:
                    metric.update(_pixels(path), real=is_real)
            with torch.random.fork_rng([]):
                torch.manual_seed(0)  # for the random subsets
                found[arm, DISTANCE] = float(metric.compute()[0])
    return found


def _pixels(path: Path) -> torch.Tensor:
    """A picture as ``1 3 height width``, uint8."""
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)[None]
