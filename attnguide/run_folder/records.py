"""Records: the lines of ``records.csv``, one for each row of a run. Importing this needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnguide.inputs import INPUTS, strength_of
from attnguide.methods import method_info
from attnguide.prompt.notation import region_to_dict
from attnguide.prompt.pairs import describe_groups, row_groups
from attnguide.run_folder.files import whole_size
from attnguide.run_folder.made_with import full_options, kept_options, read_made_with
from attnguide.run_folder.tables import cell_text, read_table, without_doubles
from attnguide.types import Region, Sample, SampleResult, verdict

if TYPE_CHECKING:
    from attnguide.models.base import ModelAdapter

SETTINGS: tuple[str, ...] = (
    "id",
    "prompt",
    "negative_prompt",
    "seed",
    "method",
    "steps",
    "cfg_scale",
    "true_cfg_scale",
    "prompt_syntax",
    "scheduler",
    "height",
    "width",
    *INPUTS,
    "options",
    "regions",
    "groups",
    "tags",
)
"""First columns of ``records.csv``: the settings of a row.

``control``, ``options``, ``regions`` and ``tags`` are JSON; ``groups`` lists the nouns and modifiers that a method binds.
"""

_BEFORE = {"prompt_syntax": "plain"}
"""Column that records of older runs lack, or leave empty once newer rows have joined them -> its value in those runs."""

COSTS: tuple[str, ...] = ("unet_forwards", "unet_backwards", "seconds", "peak_memory_mb", "status")
"""Last columns of ``records.csv``, after the metrics."""

RECORD_COLUMNS: tuple[str, ...] = SETTINGS + COSTS

CELL, AXIS = "cell", "axis."
"""Tags that become columns after the settings: the name of an ablation's cell, and ``axis.<name>``, its value on each axis."""

RECORDS_FILE, SAMPLES_FOLDER = "records.csv", "samples"
NORMS_FILE, TRACE_FILE, VALUES_FILE = "map_norms.csv", "loss_trace.csv", "value_invariance.csv"
JUDGED_FILE = "judged.csv"
ROW_TABLES: dict[str, tuple[str, ...]] = {
    RECORDS_FILE: ("id",),
    NORMS_FILE: ("id", "step", "stage", "site", "region"),
    TRACE_FILE: (),
    VALUES_FILE: ("id", "site"),
    JUDGED_FILE: ("id", "judge"),
}
"""File name of a run's table -> the columns that identify a line (all columns if empty)."""


@dataclass(frozen=True)
class Defaults:
    """A model's values for settings that a row leaves open; ``None`` if not known.

    Attributes:
        height: Height of the pictures in pixels.
        width: Width of the pictures in pixels.
        scheduler: Class name of the model's own noise scheduler.
    """

    height: int | None = None
    width: int | None = None
    scheduler: str | None = None


def model_defaults(model: ModelAdapter, steps: int) -> Defaults:
    """A model's values for settings that a row leaves open.

    Args:
        model: The model adapter.
        steps: Number of steps of any row; some schedulers cannot be set up for very few.
    """
    height, width = model.default_size
    return Defaults(height, width, model.make_scheduler(None, steps).name)


def settings_of(sample: Sample, defaults: Defaults = Defaults()) -> dict[str, Any]:
    """The first columns of a row's record.

    Args:
        sample: The row.
        defaults: The model's values for settings that the row leaves open.
    """
    options = {config.name: dict(config.options) for config in sample.methods if config.options}
    return {
        "id": sample.id,
        "prompt": sample.prompt,
        "negative_prompt": sample.negative_prompt,
        "seed": sample.seed,
        "method": sample.method,
        "steps": sample.steps,
        "cfg_scale": float(sample.cfg_scale),
        "true_cfg_scale": float(sample.true_cfg_scale),
        "prompt_syntax": sample.prompt_syntax,
        "scheduler": sample.scheduler or defaults.scheduler,
        "height": sample.height or defaults.height,
        "width": sample.width or defaults.width,
        "init_image": sample.init_image,
        "strength": strength_of(sample),
        "inpaint_mask": sample.inpaint_mask,
        "control": _json([control.to_dict() for control in sample.control]),
        "options": _json(options),
        "regions": _json([_region(region) for region in sample.regions]),
        "groups": _groups(sample),
        "tags": _json(sample.tags),
    }


def is_cell_column(name: str) -> bool:
    """Whether a column or tag holds the name of an ablation's cell or a value of one of its axes."""
    return name == CELL or name.startswith(AXIS)


def record_of(
    result: SampleResult,
    metrics: Mapping[str, float] | None = None,
    defaults: Defaults = Defaults(),
) -> dict[str, Any]:
    """A row's line of ``records.csv``: settings, metrics, costs, in this order.

    Args:
        result: The finished row.
        metrics: Its metrics, under names that no other column has.
        defaults: The model's values for settings that the row leaves open.

    Raises:
        ValueError: If a metric has the name of another column.
    """
    metrics = dict(metrics or {})
    taken = [name for name in metrics if name in RECORD_COLUMNS]
    if taken:
        raise ValueError(f"Metric {taken[0]!r} has the name of another column of {RECORDS_FILE}; rename it.")
    cost = result.cost
    return {
        **settings_of(result.sample, defaults),
        **{name: value for name, value in result.sample.tags.items() if is_cell_column(name)},
        **metrics,
        "unet_forwards": cost.unet_forwards,
        "unet_backwards": cost.unet_backwards,
        "seconds": round(cost.seconds, 3),
        "peak_memory_mb": round(cost.peak_memory_mb, 1),
        "status": result.status,
    }


def read_records(folder: str | Path) -> list[dict[str, str]]:
    """Lines of a run folder's ``records.csv``, only the last one of each row; empty if there is no file.

    Raises:
        ValueError: If the file is no table of records.
    """
    path = Path(folder) / RECORDS_FILE
    lines = read_table(path)
    if missing := [name for name in ("id", "status") if lines and name not in lines[0]]:
        raise ValueError(f"{path}: expected a column {missing[0]!r}, as records have; got {', '.join(lines[0])}.")
    return without_doubles(lines, ROW_TABLES[RECORDS_FILE])


def finished_ids(folder: str | Path) -> set[str]:
    """Ids of the rows of a run folder whose status is ``ok``, with a note or without, and whose picture is complete.

    The picture must be a whole PNG of the recorded size.
    """
    records = [record for record in read_records(folder) if verdict(record["status"]) == "ok"]
    return {record["id"] for record in records if _has_picture(folder, record)}


def _has_picture(folder: str | Path, record: Mapping[str, str]) -> bool:
    size = whole_size(Path(folder) / SAMPLES_FOLDER / f"{record['id']}.png")
    recorded = (record.get("width"), record.get("height"))
    return size is not None and (not all(recorded) or tuple(map(str, size)) == recorded)


def complete_ids(folder: str | Path, samples: Sequence[Sample], defaults: Defaults = Defaults()) -> set[str]:
    """Ids of a run's rows that are finished already (:func:`finished_ids`) with the same settings.

    Args:
        folder: The run folder.
        samples: The rows of the run.
        defaults: The model's values for settings that a row leaves open; unknown ones are not compared.

    Raises:
        ValueError: If a finished row was made with other settings than the row of the same id.
    """
    finished = finished_ids(folder)
    records = {record["id"]: record for record in read_records(folder) if record["id"] in finished}
    kept = kept_options(read_made_with(folder))
    done = {sample.id: sample for sample in samples if sample.id in records}
    for id, sample in done.items():
        if found := _other_setting(sample, records[id], defaults, kept):
            name, before, now = found
            raise ValueError(
                f"Row {id!r} in {str(folder)!r} was made with {name} {before!r}, not {now!r}; choose another folder."
            )
    return set(done)


def _other_setting(
    sample: Sample, record: Mapping[str, str], defaults: Defaults, kept: Mapping[str, Mapping[str, Any]]
) -> tuple[str, Any, Any] | None:
    """The first setting of a row that differs from its record's, with both values."""
    for name, value in settings_of(sample, defaults).items():
        before, now = record.get(name) or _BEFORE.get(name, ""), cell_text(value)
        if name == "options":
            was, known = full_options(sample, _options_in(before), kept), full_options(sample)
            if was != known:
                return name, before if before != now else _json(was), now if before != now else _json(known)
        elif before != now and value is not None and not (name == "scheduler" and sample.scheduler is None and not before):
            return name, before, now
    return None


def _options_in(text: str) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _region(region: Region) -> dict[str, Any]:
    try:
        return {
            key: _floats(value) if key in ("box", "blob", "polygon") else value for key, value in region_to_dict(region).items()
        }
    except ValueError:  # a tensor, which is too large for a line
        return {"phrase": region.phrase, "mask": f"tensor {tuple(getattr(region.mask, 'shape', ()))}"}


def _groups(sample: Sample) -> str:
    if not sample.groups and not any(method_info(config.name).reads_groups for config in sample.methods):
        return ""
    return describe_groups(sample.text, row_groups(sample.text, sample.groups, sample.regions))


def _floats(value: Any) -> Any:
    """Numbers as floats, since 0 and 0.0 are the same place and must read alike in a record."""
    return [_floats(item) for item in value] if isinstance(value, list | tuple) else float(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str) if value else ""
