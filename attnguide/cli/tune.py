"""``attnguide tune``: the strength at which a method's effect saturates on a model, found without a judge."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnguide.cli import values
from attnguide.cli.arguments import parse
from attnguide.cli.errors import RunError, UsageError, reason
from attnguide.cli.folders import filling, local_path, probe, timed
from attnguide.cli.plan import Plan, make_plan
from attnguide.cli.settings import run_settings
from attnguide.cli.values import Setting, under
from attnguide.methods import DEFAULT
from attnguide.types import MethodConfig

if TYPE_CHECKING:
    from attnguide.models.base import ModelAdapter
    from attnguide.tuning import Trial

DESCRIPTION = """\
Find how strong a method should be on a model. Pictures are made plain and with rising strength. Of each strength it is measured
how much of the words' attention lies inside their regions (inside), on the network's own maps late in the schedule, and how far
the cells of the final latents are from those of other plain pictures, in terms of plain ones (strain). Chosen is the least
strength with nine tenths of the largest gain among those with a strain of 0.9 to 1.25: above, pictures bend; below, something
is missing from them. No judge looks at the pictures; do so yourself before you rely on it."""

EXAMPLES = """\
examples:
  attnguide tune "a red circle and a blue square" --region "red circle=0.05,0.25,0.45,0.75" \\
      --region "blue square=0.55,0.25,0.95,0.75" --method mask_guidance --seed 0..7
  attnguide tune --rows rows.csv --method forward_layout --value 0.25 0.5 0.75 1 --model ./sd15 --out tuned
  attnguide sample --config tuned/tuned.yaml"""

SEEDS = list(range(8))
"""Seeds if the user names none."""

_NOT_SHARED = (
    *("plain", "compare", "strict", "out", "resume", "logger", "row_curves", "maps", "norms", "values", "wandb", "made_with"),
    "trainer",
)
"""Settings of ``attnguide sample`` that ``attnguide tune`` lacks: those of run folders, loggers and comparisons."""

_OF_THE_ROWS = ("prompt", "regions", "groups", "seed", "rows", "box_size", "box_format")


def _number_follows(word: str) -> bool:
    try:
        values.number(word)
    except ValueError:
        return False
    return True


def _strengths(value: Any) -> list[float]:
    found = [values.number(item) for item in (value if isinstance(value, list | tuple) else [value])]
    if not found or min(found) <= 0:
        raise ValueError(f"expected numbers above 0; got {value!r}")
    return found


def _shared() -> list[Setting]:
    """Settings shared with ``attnguide sample``, which decide rows, model and pictures; the prompt first."""
    return [setting for setting in run_settings() if setting.name not in _NOT_SHARED]


def settings() -> list[Setting]:
    """Settings of ``attnguide tune``."""
    return [
        *_shared(),
        *under("strengths", _strengths_tried()),
        *under("the run", [_out()]),
    ]


def _out() -> Setting:
    told = "new folder for tuned.yaml and tuning.csv; tune/<date and time> by default"
    return Setting("out", local_path, None, told, metavar="DIR")


def _strengths_tried() -> list[Setting]:
    return [
        Setting("knob", values.words, "scale", "option of the method that is its strength", metavar="OPTION"),
        Setting(
            "values",
            _strengths,
            None,
            "strengths to try; a sixteenth to sixteen times what the method has, by octaves, by default",
            option="--value",
            metavar="X",
            follows=_number_follows,
        ),
    ]


def run(argv: Sequence[str]) -> int:
    """Run the command; see :func:`attnguide.cli.main` for the status."""
    asked = parse("attnguide tune", argv, settings(), description=DESCRIPTION, examples=EXAMPLES)
    plan, method = _planned(asked)
    tried = _tried(asked, method)
    folder = Path(asked["out"] or Path("tune") / timed())
    probe(folder, "tuning.csv")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"out: expected a new or empty folder; '{folder}' is neither")
    from attnguide.cli.opening import check_on_model, loaded, quiet

    print(f"loading model {asked['model']} ...", flush=True)
    quiet()
    model = loaded(asked)
    check_on_model(model, plan.samples)
    return _found(model, plan, method, tried, asked, folder)


def _planned(asked: Mapping[str, Any]) -> tuple[Plan, MethodConfig]:
    """The plan of the rows, and the one method that they share.

    Raises:
        UsageError: If there are fewer than 3 rows, a row has no place, rows have no method or several, or are of several sizes.
    """
    plain = {setting.name: setting.default for setting in run_settings()}
    given = {setting.name: asked[setting.name] for setting in _shared()}
    demo = asked["prompt"] is None and asked["rows"] is None
    if given["methods"] is None:
        given["methods"] = [{"name": DEFAULT}]
    if given["seed"] is None and asked["rows"] is None:
        given["seed"] = SEEDS
    plan = make_plan({**plain, **given, "plain": False, "strict": True, "resume": False, "out": None})
    methods = plan.samples[0].methods
    if len(methods) != 1 or any(row.methods != methods for row in plan.samples):
        raise UsageError("method: expected one method, the same for all rows, whose strength is wanted; got none or several")
    if len(plan.samples) < 3:
        raise UsageError(f"seed: expected at least 3 rows, whose plain pictures show how latents vary; got {len(plan.samples)}")
    if unplaced := [row.id for row in plan.samples if not any(region.has_place for region in row.regions)]:
        raise UsageError(f"region: expected a place in which a word should be seen; row {unplaced[0]!r} has none")
    if len(sizes := {(row.height, row.width) for row in plan.samples}) > 1:
        raise UsageError(f"rows: expected pictures of one size, whose latents can be compared; got {len(sizes)} sizes")
    if demo:
        print(f"no prompt given: {plan.samples[0].prompt!r}, {len(plan.samples)} seeds", flush=True)
    return plan, methods[0]


def _tried(asked: Mapping[str, Any], method: MethodConfig) -> list[float]:
    """Strengths to try, in rising order.

    Raises:
        UsageError: If the method has no such option, or does not take one of the values.
    """
    from dataclasses import replace

    from attnguide.methods import check_options
    from attnguide.tuning import strengths

    try:
        if asked["values"] is None:
            return strengths(method, asked["knob"])
        check_options(replace(method, options={**method.options, asked["knob"]: value}) for value in asked["values"])
    except ValueError as error:
        raise UsageError(f"{'knob' if asked['values'] is None else 'value'}: {error}") from error
    return sorted(set(asked["values"]))


def _found(
    model: ModelAdapter, plan: Plan, method: MethodConfig, tried: Sequence[float], asked: Mapping[str, Any], folder: Path
) -> int:
    from attnguide.tuning import choose, trials

    knob = asked["knob"]
    print(f"{len(plan.samples)} rows, {method.name}, {knob} {', '.join(f'{value:g}' for value in tried)}\n", flush=True)
    print(f"{knob:>12}{'inside':>10}{'strain':>10}", flush=True)
    seen: list[Trial] = []
    try:
        for trial in trials(model, plan.samples, method, tried, option=knob, batch_size=asked["batch_size"]):
            seen.append(trial)
            label = "plain" if trial.value is None else f"{trial.value:g}"
            print(f"{label:>12}{trial.inside:>10.3f}{trial.strain:>10.2f}", flush=True)
        chosen = choose(seen[0], seen[1:])
        with filling(folder) as temporary:
            _write(temporary, plan, method, knob, seen, chosen)
    except Exception as error:
        raise RunError(f"nothing was tuned: {reason(error)}") from error
    if chosen is None:
        if seen[0].inside > 0.99:
            print("\nthe regions cover the picture: all attention lies in them already, so that there is nothing to tune by")
        else:
            print(f"\nno strength brings attention into the regions with latents like plain ones; see {folder / 'tuning.csv'}")
        return 1
    print(f"\n{knob} {chosen.value:g}: attention inside {chosen.inside:.3f}, plain {seen[0].inside:.3f}")
    print(f"attnguide sample --config {folder / 'tuned.yaml'}" + (f" --rows {asked['rows']}" if asked["rows"] else ""))
    return 0


def _write(folder: Path, plan: Plan, method: MethodConfig, knob: str, seen: Sequence[Trial], chosen: Trial | None) -> None:
    """Write ``tuning.csv`` with all trials and, if one was chosen, ``tuned.yaml`` for ``attnguide sample --config``."""
    from attnguide.text.yaml12 import dump_yaml

    with (folder / "tuning.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "option", "value", "inside", "strain", "chosen"])
        for trial in seen:
            value = "" if trial.value is None else f"{trial.value:g}"
            measured = [f"{number:.6g}" for number in (trial.inside, trial.strain)]
            writer.writerow([method.name, "" if trial.value is None else knob, value, *measured, int(trial is chosen)])
    if chosen is None:
        return
    left_out = _OF_THE_ROWS if plan.config["rows"] is not None else ()
    names = [setting.name for setting in _shared() if setting.name not in left_out]
    kept = {name: plan.config[name] for name in names if plan.config[name] is not None}
    kept["methods"] = [{"name": method.name, **method.options, knob: chosen.value}]
    (folder / "tuned.yaml").write_text(dump_yaml(kept), encoding="utf-8")
