"""Scores of finished rows: judges' detections against what the rows ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnguide.judges.base import Asked, Judge, Seen
from attnguide.judges.names import COUNT_FOUND
from attnguide.judges.shapes import ShapesJudge
from attnguide.metrics.asked import asked_of as asked_of
from attnguide.metrics.functional import DETAILS, QUESTIONS, count_found, score
from attnguide.types import SampleResult


def shapes_scores(result: SampleResult) -> dict[str, float]:
    """Scores of a finished row by the judge of the shapes world, each in [0, 1], 1 is best.

    Empty if the row has no picture, its prompt is no caption of that world, or the picture is too small to be judged.
    """
    if result.image is None:
        return {}
    asked = asked_of(result.sample)
    (seen,) = ShapesJudge().look([result.image], [asked])
    return {} if seen is None else score(seen, asked)


def row_numbers(seen: Seen, asked: Asked, prefix: str = "") -> dict[str, float]:
    """Scores of one picture by one judge: those of its detections, if it gives any, and the judge's own.

    Args:
        seen: What the judge found.
        asked: What was asked for.
        prefix: Prefix of the names of scores of detections.
    """
    numbers: dict[str, float] = {}
    if seen.detections is not None and asked.objects:
        own = {**score(seen, asked, (*QUESTIONS, *DETAILS)), COUNT_FOUND: float(count_found(seen, asked))}
        numbers = {prefix + name: value for name, value in own.items()}
    return {**numbers, **{name: float(value) for name, value in seen.scores.items()}}


class JudgeScores:
    """Scores finished rows by several judges.

    Scores of detections have the judge's name as prefix (``detector.presence``) if several judges find objects.

    Args:
        judges: Judges with distinct names.

    Raises:
        ValueError: If two judges share a name.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        names = [judge.name for judge in judges]
        if len(set(names)) < len(names):
            raise ValueError(f"judges must have distinct names; got {', '.join(names)}.")
        self.judges = tuple(judges)
        self.several = len([judge for judge in judges if judge.finds_objects]) > 1

    def to(self, device: Any) -> None:
        """Move the judges' networks to a device."""
        for judge in self.judges:
            judge.to(device)

    def look(self, results: Sequence[SampleResult]) -> list[tuple[dict[str, float], dict[str, tuple[Seen, dict[str, float]]]]]:
        """For each row its scores, and judge -> what it found and its scores; both empty for a row without a picture."""
        drawn = [(index, result.image, asked_of(result.sample)) for index, result in enumerate(results) if result.image]
        said = [judge.look([picture for _, picture, _ in drawn], [one for _, _, one in drawn]) for judge in self.judges]
        found: list[tuple[dict[str, float], dict[str, tuple[Seen, dict[str, float]]]]] = [({}, {}) for _ in results]
        prefixes = [f"{judge.name}." if self.several else "" for judge in self.judges]
        for place, (index, _, asked) in enumerate(drawn):
            for judge, prefix, own in zip(self.judges, prefixes, said, strict=True):
                seen = own[place]
                if seen is not None:
                    numbers = row_numbers(seen, asked, prefix)
                    found[index][0].update(numbers)
                    found[index][1][judge.name] = (seen, numbers)
        return found

    def __call__(self, result: SampleResult) -> Mapping[str, float]:
        """Scores of one row."""
        return self.look([result])[0][0]
