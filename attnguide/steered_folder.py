"""Writes a call of a steered pipeline as a run folder."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from attnguide.callbacks.attention_maps import draw_maps
from attnguide.callbacks.loss_trace import TRACE_COLUMNS, trace_lines
from attnguide.report.page import write_report
from attnguide.run_folder.files import write_atomic, write_picture
from attnguide.run_folder.folder import check_run_folder, config_of, config_text, locked_run
from attnguide.run_folder.made_with import CONFIG_FILE, MADE_WITH, made_with
from attnguide.run_folder.records import RECORDS_FILE, SAMPLES_FOLDER, TRACE_FILE, Defaults, record_of
from attnguide.run_folder.tables import append_table
from attnguide.sheets.sheet import run_sheet
from attnguide.steering.run import SteerRun
from attnguide.text.parsing import shown


def save_run(run: SteerRun, folder: str | Path) -> Path:
    """Write the newest call of a steered pipeline as a run folder.

    Args:
        run: Run of :func:`attnguide.steer`.
        folder: New folder, or one that holds no run.

    Returns:
        Path of ``report.html``.

    Raises:
        ValueError: If no call has ended, the folder holds a run, or ``folder`` is no path.
    """
    if not isinstance(folder, str | Path) or not str(folder):
        raise ValueError(f"folder must be a path; got {shown(folder)}.")
    if not run.statuses or run.model is None:
        raise ValueError("There is nothing to save yet: no call of the pipeline has ended.")
    folder, pipeline = Path(folder), run.model.pipeline
    with locked_run(folder):
        check_run_folder(folder)
        notes = {MADE_WITH: made_with(run.samples, pipeline=type(pipeline).__name__, notes=list(run.notes))}
        write_atomic(folder / CONFIG_FILE, config_text({**config_of(run.samples), **notes}))
        _write_rows(run, folder, Defaults(scheduler=type(pipeline.scheduler).__name__))
        sheet = run_sheet(folder)
        if sheet is not None:
            write_picture(folder / "sheet.png", sheet)
        return write_report(folder)


def _write_rows(run: SteerRun, folder: Path, defaults: Defaults) -> None:
    """Write pictures, maps, losses and records of all rows."""
    ids = [sample.id for sample in run.samples]
    last: dict[str, dict[str, float]] = defaultdict(dict)
    lines = [line for event in run.updates for line in trace_lines(ids, event)]
    for line in lines:
        last[str(line["id"])][f"loss_{line['method']}"] = float(str(line["loss"]))
    if lines:
        append_table(folder / TRACE_FILE, TRACE_COLUMNS, lines)
    for row, result in enumerate(run.results):
        if result.image is not None:
            write_picture(folder / SAMPLES_FOLDER / f"{result.sample.id}.png", result.image)
        if run.step_maps is not None and result.sample.regions:
            draw_maps(folder / "maps", result, result.sample.regions, run.step_maps[row].numpy())
        record = record_of(result, last[result.sample.id], defaults)
        append_table(folder / RECORDS_FILE, tuple(record), [record])
