"""``attnguide dashboard``: arranges logged runs as a W&B workspace and a report."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnguide.cli import values
from attnguide.cli.arguments import parse
from attnguide.cli.errors import RunError, UsageError, one_line
from attnguide.cli.folders import local_path, probe
from attnguide.cli.values import Setting

if TYPE_CHECKING:
    from attnguide.dashboard.layout import SectionPlan

DESCRIPTION = """\
Arrange what runs logged to W&B as a workspace and a report: pictures in a grid, whether guidance worked, maps, cost against
quality, an ablation's axes. With a key both are saved to the project; without one the layout is written to a file.
A run is given by its folder, a project by ENTITY/PROJECT."""

EXAMPLES = """\
examples:
  attnguide dashboard runs/first
  attnguide dashboard runs/first --entity my-team --project attnguide
  attnguide dashboard my-team/attnguide"""

LAYOUT_FILE = "dashboard.json"


def settings() -> list[Setting]:
    """Settings of ``attnguide dashboard``."""
    return [
        Setting("run", values.words, None, "folder of a run, or ENTITY/PROJECT", metavar="RUN|PROJECT"),
        Setting("entity", values.words, None, "W&B's user or team; that of the key by default", metavar="NAME"),
        Setting("project", values.words, "attnguide", "W&B's project", metavar="NAME"),
        Setting("out", local_path, None, f"file of the layout, without a key; {LAYOUT_FILE} beside the run by default"),
    ]


def run(argv: Sequence[str]) -> int:
    """Run the command; see :func:`attnguide.cli.main` for the status."""
    asked = parse("attnguide dashboard", argv, settings(), description=DESCRIPTION, examples=EXAMPLES)
    if asked["run"] is None:
        raise UsageError("run: expected the folder of a run, or ENTITY/PROJECT; got none")
    if not all(importlib.util.find_spec(name) for name in ("wandb", "wandb_workspaces")):
        raise UsageError("dashboard: needs a package that is not installed: pip install 'attnguide[wandb,dashboard]'")
    from attnguide.dashboard.layout import sections
    from attnguide.dashboard.names import names_of_folder, names_of_project
    from attnguide.loggers import wandb_offline

    folder = Path(asked["run"])
    entity, _, project = asked["run"].partition("/")
    is_project = not folder.exists() and bool(entity) and bool(project) and "/" not in project
    offline = wandb_offline()
    if is_project and offline:
        raise UsageError(f"run: a project of W&B's server needs a key; {asked['run']!r} is no folder either")
    try:
        names = names_of_project(entity, project) if is_project else names_of_folder(folder)
    except ValueError as error:
        raise UsageError(f"run: {one_line(error)}") from error
    plans = sections(names)
    if offline:
        path = Path(asked["out"]) if asked["out"] else folder / LAYOUT_FILE
        return _written(plans, path, asked["entity"] or "entity", asked["project"])
    return _saved(plans, entity if is_project else asked["entity"], project if is_project else asked["project"])


def _written(plans: Sequence[SectionPlan], path: Path, entity: str, project: str) -> int:
    from attnguide.dashboard.workspace import as_json
    from attnguide.run_folder.files import write_atomic

    probe(path.parent, path.name)
    write_atomic(path, as_json(plans, entity, project) + "\n")
    print(_told(plans))
    print(f"{path}  the layout; W&B has no key here: log in (wandb login) and say the same again to save it to the project")
    return 0


def _saved(plans: Sequence[SectionPlan], entity: str | None, project: str) -> int:
    from attnguide.dashboard.workspace import report, workspace

    try:
        if entity is None:
            import wandb

            entity = str(wandb.Api().default_entity)
        view, page = workspace(plans, entity, project), report(plans, entity, project)
        view.save()
        page.save()
    except Exception as error:  # W&B raises its own errors and those of the network library below it
        raise RunError(f"W&B did not take the dashboard: {one_line(error)}") from error
    print(_told(plans))
    print(f"workspace  {view.url}\nreport     {page.url}")
    return 0


def _told(plans: Sequence[SectionPlan]) -> str:
    """Text with a line for each section: its name and the titles of its panels."""
    return "\n".join(f"{plan.name:<18} {', '.join(panel.title for panel in plan.panels)}" for plan in plans)
