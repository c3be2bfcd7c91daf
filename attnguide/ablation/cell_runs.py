"""Each cell of an ablation as a W&B run of its own, so that W&B compares cells as it compares runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnguide.ablation.summary import Record, estimate, grouped, metrics_of
from attnguide.callbacks.flat_config import axis_key
from attnguide.run_folder.records import AXIS, CELL
from attnguide.sheets.sheet import record_picture

MOST_CELLS = 200
"""Cells that become runs; each takes about a second."""

_MOST_PICTURES = 8


def log_cells(run: Any, folder: Path, records: Sequence[Record]) -> None:
    """Begin and end a run for each cell, in the group of the ablation's own run.

    Its configuration holds ``axis/<name>``, its summary ``mean/<metric>``, under the names that the ablation's run has; its
    pictures are the cell's first.

    Args:
        run: The ablation's own run, offline or not.
        folder: The ablation's run folder.
        records: Lines of its ``records.csv``.
    """
    for (cell,), rows in list(grouped(records, [CELL]).items())[:MOST_CELLS]:
        _log_cell(run, folder, cell, rows)


def _log_cell(run: Any, folder: Path, cell: str, rows: Sequence[Record]) -> None:
    import wandb

    given = {name.removeprefix(AXIS): value for name, value in rows[0].items() if name.startswith(AXIS) and value}
    axes = {axis_key(name): _number(value) for name, value in given.items()}
    made = wandb.init(
        project=run.project,
        entity=run.entity or None,
        group=run.group or folder.name,
        job_type="cell",
        name=cell,
        dir=str(folder.resolve()),
        mode="offline" if run.offline else "online",
        config={**axes, "methods": rows[0]["method"], "rows": len(rows), "command": "ablate"},
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off"),
    )
    pictures = [(record, record_picture(folder, record)) for record in rows[:_MOST_PICTURES]]
    shown = [wandb.Image(picture, caption=f"seed {record['seed']}") for record, picture in pictures if picture is not None]
    made.log({"pictures/cell": shown} if shown else {})
    means: Mapping[str, Any] = {metric: estimate(rows, metric) for metric in metrics_of(rows)}
    made.summary.update({f"mean/{metric}": found.mean for metric, found in means.items() if found is not None})
    made.finish()


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
