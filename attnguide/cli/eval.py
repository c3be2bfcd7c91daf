"""``attnguide eval``: compares methods on a layout benchmark by judges' scores, and writes tables for a paper."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnguide.cli import sample, values
from attnguide.cli.arguments import parse
from attnguide.cli.errors import UsageError
from attnguide.cli.eval_outcome import about, tell, title_of
from attnguide.cli.folders import existing_folder, timed
from attnguide.cli.plan import Plan
from attnguide.cli.settings import run_settings
from attnguide.cli.values import Setting, under
from attnguide.evaluation.arms import Arm, arm_rows, make_arms, slug, tries_for
from attnguide.evaluation.benchmark import FILES, benchmark_parts, with_settings
from attnguide.evaluation.development import TUNE_FOLDER, Parts
from attnguide.text.parsing import shown
from attnguide.text.yaml12 import read_yaml
from attnguide.types import Sample

if TYPE_CHECKING:
    from attnguide.evaluation.choosing import Tuned

DESCRIPTION = """\
Compare methods on a layout benchmark: every row plain and under each --method, with the same seeds, and the best of as many
plain pictures as cost what a method costs. Judges look at all pictures. Everything goes to one folder: table.md, table.csv,
table.tex, report.html, sheets of examples, records.csv, judged.csv; means with intervals over prompts, differences pair by
pair, by category."""

EXAMPLES = """\
examples:
  attnguide eval benchmark --method mask_guidance --method stable --limit 4
  attnguide eval 7bench.csv --box-size 512 --model ./sd15 --judge detector=google/owlv2-base-patch16-ensemble \\
      --method layout_guidance --method box_diff --method.step_size 40 --seed 0..3 --out runs/7bench
  attnguide eval --resume --out runs/7bench
  attnguide eval benchmark --method box_diff --tune --out runs/tuned
  attnguide eval geneval.jsonl --model ./sd15 --judge detector=./owlv2 --judge clip=./clip
  attnguide eval 7bench.csv --box-size 512 --pictures other_tool/ --judge detector=./owlv2"""

_LEFT_OUT = ("prompt", "regions", "groups", "methods", "compare", "plain", "seed", "rows", "maps", "norms")
"""Settings of ``attnguide sample`` that ``attnguide eval`` lacks or defines anew."""

TUNE_LIMIT = 8
"""Default number of rows per category that settings are tuned on."""

_QUIET = {"maps": False, "norms": False}
"""Measurements that an evaluation switches off."""


def _more_categories(word: str) -> bool:
    return re.fullmatch(r"[A-Za-z_]\w*", word) is not None


def arms(value: Any) -> list[list[dict[str, Any]]]:
    """Sets of methods, one for each arm, from names, ``a+b``, mappings with options, lists of these, or files of methods."""
    items = value if isinstance(value, list | tuple) else [value]
    sets = [_arm(item) for item in items]
    return [methods for methods in sets if methods]


def _arm(item: Any) -> list[dict[str, Any]]:
    given = item if isinstance(item, list | tuple) else [item]
    if len(given) == 1 and isinstance(name := given[0].get("name") if isinstance(given[0], Mapping) else given[0], str):
        if name.lower().endswith((".yaml", ".yml")):
            return _methods_of(name)
        if "+" in name and (isinstance(given[0], str) or set(given[0]) == {"name"}):
            given = [part.strip() for part in name.split("+")]
    return values.methods(list(given))


def _methods_of(path: str) -> list[dict[str, Any]]:
    """The methods in a configuration file of ``attnguide sample``."""
    _, content = read_yaml(Path(path))
    if not isinstance(content, dict) or not content.get("methods"):
        raise ValueError(f"expected a file with methods, as configs/methods/ has; {shown(path)} has none")
    return values.methods(content["methods"])


def _tries(value: Any) -> int:
    return int(values.whole(0)(value))


def settings() -> list[Setting]:
    """Settings of ``attnguide eval``."""
    return [
        *under("the comparison", _compared()),
        *(setting for setting in run_settings() if setting.name not in _LEFT_OUT),
    ]


def _compared() -> list[Setting]:
    return [
        Setting(
            "rows",
            values.words,
            None,
            f"the benchmark: {', '.join(FILES)} (embedded), or a file: 7Bench's columns (.csv), GenEval, GLIGEN, LLM-grounded, "
            "LayoutSAM (.json, .jsonl), COCO's instances (.json), prompts (.txt), or rows of your own; see docs/tables.md",
            metavar="FILE",
        ),
        Setting(
            "methods",
            arms,
            None,
            "an arm each: a name, a+b for two together, a file of methods such as configs/methods/shapes/box_diff.yaml; "
            "repeatable; --method.OPTION VALUE sets an option of the method before it",
            option="--method",
            metavar="NAME",
            follows=values.alone,
        ),
        Setting(
            "seed",
            values.seeds,
            [0],
            "pictures of each row and arm: 0 1 2 or 0..7",
            metavar="N",
            follows=values.more_seeds,
        ),
        Setting(
            "categories",
            values.names,
            None,
            "categories of rows; all by default",
            metavar="NAME",
            follows=_more_categories,
        ),
        Setting("limit", values.whole(1), None, "rows of each category, evenly spread; all by default", metavar="N"),
        Setting(
            "best_of",
            _tries,
            None,
            "plain pictures of which the arm best_of_k keeps one; by default as many as cost what each method costs; 0: no "
            "such arm",
            metavar="K",
        ),
        Setting(
            "tune",
            values.flag,
            False,
            "first choose each method's settings on rows that are not compared: the embedded benchmark's development file, "
            "a quarter of the prompts of any other file; the most control at bounded quality, see docs/evaluation.md",
        ),
        Setting("tune_limit", values.whole(1), TUNE_LIMIT, "rows of each category that settings are chosen on", metavar="N"),
        Setting(
            "reference",
            values.words,
            None,
            "folder of real pictures; each arm's distance to them is told",
            metavar="DIR",
        ),
        Setting(
            "pictures",
            values.words,
            None,
            "judge pictures that exist: files named by rows (030.png, or 030-1.png and 030-2.png), in one folder, or in a "
            "folder for each arm; nothing is sampled",
            metavar="DIR",
        ),
    ]


def run(argv: Sequence[str]) -> int:
    """Run the command; see :func:`attnguide.cli.main` for the status."""
    words = sample.going_on(argv, TUNE_FOLDER)
    asked = parse("attnguide eval", words, settings(), description=DESCRIPTION, examples=EXAMPLES)
    if asked["rows"] is None:
        raise UsageError(f"rows: expected a benchmark first: {', '.join(FILES)}, or a file of rows; got none")
    if asked["tune_limit"] != TUNE_LIMIT and not asked["tune"]:
        raise UsageError(f"tune_limit: expected --tune beside it, which chooses settings on them; got {asked['tune_limit']}")
    if asked["pictures"] is not None:
        from attnguide.cli.eval_pictures import judge_pictures

        return judge_pictures(asked)
    parts, chosen = _asked_for(asked)
    plan, tries = make_eval_plan(asked, parts, chosen)
    reference = None if asked["reference"] is None else existing_folder("reference", asked["reference"])
    from attnguide.cli.execute import INTERRUPTED, execute
    from attnguide.cli.opening import Opened
    from attnguide.evaluation.callback import EvalLog

    opened, told = Opened(asked), about(plan.config, plan.samples)
    tuned: list[Tuned] = []
    if asked["tune"]:
        from attnguide.cli.eval_tune import tuned_arms

        found = tuned_arms(plan, parts, chosen, opened)
        if found is None:
            return INTERRUPTED
        tuned, told = found, {**told, "tuned on": parts.told}
        plan, tries = make_eval_plan(asked, parts, [chosen[0], *(one.arm for one in tuned)], plan.folder)
    common = {name: asked[name] for name in ("steps", "cfg_scale", "scheduler", "negative_prompt") if asked[name] is not None}
    common |= {"true_cfg_scale": asked["true_cfg_scale"]} if asked["true_cfg_scale"] != 1 else {}
    log = EvalLog(plan.samples, tries, title_of(asked), told, reference, tuned, common)
    return execute(plan, [log], lambda plan, notes: tell(plan, log, notes), opened)


def _asked_for(settings: Mapping[str, Any]) -> tuple[Parts, list[Arm]]:
    """The benchmark's rows, and the arms of the comparison.

    Raises:
        UsageError: If the benchmark or an arm cannot be read.
    """
    if settings["resume"] and settings["out"] is None:
        raise UsageError("resume: expected --out with the folder of the run to go on with; got none")
    try:
        return benchmark_parts(settings), make_arms(settings["methods"] or [])
    except ValueError as error:
        raise UsageError(str(error)) from error


# -------------------------------------------------------------------------------------------------------------- the plan


def make_eval_plan(
    settings: Mapping[str, Any],
    parts: Parts | None = None,
    chosen: Sequence[Arm] | None = None,
    folder: Path | None = None,
) -> tuple[Plan, dict[str, int]]:
    """The plan with the rows of all arms, and for each steered arm the number of plain pictures that cost as much.

    Args:
        settings: Settings of the command.
        parts: The benchmark's rows; read from its file when ``None``.
        chosen: The arms; made from the settings when ``None``.
        folder: The run folder; from ``out``, or a new name, when ``None``.

    Raises:
        UsageError: If the benchmark cannot be read, an arm is invalid, or settings contradict each other.
    """
    from attnguide.rows.samples import checked_samples

    if parts is None or chosen is None:
        parts, chosen = _asked_for(settings)
    try:
        rows = with_settings(parts.test, settings)
        tries = _tries_of(chosen, rows, settings)
        most = max(tries.values(), default=1)
        samples = checked_samples(arm_rows(rows, chosen, settings["seed"], most), strict=settings["strict"])
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
    config = {**settings, **_QUIET, "rows": _kept(settings["rows"])}
    folder = folder or Path(settings["out"] or Path("runs") / _new_name(str(settings["rows"])))
    return EvalPlan(config, tuple(samples), folder, command="eval", sheet=False), tries


class EvalPlan(Plan):
    """A plan whose ``config.yaml`` names the benchmark's file instead of listing its rows."""

    @property
    def kept_config(self) -> dict[str, Any]:
        """Settings that ``config.yaml`` keeps: those of ``attnguide eval``."""
        left_out = (*_QUIET, *(() if self.config["tune"] else ("tune", "tune_limit")))
        return {name: value for name, value in super().kept_config.items() if name not in left_out}


def _kept(source: str) -> str:
    return source if source in FILES else str(Path(source).resolve())


def _new_name(source: str) -> str:
    return timed("eval", slug(Path(source).stem))


def _tries_of(chosen: Sequence[Arm], rows: Sequence[Sample], settings: Mapping[str, Any]) -> dict[str, int]:
    """For each steered arm the number of plain pictures that cost as much; empty if ``best_of`` is 0."""
    steered = [arm for arm in chosen if arm.methods]
    if settings["best_of"] is not None:
        return {arm.name: settings["best_of"] for arm in steered} if settings["best_of"] else {}
    from attnguide.ablation.cost import expected_costs
    from attnguide.models.folder import is_distilled

    sound = next((row for row in rows if row.problem is None), None)
    if sound is None or not steered:
        return {}
    made = arm_rows([sound], chosen, [0], 1)
    plain, *costs = expected_costs(made, distilled=is_distilled(settings["model"]))
    return {arm.name: tries_for(cost, plain) for arm, cost in zip(steered, costs, strict=True)}
