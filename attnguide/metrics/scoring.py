"""Numbers about finished rows: what judges see of them against what the rows ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnguide.judges.base import Asked, Judge, Seen
from attnguide.judges.shapes import ShapesJudge
from attnguide.metrics.asked import asked_of as asked_of
from attnguide.metrics.functional import DETAILS, QUESTIONS, count_found, score
from attnguide.types import SampleResult

COUNT_FOUND = "count_found"
"""A number of objects; all other numbers lie in [0, 1]."""


def shapes_scores(result: SampleResult) -> dict[str, float]:
    """Scores of a finished row by the judge of the shapes world, each in [0, 1], 1 is best.

    None if its prompt is no caption of that world, or the picture too small to be judged.
    """
    if result.image is None:
        return {}
    asked = asked_of(result.sample)
    (seen,) = ShapesJudge().look([result.image], [asked])
    return {} if seen is None else score(seen, asked)


def row_numbers(seen: Sequence[Seen | None], asked: Asked, prefixes: Sequence[str]) -> dict[str, float]:
    """What several judges say of one picture, as numbers by name.

    Args:
        seen: What each says.
        asked: What was asked for.
        prefixes: Of the names of each one's numbers about objects.
    """
    numbers: dict[str, float] = {}
    for one, prefix in zip(seen, prefixes, strict=True):
        if one is None:
            continue
        if one.detections is not None and asked.objects:
            own = {**score(one, asked, (*QUESTIONS, *DETAILS)), COUNT_FOUND: float(count_found(one, asked))}
            numbers |= {prefix + name: value for name, value in own.items()}
        numbers |= {name: float(value) for name, value in one.scores.items()}
    return numbers


class JudgeScores:
    """Scores finished rows by several judges.

    Numbers about objects bear no prefix where one judge gives them, else that of the judge: ``detector.presence``.

    Args:
        judges: Each of another name.

    Raises:
        ValueError: If two share a name.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        names = [judge.name for judge in judges]
        if len(set(names)) < len(names):
            raise ValueError(f"judges must have distinct names; got {', '.join(names)}.")
        self.judges = tuple(judges)
        self.several = len([judge for judge in judges if judge.finds_objects]) > 1

    def to(self, device: Any) -> None:
        """Move the judges' networks."""
        for judge in self.judges:
            judge.to(device)

    def look(self, results: Sequence[SampleResult]) -> list[tuple[dict[str, float], dict[str, Seen]]]:
        """Numbers of each row, and what each judge saw by the judge's name; nothing of rows without a picture."""
        drawn = [(index, result.image, asked_of(result.sample)) for index, result in enumerate(results) if result.image]
        said = [judge.look([picture for _, picture, _ in drawn], [one for _, _, one in drawn]) for judge in self.judges]
        found: list[tuple[dict[str, float], dict[str, Seen]]] = [({}, {}) for _ in results]
        prefixes = [f"{judge.name}." if self.several else "" for judge in self.judges]
        for place, (index, _, asked) in enumerate(drawn):
            seen = [own[place] for own in said]
            kept = {judge.name: one for judge, one in zip(self.judges, seen, strict=True) if one is not None}
            found[index] = (row_numbers(seen, asked, prefixes), kept)
        return found

    def __call__(self, result: SampleResult) -> Mapping[str, float]:
        """Numbers of one row."""
        return self.look([result])[0][0]
