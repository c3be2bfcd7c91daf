"""Builds a dashboard's workspace and report with ``wandb-workspaces``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attnguide.dashboard.layout import PanelPlan, SectionPlan

TITLE = "attnguide"


def workspace(plans: Sequence[SectionPlan], entity: str, project: str) -> Any:
    """The workspace, not saved yet; ``save()`` needs an API key."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            ws.Section(
                name=plan.name,
                panels=_panels(plan.panels),
                is_open=True,
                pinned=plan.pinned,
                layout_settings=ws.SectionLayoutSettings(columns=1 if plan.pinned else 3, rows=2),
            )
            for plan in plans
        ],
        settings=ws.WorkspaceSettings(group_by_prefix="first", max_runs=20),
    )


def report(plans: Sequence[SectionPlan], entity: str, project: str) -> Any:
    """The report with a heading, a sentence and a panel grid for each section, not saved yet; ``save()`` needs an API key."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for plan in plans:
        runs = wr.Runset(entity=entity, project=project, name="Runs")
        blocks += [wr.H1(plan.name), wr.P(plan.text), wr.PanelGrid(runsets=[runs], panels=_panels(plan.panels))]
    return wr.Report(
        project=project,
        entity=entity,
        title=f"{TITLE}: {project}",
        description="Which method works",
        blocks=blocks,
        width="fluid",
    )


def as_json(plans: Sequence[SectionPlan], entity: str, project: str) -> str:
    """JSON text of the workspace, as W&B's server would get it, and of the report's sections; needs no API key."""
    view = workspace(plans, entity, project)._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    told = [
        {
            "heading": plan.name,
            "text": plan.text,
            "panels": [p._to_model().model_dump(mode="json", by_alias=True, exclude_none=True) for p in _panels(plan.panels)],
        }
        for plan in plans
    ]
    return json.dumps({"workspace": view, "report": told}, indent=1, ensure_ascii=False)


_ACROSS = 24
"""Width of a panel grid in W&B's units."""


def _panels(plans: Sequence[PanelPlan]) -> list[Any]:
    """Panels with their places in a grid, three to a line; pictures and tables take a whole line."""
    import wandb_workspaces.reports.v2 as wr

    found, left, top = [], 0, 0
    for plan in plans:
        wide = plan.kind in ("pictures", "table", "comparer", "parallel")
        width, height = (_ACROSS, 14) if wide else (_ACROSS // 3, 8)
        if left + width > _ACROSS:
            left, top = 0, top + 14
        panel = _panel(plan)
        panel.layout = wr.Layout(x=left, y=top, w=width, h=height)
        found.append(panel)
        left += width
    return found


def _panel(plan: PanelPlan) -> Any:
    import wandb_workspaces.reports.v2 as wr

    keys = list(plan.keys)
    if plan.kind == "lines":
        return wr.LinePlot(title=plan.title, x=plan.x, y=keys)
    if plan.kind == "bars":
        return wr.BarPlot(title=plan.title, metrics=keys)
    if plan.kind == "scatter":
        return wr.ScatterPlot(title=plan.title, x=wr.SummaryMetric(keys[0]), y=wr.SummaryMetric(keys[1]))
    if plan.kind == "pictures":
        grid = {"mode": "grid", "grid_x_axis": "index", "grid_y_axis": "run"} if plan.grid else {"gallery_axis": "index"}
        return wr.MediaBrowser(title=plan.title, media_keys=keys, **grid)
    if plan.kind == "parallel":
        settings = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name)) for name in plan.config]
        scores = [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(key)) for key in keys]
        return wr.ParallelCoordinatesPlot(title=plan.title, columns=[*settings, *scores])
    if plan.kind == "importance":
        return wr.ParameterImportancePlot(with_respect_to=keys[0])
    return wr.RunComparer(diff_only="split") if plan.kind == "comparer" else wr.WeavePanelSummaryTable(table_name=keys[0])
