"""Chooses a tuned setting by its scores on the development rows: the most control at bounded quality loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnguide.evaluation.arms import Arm
from attnguide.evaluation.compare import Comparison
from attnguide.methods import method_info
from attnguide.types import MethodConfig

ALLOWANCE = 0.02
"""Largest mean loss of quality against plain sampling that a setting may have."""

PLACES = ("region_hit", "clip_region", "vqa_region", "presence", "vqa", "clip")
"""Control metrics of methods that need placed regions; the first that a judge gives is used."""

WORDS = ("presence", "vqa", "clip")
"""Control metrics of all other methods."""

QUALITY = ("explained", "clip_iqa", "clip", "vqa", "presence")
"""Quality metrics that bound the choice; the first that a judge gives and that is not the control metric is used."""

RULE = (
    f"the most control among settings that lose at most {100 * ALLOWANCE:g} points of quality to plain pictures of the same "
    "rows and seed, the first of equals, what was given before others; where all lose more, what was given stays"
)


@dataclass(frozen=True)
class Score:
    """Scores of a setting, as paired differences to plain sampling of the same rows and seed.

    Attributes:
        control: Mean difference of the control metric.
        quality: Mean difference of the quality metric; ``None`` if no judge gives one.
    """

    control: float
    quality: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the quality loss is at most :data:`ALLOWANCE`."""
        return self.quality is None or self.quality >= -ALLOWANCE - 1e-9


@dataclass(frozen=True)
class Tuned:
    """Outcome of tuning an arm.

    Attributes:
        arm: The arm with the chosen options, under its own name.
        changes: Options that tuning changed, as text; empty if none.
        tried: Number of settings tried.
        metrics: Names of the control and the quality metric; empty if there is none.
        before: Score of the user's setting; ``None`` if the arm had nothing to tune.
        after: Score of the chosen setting.
    """

    arm: Arm
    changes: str = ""
    tried: int = 0
    metrics: tuple[str, str] = ("", "")
    before: Score | None = None
    after: Score | None = None


def metrics_for(methods: Sequence[MethodConfig], found: Comparison) -> tuple[str, str]:
    """Names of the control and the quality metric for methods, among the comparison's; empty if there is none."""
    placed = any(method_info(config.name).needs_regions == "place" for config in methods)
    control = _first(PLACES if placed else WORDS, found.metrics)
    return control, _first([name for name in QUALITY if name != control.rpartition(".")[2]], found.metrics)


def _first(wanted: Sequence[str], metrics: Sequence[str]) -> str:
    return next((metric for name in wanted for metric in metrics if metric.rpartition(".")[2] == name), "")


def score_of(setting: Arm, metrics: tuple[str, str], found: Comparison) -> Score | None:
    """Score of a setting; ``None`` if none of its pictures has the control metric."""
    control, quality = (found.line(setting.name, metric) for metric in metrics)
    if control is None or control.to_plain is None:
        return None
    bound = None if quality is None or quality.to_plain is None else quality.to_plain.mean
    return Score(control.to_plain.mean, bound)


def choose(settings: Sequence[Arm], metrics: tuple[str, str], found: Comparison) -> Arm:
    """The setting that :data:`RULE` chooses; the first in ``settings`` must be the user's."""
    best, most = settings[0], float("-inf")
    for setting in settings:
        score = score_of(setting, metrics, found)
        if score is not None and score.holds and score.control > most + 1e-9:
            best, most = setting, score.control
    return best
