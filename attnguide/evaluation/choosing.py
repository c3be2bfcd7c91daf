"""The choice among settings that were tried on the development part: the most control at bounded quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnguide.evaluation.arms import Arm
from attnguide.evaluation.compare import Comparison
from attnguide.methods import method_info
from attnguide.types import MethodConfig

ALLOWANCE = 0.02
"""How much of plain sampling's quality a setting may lose."""

PLACES = ("region_hit", "clip_region", "vqa_region", "presence", "vqa", "clip")
"""What methods that place words are chosen by: the first of these that a judge gives."""

WORDS = ("presence", "vqa", "clip")
"""What all other methods are chosen by."""

QUALITY = ("explained", "clip_iqa", "clip", "vqa", "presence")
"""What bounds the choice: the first of these that a judge gives and that is not what is chosen by."""

RULE = (
    f"the most control among settings that lose at most {100 * ALLOWANCE:g} points of quality to plain pictures of the same "
    "rows and seed, the first of equals, what was given before others; where all lose more, what was given stays"
)


@dataclass(frozen=True)
class Score:
    """What a setting reached, against plain sampling of the same rows and seed.

    Attributes:
        control: Mean difference of the metric that settings are chosen by.
        quality: Of the one that bounds the choice; ``None`` where no judge gives one.
    """

    control: float
    quality: float | None = None

    @property
    def holds(self) -> bool:
        """Whether quality is kept."""
        return self.quality is None or self.quality >= -ALLOWANCE - 1e-9


@dataclass(frozen=True)
class Tuned:
    """What came of tuning an arm.

    Attributes:
        arm: With what was chosen, under its own name.
        changes: What tuning changed; empty where nothing.
        tried: How many settings.
        metrics: Names of control and quality; empty where there is none.
        before: Score of what was given; ``None`` where there was nothing to tune.
        after: Of what was chosen.
    """

    arm: Arm
    changes: str = ""
    tried: int = 0
    metrics: tuple[str, str] = ("", "")
    before: Score | None = None
    after: Score | None = None


def metrics_for(methods: Sequence[MethodConfig], found: Comparison) -> tuple[str, str]:
    """Names of control and quality for methods, as the comparison has them; empty where there is none."""
    placed = any(method_info(config.name).needs_regions == "place" for config in methods)
    control = _first(PLACES if placed else WORDS, found.metrics)
    return control, _first([name for name in QUALITY if name != control.rpartition(".")[2]], found.metrics)


def _first(wanted: Sequence[str], metrics: Sequence[str]) -> str:
    return next((metric for name in wanted for metric in metrics if metric.rpartition(".")[2] == name), "")


def score_of(setting: Arm, metrics: tuple[str, str], found: Comparison) -> Score | None:
    """What a setting reached; ``None`` where it gave no picture that a judge knew what to say of."""
    control, quality = (found.line(setting.name, metric) for metric in metrics)
    if control is None or control.to_plain is None:
        return None
    bound = None if quality is None or quality.to_plain is None else quality.to_plain.mean
    return Score(control.to_plain.mean, bound)


def choose(settings: Sequence[Arm], metrics: tuple[str, str], found: Comparison) -> Arm:
    """The setting that :data:`RULE` chooses; what was given is the first."""
    best, most = settings[0], float("-inf")
    for setting in settings:
        score = score_of(setting, metrics, found)
        if score is not None and score.holds and score.control > most + 1e-9:
            best, most = setting, score.control
    return best
