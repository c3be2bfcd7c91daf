"""``attnguide ablate``: a grid, a list or pairs of settings as one run, with sheets, curves and a summary."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnguide.ablation.axes import Ablation, Axis, Point, narrowed
from attnguide.ablation.cells import Row, expand
from attnguide.ablation.file import read_ablation
from attnguide.cli import values
from attnguide.cli.arguments import parse
from attnguide.cli.costs import cost_table, costs_of, headline
from attnguide.cli.errors import UsageError
from attnguide.cli.folders import timed
from attnguide.cli.plan import Plan, is_strict, make_plan
from attnguide.cli.settings import run_settings
from attnguide.cli.values import Setting, under
from attnguide.methods import check_options
from attnguide.models.names import EMBEDDED
from attnguide.rows.samples import MOST_ROWS, sample_to_dict
from attnguide.sampling.problems import require_rows
from attnguide.types import MethodConfig, Sample

if TYPE_CHECKING:
    from attnguide.ablation.callback import AblationLog

DESCRIPTION = """\
Run an ablation: a base and axes in a YAML file of W&B's sweep schema span cells, each made for every prompt and seed, as the
rows of one run. Everything goes to one folder: pictures, records.csv with cell and axes, a sheet for each prompt and seed,
summary.csv, curves and heat maps; where the file says what strength is, also control against quality and stability.csv.
--AXIS VALUE picks values of an axis; any other option replaces one of the base."""

EXAMPLES = """\
examples:
  attnguide ablate configs/ablations/function_scale.yaml --dry-run
  attnguide ablate configs/ablations/function_scale.yaml --out runs/function_scale
  attnguide ablate configs/ablations/function_scale.yaml --out runs/function_scale --resume
  attnguide ablate configs/ablations/function_scale.yaml --method inject3 inject7 --method.scale 2
  attnguide ablate configs/ablations/strength.yaml --way stable --layouts benchmark --categories boxes
  attnguide ablate configs/ablations/function_scale.yaml --layouts development --prompts 2
  wandb sweep configs/ablations/function_scale.yaml"""

_LEFT_OUT = ("compare",)
_OWN = ("file", "dry_run", "cell_runs")
_SWITCHES = ("--dry-run", "--cell-runs", "--resume", "--values")
"""Options that take no value."""

_LAYOUTS = ("layouts", "categories", "prompts")
_MANY = 10_000
"""Number of rows above which a line is printed before planning."""

_SUBJECTS = {"layouts": _LAYOUTS, "rows": ("rows",), "prompt": ("prompt", "regions", "groups")}
"""Sources of an ablation's prompts, each with its settings; a typed one replaces the base's."""


def _more_categories(word: str) -> bool:
    return re.fullmatch(r"[A-Za-z_]\w*", word) is not None


def settings() -> list[Setting]:
    """Settings of ``attnguide ablate``, without the axes of its file."""
    return [
        Setting("file", values.words, None, "YAML file with the base and the axes", metavar="FILE"),
        *(_resuming(setting) for setting in run_settings() if setting.name not in _LEFT_OUT),
        *under("the ablation", _varied()),
    ]


def _varied() -> list[Setting]:
    return [
        Setting(
            "layouts",
            values.words,
            None,
            "prompts with boxes instead of a prompt: benchmark, development, or a file of layouts (see docs/tables.md)",
            metavar="NAME",
        ),
        Setting(
            "categories",
            values.names,
            None,
            "categories of layouts; all by default",
            metavar="NAME",
            follows=_more_categories,
        ),
        Setting(
            "prompts",
            values.whole(1),
            None,
            "prompts of each category of layouts, evenly spread; all by default",
            metavar="N",
        ),
        Setting(
            "cell_runs",
            values.flag,
            False,
            "log each cell as a W&B run of its own, too, in the ablation's group: W&B then compares cells as it compares runs",
        ),
        Setting("dry_run", values.flag, False, "print the cells and what they cost, and do nothing"),
    ]


def _resuming(setting: Setting) -> Setting:
    """``--resume`` with the help for ablations, whose cells are made anew from the file and so need the same options."""
    if setting.name != "resume":
        return setting
    told = "go on with the run in --out, given the same options; rows that are complete are kept"
    (resume,) = under(setting.section, [Setting(setting.name, setting.read, setting.default, told)])
    return resume


def run(argv: Sequence[str]) -> int:
    """Run the command; see :func:`attnguide.cli.main` for the status."""
    words, known = list(argv), settings()
    path = _file_of(words)
    if path is None:
        parse("attnguide ablate", words, known, description=DESCRIPTION, examples=EXAMPLES)  # --help ends here
        raise UsageError("file: expected an ablation's YAML file first, like configs/ablations/function_scale.yaml; got none")
    try:
        readers = {setting.name: setting.read for setting in known if setting.name not in _OWN}
        ablation, words = _picked(read_ablation(path, readers), words, known)
        ablation = _with_other_subjects(ablation, words)
        asked = parse("attnguide ablate", words, _with_base(known, ablation.base), description=DESCRIPTION, examples=EXAMPLES)
        plan, rows = _plan(ablation, _merged(asked, known, ablation.base))
        costs = costs_of(rows, plan.config["model"])
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
    from attnguide.cli.execute import execute
    from attnguide.cli.opening import is_first_process

    if is_first_process():
        print(headline(ablation, rows), flush=True)
    if asked["dry_run"]:
        print(cost_table(rows, costs))
        if plan.config["scheduler"] is None and plan.config["model"] not in EMBEDDED:
            print("for schedulers with one evaluation a step; name the model's --scheduler to count what it makes")
        return 0
    from attnguide.ablation.callback import AblationLog

    log = AblationLog(ablation.axes, rows, ablation.tradeoff, cell_runs=asked["cell_runs"])
    return execute(plan, [log], lambda plan, notes: _tell(plan, log, notes))


# ------------------------------------------------------------------------------------------------------------- the words


def _file_of(words: Sequence[str]) -> str | None:
    """The first word that is neither an option nor the value of one: the ablation's file."""
    for before, word in zip(["--dry-run", *words], words, strict=False):
        takes_none = (
            before in ("--dry-run", "--cell-runs", "--resume", "--values") or before.startswith("--no-") or "=" in before
        )
        if not word.startswith("-") and (takes_none or not before.startswith("--")):
            return word
    return None


def _picked(ablation: Ablation, words: Sequence[str], known: Sequence[Setting]) -> tuple[Ablation, list[str]]:
    """The ablation with its axes narrowed to the typed values, and the words left for the settings.

    A W&B agent types every parameter of the file, constants too.
    """
    options = {setting.name: setting.option for setting in known}
    axes = {axis.name: axis for axis in (*ablation.axes, *_subject_axes(ablation))}
    axes |= {key: Axis(key, (point,)) for point in ablation.fixed for key in point.changes}
    picked: dict[str, list[str]] = {}
    left: list[str] = []
    waiting = list(words)
    while waiting:
        option, divider, value = waiting.pop(0).partition("=")
        name = option.removeprefix("--")
        if not option.startswith("--") or (name not in axes and name not in options):
            left.append(option + divider + value)
        elif name not in axes:
            if not (divider and value == str(ablation.base.get(name))):
                left.append(options[name] + divider + value)
        else:
            given = [value] if divider else []
            while not divider and waiting and not waiting[0].startswith("--"):
                given.append(waiting.pop(0))
            if not given:
                raise UsageError(f"{name}: expected a value of the axis; got nothing")
            picked.setdefault(name, []).extend(given)
    chosen = {name: narrowed(axes[name], given) for name, given in picked.items()}
    return _narrowed(ablation, chosen), left


def _subject_axes(ablation: Ablation) -> list[Axis]:
    varied = [("prompt", ablation.prompts), ("seed", ablation.seeds)]
    return [Axis(name, tuple(Point(value, {name: value}, 1) for value in found)) for name, found in varied if found]


def _narrowed(ablation: Ablation, chosen: Mapping[str, Axis]) -> Ablation:
    subjects = {name: tuple(point.value for point in chosen[name].points) for name in ("prompt", "seed") if name in chosen}
    found = replace(
        ablation,
        axes=tuple(chosen.get(axis.name, axis) for axis in ablation.axes),
        prompts=subjects.get("prompt", ablation.prompts),
        seeds=subjects.get("seed", ablation.seeds),
    )
    if (count := math.prod(len(axis.points) for axis in found.axes)) > MOST_ROWS:
        raise UsageError(f"{ablation.path}: expected axes that span at most {MOST_ROWS:,} cells; got {count:,}")
    if not found.cells:
        told = ", ".join(f"{name} {' '.join(point.label for point in axis.points)}" for name, axis in chosen.items())
        raise UsageError(f"{ablation.path}: expected values of axes that go together; no cell has {told}")
    return found.pruned()


def _with_other_subjects(ablation: Ablation, words: Sequence[str]) -> Ablation:
    """The ablation without the base's layouts, rows or prompt, if another source of prompts was typed."""
    typed = {kind for kind in _SUBJECTS if any(word.partition("=")[0] == f"--{kind}" for word in words)}
    if not typed:
        return ablation
    others = {name for kind, names in _SUBJECTS.items() if kind not in typed for name in names}
    return replace(ablation, base={name: value for name, value in ablation.base.items() if name not in others})


def _with_base(known: Sequence[Setting], base: Mapping[str, Any]) -> list[Setting]:
    """Settings with the base's values as defaults; switches (options without a value) keep theirs, see :func:`_merged`."""
    return [
        Setting(s.name, s.read, base[s.name], s.help, metavar=s.metavar, option=s.option, follows=s.follows)
        if s.name in base and not isinstance(s.default, bool)
        else s
        for s in known
    ]


def _merged(asked: Mapping[str, Any], known: Sequence[Setting], base: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the run under the names of ``attnguide sample``, switches taken from the base unless typed."""
    defaults = {setting.name: setting.default for setting in known}
    switches = {name for name, default in defaults.items() if isinstance(default, bool) and name in base}
    found = {name: base[name] if name in switches and asked[name] == defaults[name] else asked[name] for name in asked}
    return {**{name: value for name, value in found.items() if name not in _OWN}, "compare": False}


# -------------------------------------------------------------------------------------------------------------- the plan


def _plan(ablation: Ablation, config: Mapping[str, Any]) -> tuple[Plan, list[Row]]:
    """The plan of the run, and its rows with their cells.

    Raises:
        ValueError: If settings of a cell or of the base are invalid.
    """
    config = _with_layouts(ablation, config)
    plan, subjects = _subjects(ablation, config)
    _check_base_methods(ablation, config)
    strict = is_strict(config)
    if (count := len(ablation.cells) * len(subjects)) > _MANY:
        print(f"planning {count:,} rows ...", flush=True)
    rows = expand(ablation, subjects, config["methods"] or (), _read_methods, plain=config["plain"], strict=strict)
    require_rows([row.sample for row in rows], strict=strict)
    folder = Path(config["out"]) if config["out"] else _new_folder(ablation.name)
    own: dict[str, Any] = {
        "prompt": None,
        "regions": None,
        "groups": None,
        "seed": None,
        "box_size": None,
        "box_format": None,
        "methods": [],
        "plain": False,
    }
    named = {key: value for key, value in (("project", ablation.project), ("group", ablation.name)) if value}
    kept = {
        **plan.config,
        **own,
        "rows": [sample_to_dict(row.sample) for row in rows],
        "strict": strict,
        "wandb": {**named, **config["wandb"]},
    }
    facts = {"ablation": {"file": ablation.path, "name": ablation.name, "cells": len(ablation.cells)}, "base": ablation.base}
    return Plan(kept, tuple(row.sample for row in rows), folder, command="ablate", facts=facts), rows


def _with_layouts(ablation: Ablation, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the layouts' rows in place of the layout settings.

    Raises:
        ValueError: If the layouts or a category cannot be found or read; with file and line if the base names them.
    """
    from attnguide.ablation.layouts import LayoutsError, layout_rows

    left = {name: value for name, value in config.items() if name not in _LAYOUTS}
    source, categories, prompts = (config[name] for name in _LAYOUTS)
    try:
        if source is None:
            for name in ("categories", "prompts"):
                if config[name] is not None:
                    raise LayoutsError(name, f"expected layouts to choose from; got {config[name]}")
            return left
        if config["prompt"] is not None or config["rows"] is not None or ablation.prompts:
            raise LayoutsError("layouts", "expected either layouts, rows or a prompt; got several")
        rows = layout_rows(source, categories, prompts, config["box_size"], config["box_format"])
        return {**left, "rows": rows, "box_size": None, "box_format": None}
    except LayoutsError as error:
        own = config[error.setting] == ablation.base.get(error.setting)
        raise ValueError(f"{ablation.base_lines[error.setting]}: {error}" if own else str(error)) from error


def _check_base_methods(ablation: Ablation, config: Mapping[str, Any]) -> None:
    """Check options of the base's methods on their own, so that an error names the base and not a cell.

    Raises:
        ValueError: If an option is invalid; with file and line if the base sets it.
    """
    methods = config["methods"] or ()
    try:
        check_options(MethodConfig(method["name"], {k: v for k, v in method.items() if k != "name"}) for method in methods)
    except ValueError as error:
        own = methods == ablation.base.get("methods") and "methods" in ablation.base_lines
        raise ValueError(f"{ablation.base_lines['methods']}: {error}" if own else str(error)) from error


def _new_folder(name: str) -> Path:
    """A new folder named by ablation and time, and by W&B's run id in a sweep, so that an agent's run is found."""
    run = os.environ.get("WANDB_RUN_ID")
    return Path("runs") / "_".join([timed(name), *([run] if run else [])])


def _read_methods(value: Any) -> list[dict[str, Any]]:
    try:
        return values.methods(value)
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from error


def _subjects(ablation: Ablation, config: Mapping[str, Any]) -> tuple[Plan, list[Sample]]:
    """One row for each prompt and seed, without methods, and the plan of the last prompt, whose settings they share."""
    common = {**config, "methods": [], "plain": False, "compare": False, "seed": list(ablation.seeds) or config["seed"]}
    prompts: Sequence[str | None] = ablation.prompts or [config["prompt"] or _first_prompt(ablation, config)]
    subjects: list[Sample] = []
    for index, prompt in enumerate(prompts):
        try:
            plan = make_plan({**common, "prompt": prompt})
        except UsageError as error:
            place = f"{ablation.path}, line {ablation.prompt_line}" if ablation.prompts else _base_place(ablation, error)
            raise UsageError(f"{place}: {error}" if config["prompt"] == ablation.base.get("prompt") else str(error)) from error
        prefix = f"p{index}-" if len(prompts) > 1 else ""
        ids = [row.id if config["rows"] is not None else row.id.removesuffix("-plain") for row in plan.samples]
        subjects += [replace(row, id=prefix + id) for row, id in zip(plan.samples, ids, strict=True)]
    if any(row.methods for row in subjects):
        raise UsageError(f"{ablation.path}: rows: expected rows without methods, which the cells bring; got some with")
    return plan, subjects


def _base_place(ablation: Ablation, error: UsageError) -> str:
    """Line of the setting that an error message starts with, ``region: ...`` say; the file if that is not known."""
    name = str(error).partition(":")[0]
    return ablation.base_lines.get(name) or ablation.base_lines.get(f"{name}s") or ablation.path


def _first_prompt(ablation: Ablation, config: Mapping[str, Any]) -> str | None:
    """The first prompt that an axis sets, as a placeholder if neither base nor parameters give one; cells replace it."""
    if config["rows"] is not None:
        return None
    return next((cell.changes["prompt"] for cell in ablation.cells if "prompt" in cell.changes), None)


# --------------------------------------------------------------------------------------------------------------- the end


def _tell(plan: Plan, log: AblationLog, notes: Sequence[str]) -> int:
    """Print cells with their means, failed rows and paths of the results; 1 if a row failed or is missing, else 0."""
    from attnguide.ablation.outputs import places, records_of, write_outputs
    from attnguide.ablation.plots import can_plot
    from attnguide.ablation.stability import stability, stability_table
    from attnguide.ablation.summary import cell_table
    from attnguide.cli.outcome import endings

    if not log.written:
        list(write_outputs(plan.folder, log.axes, log.rows, log.tradeoff))
    records = list(records_of(plan.folder, log.rows).values())
    lines = ["", cell_table(records)] if records else [""]
    if log.tradeoff is not None and (found := stability(records, log.axes, log.tradeoff)):
        lines += ["", stability_table(found, log.tradeoff)]
    told, status = endings(records, plan)
    lines += [*told, "", *(f"{path}  {what}" for path, what in places(plan.folder))]
    lines += [] if can_plot() else ["curves and heat maps need matplotlib: pip install 'attnguide[plots]'"]
    print("\n".join([*lines, *notes]))
    return status
