"""``attnguide eval --tune``: chooses the arms' settings on development rows, which the comparison leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from attnguide.cli.errors import RunError, UsageError
from attnguide.cli.execute import INTERRUPTED, NOT_JUDGED, execute
from attnguide.cli.going_on import check_settings
from attnguide.cli.opening import Opened, is_first_process
from attnguide.cli.plan import Plan
from attnguide.evaluation.arms import Arm, arm_rows
from attnguide.evaluation.benchmark import with_settings
from attnguide.evaluation.choosing import RULE, Tuned, choose, metrics_for, score_of
from attnguide.evaluation.development import TUNE_FOLDER, Parts
from attnguide.evaluation.grids import candidates, changes, knobs_of
from attnguide.methods import Knob
from attnguide.run_folder.files import replacing
from attnguide.run_folder.tables import append_table
from attnguide.shapes.expectation import expectation_from_prompt
from attnguide.types import PLAIN

if TYPE_CHECKING:
    from attnguide.evaluation.compare import Comparison

SPLIT_FILE = "split.csv"


@dataclass(frozen=True)
class TunePlan(Plan):
    """Plan of the tuning run: pictures of the development rows under every setting tried so far.

    Attributes:
        kept: Settings of the whole evaluation, which ``tune/config.yaml`` keeps so that ``--resume`` finds them.
    """

    kept: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kept_config(self) -> dict[str, Any]:
        """Settings of the whole evaluation."""
        return dict(self.kept)


@dataclass
class _Turning:
    """State of an arm during tuning.

    Attributes:
        arm: The arm as the user gave it.
        knobs: Options to tune, each with the index of its method in the arm.
        best: The best setting so far.
        tried: Every setting that pictures were made with, the user's first.
    """

    arm: Arm
    knobs: Sequence[tuple[int, Knob]]
    best: Arm
    tried: list[Arm]

    def turn(self, number: int) -> list[Arm]:
        """Candidates for knob ``number``, the other options as in the best setting so far; empty if there is no such knob."""
        if number >= len(self.knobs):
            return []
        settings = candidates(self.arm, self.best.methods, *self.knobs[number])
        names = {one.name for one in self.tried}
        self.tried += [one for one in settings if one.name not in names]
        return settings


def tuned_arms(plan: Plan, parts: Parts, arms: Sequence[Arm], opened: Opened) -> list[Tuned] | None:
    """Tune every arm with methods on the development rows, by coordinate search.

    One knob after the other, all arms at once: pictures of the development rows are made plain and under each value, judged,
    and the best value stays. They lie in ``tune/`` of the run folder, a run of its own that gains rows with every knob and is
    resumed row by row.

    Args:
        plan: Plan of the comparison without tuning.
        parts: Test and development rows of the benchmark.
        arms: Arms of the comparison, as the user gave them.
        opened: Model and judges.

    Returns:
        The outcome for each arm with methods, or ``None`` after Ctrl-C.

    Raises:
        UsageError: If no arm has a knob, no judge can score the rows, or the run folder holds another run; nothing is written
            then.
        RunError: If the judges gave no metric that an arm can be chosen by.
    """
    turning = [_Turning(arm, knobs_of(arm), arm, [arm]) for arm in arms if arm.methods]
    rounds = max((len(one.knobs) for one in turning), default=0)
    _check(plan, parts, rounds)
    if is_first_process():
        check_settings(plan, plan.kept_config, "dtype")
    found: Comparison | None = None
    for number in range(rounds):
        settings = [(one, one.turn(number)) for one in turning]
        if is_first_process():
            print(f"tuning   knob {number + 1} of {rounds}: {_told(turning, number)}", flush=True)
        found = _made(plan, parts, turning, number, opened)
        if found is None:
            if is_first_process():
                print(f"stopped while settings were chosen; go on with: attnguide eval --resume --out {plan.folder}")
            return None
        for one, own in settings:
            if own:
                one.best = choose(own, _metrics(one, found), found)
    assert found is not None  # there is a round
    tuned = [_outcome(one, found) for one in turning]
    if is_first_process():
        print("\n".join(["", *_lines(tuned), ""]), flush=True)
    return tuned


def _check(plan: Plan, parts: Parts, rounds: int) -> None:
    judges = plan.config["judge"]
    if not rounds:
        raise UsageError("tune: expected --method with an option that can be tuned; got none")
    if judges == []:
        raise UsageError("tune: expected a judge, by whose numbers settings are chosen; got none")
    if judges in (None, [{"name": "shapes"}]) and not any(expectation_from_prompt(row.prompt) for row in parts.development):
        raise UsageError(f"tune: {NOT_JUDGED}")


def _made(plan: Plan, parts: Parts, turning: Sequence[_Turning], number: int, opened: Opened) -> Comparison | None:
    """Make the pictures of every setting so far and compare them; ``None`` after Ctrl-C."""
    from attnguide.evaluation.callback import EvalLog
    from attnguide.evaluation.compare import compare_folder
    from attnguide.rows.samples import checked_samples

    settings = [Arm(PLAIN), *(setting for one in turning for setting in one.tried)]
    rows = with_settings(parts.development, plan.config)
    samples = checked_samples(arm_rows(rows, settings, plan.config["seed"][:1], 1), strict=plan.config["strict"])
    folder = plan.folder / TUNE_FOLDER
    config = {**plan.config, "resume": plan.resume or number > 0, "logger": []}
    trial = TunePlan(config, tuple(samples), folder, command="eval", sheet=False, kept=plan.kept_config)
    log = EvalLog(samples, {}, "Settings that were tried", {"rows": parts.told, "chosen": RULE})
    if execute(trial, [log], lambda plan, notes: 0, opened) == INTERRUPTED:
        return None
    if parts.split and is_first_process():
        with replacing(folder / SPLIT_FILE) as temporary:
            append_table(temporary, tuple(parts.split[0]), parts.split)
    return log.found or compare_folder(folder, samples, {})


def _metrics(one: _Turning, found: Comparison) -> tuple[str, str]:
    metrics = metrics_for(one.arm.methods, found)
    if not metrics[0]:
        raise RunError(f"tune: the judges said nothing of {one.arm.name}'s pictures that a setting can be chosen by")
    return metrics


def _outcome(one: _Turning, found: Comparison) -> Tuned:
    if not one.knobs:
        return Tuned(one.arm)
    metrics = _metrics(one, found)
    return Tuned(
        replace(one.arm, methods=one.best.methods),
        changes(one.arm, one.best.methods),
        len(one.tried),
        metrics,
        score_of(one.arm, metrics, found),
        score_of(one.best, metrics, found),
    )


def _told(turning: Sequence[_Turning], number: int) -> str:
    return ", ".join(f"{one.arm.name} {one.knobs[number][1].option}" for one in turning if number < len(one.knobs))


def _lines(tuned: Sequence[Tuned]) -> Iterator[str]:
    for one in tuned:
        gain = f", {one.metrics[0]} {100 * one.after.control:+.1f} points against plain" if one.after else ""
        yield f"tuned    {one.arm.name}: {one.changes or 'as given'} ({one.tried} settings tried{gain})"
