"""Keys that runs logged, read from a run folder or from W&B's server. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnguide.callbacks import keys
from attnguide.callbacks.flat_config import axis_key
from attnguide.callbacks.run_curves import run_curves
from attnguide.callbacks.run_log import means, pictures_by_key
from attnguide.report.content import TABLE_FILE
from attnguide.run_folder.records import AXIS, is_cell_column, read_records


@dataclass(frozen=True)
class LoggedNames:
    """Logger keys of one or several runs.

    Attributes:
        history: Keys of curves, pictures and tables.
        summary: Keys of the summary.
        config: Keys of the configuration.
    """

    history: frozenset[str]
    summary: frozenset[str]
    config: frozenset[str]

    def curves(self, prefix: str) -> list[str]:
        """Keys of the history that begin with a prefix, in order."""
        return sorted(key for key in self.history if key.startswith(prefix))

    def means(self, metric: str) -> list[str]:
        """``mean/<metric>/<method>`` for every method that has the metric, in order, plain first."""
        found = [key for key in self.summary if key.startswith(f"mean/{metric}/")]
        return sorted(found, key=lambda key: (not key.endswith("/plain"), key))


def names_of_folder(folder: Path) -> LoggedNames:
    """Keys that the run in a folder logs.

    Raises:
        ValueError: If the folder has no records.
    """
    records = read_records(folder)
    if not records:
        raise ValueError(f"expected the folder of a run; {str(folder)!r} holds no run: no row is on record in it")
    curves = run_curves(folder, records)
    axes = {name for record in records for name in record if name.startswith(AXIS) and is_cell_column(name)}
    steps = {key for points in (curves.guide, curves.maps) for point in points for key in point.values}
    shown = _of_ablation(folder) if axes else _of_comparison(folder)
    live = {keys.live_key(name, record["method"] or "plain") for record in records for name in keys.LIVE if record.get(name)}
    pictures = set(pictures_by_key(folder, records))
    summary = set(means(records)) | ({f"mean/{name}" for name in _metrics(means(records))} if axes else set())
    config = {"methods", "command", *(axis_key(name.removeprefix(AXIS)) for name in axes)}
    return LoggedNames(frozenset({*steps, *live, *shown, *pictures, keys.TABLE}), frozenset(summary), frozenset(config))


def _of_ablation(folder: Path) -> set[str]:
    """Keys of the pictures that an ablation drew."""
    drawn = {keys.ABLATION_PLOTS: "plots/*.png", keys.ABLATION_SHEETS: "sheets/*.png"}
    return {key for key, pattern in drawn.items() if any(folder.glob(pattern))}


def _of_comparison(folder: Path) -> set[str]:
    """Keys of a comparison's table and sheets of examples; empty for other runs."""
    if not (folder / TABLE_FILE).is_file():
        return set()
    return {keys.EVAL_TABLE, *([keys.EVAL_SHEETS] if any(folder.glob("sheets/*.png")) else [])}


def _metrics(names: Iterable[str]) -> set[str]:
    return {key.split("/")[1] for key in names if key.startswith("mean/")}


def names_of_project(entity: str, project: str) -> LoggedNames:
    """Keys that the newest 20 runs of a W&B project logged, fetched from the server.

    Raises:
        ValueError: If there is no such project, or none of its newest runs is attnguide's.
    """
    import wandb

    try:
        runs: list[Any] = list(wandb.Api().runs(f"{entity}/{project}", per_page=20)[:20])
    except Exception as error:  # W&B raises its own errors and those of the network library below it
        raise ValueError(f"W&B has no answer about {entity}/{project} ({' '.join(str(error).split())[:200]})") from error
    summary = {key for run in runs for key in run.summary.keys()}
    if not any(key.startswith("mean/") for key in summary):
        raise ValueError(f"expected runs of attnguide in the project {entity}/{project}; its {len(runs)} newest are none")
    config = {key for run in runs for key in run.config}
    return LoggedNames(frozenset(key for key in summary if not key.startswith("_")), frozenset(summary), frozenset(config))
