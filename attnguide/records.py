"""The files of a run folder: written whole or not at all, row by row. Importing this needs no torch."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from attnguide.methods import method_info
from attnguide.prompt.pairs import describe_groups, row_groups
from attnguide.prompt.regions import region_to_dict
from attnguide.rows import sample_to_dict
from attnguide.types import Region, Sample, SampleResult

SETTINGS: tuple[str, ...] = (
    "id",
    "prompt",
    "negative_prompt",
    "seed",
    "method",
    "steps",
    "cfg_scale",
    "scheduler",
    "height",
    "width",
    "options",
    "regions",
    "groups",
    "tags",
)
"""First columns of ``records.csv``: what made the picture.

``options``, ``regions`` and ``tags`` are JSON; ``groups`` says which words a method took for nouns and their modifiers.
"""

COSTS: tuple[str, ...] = ("unet_forwards", "unet_backwards", "seconds", "peak_memory_mb", "status")
"""Last columns of ``records.csv``; metrics stand between."""

RECORD_COLUMNS: tuple[str, ...] = SETTINGS + COSTS

CELL, AXIS = "cell", "axis."
"""Tags that are columns too, after the settings: the name of an ablation's cell, and ``axis.<name>`` for each of its values."""

CONFIG_FILE, RECORDS_FILE, SAMPLES_FOLDER = "config.yaml", "records.csv", "samples"
NORMS_FILE, TRACE_FILE, VALUES_FILE = "map_norms.csv", "loss_trace.csv", "value_invariance.csv"
ROW_TABLES = (RECORDS_FILE, NORMS_FILE, TRACE_FILE, VALUES_FILE)
"""A run's tables with lines of rows; what else lies in its folder is not the run's."""


# ---------------------------------------------------------------------------------------------------------- whole files


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well it takes that place, else it vanishes.

    Parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:60]}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Several processes of one run write to the same tables."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


# --------------------------------------------------------------------------------------------------------------- tables


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Lines of a CSV file with a header; none if the file is missing. A last line that was cut off is left out."""
    path = Path(path)
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if None not in row and None not in row.values()]


def append_table(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Append lines to a CSV file, all or none of them; the header is written with the first.

    Args:
        path: The file; its folder is made.
        columns: Its header. New columns may join an existing file, where earlier lines are then empty.
        rows: Values by column.

    Raises:
        ValueError: If the file has columns that are not in ``columns``' family: not even its first column agrees.
    """
    path, columns = Path(path), list(columns)
    with _locked(path.parent):
        header = _header(path)
        if not header:
            write_atomic(path, _csv_text([columns, *([_cell(row, c) for c in columns] for row in rows)]))
            return
        if header[0] != columns[0]:
            raise ValueError(f"{path} begins with the column {header[0]!r}, not {columns[0]!r}; it is not of this run.")
        merged = _merge(header, columns)
        if merged != header or not _ends_whole(path):
            _rewrite(path, merged, read_table(path))
        lines = _csv_text([_cell(row, column) for column in merged] for row in rows)
        with path.open("ab", buffering=0) as file:
            file.write(lines.encode())


def keep_rows(path: str | Path, ids: Collection[str]) -> None:
    """Drop every line of a CSV file whose ``id`` is not among ``ids``; files without such a column are left alone."""
    path = Path(path)
    with _locked(path.parent):
        header = _header(path)
        if "id" in header:
            _rewrite(path, header, [row for row in read_table(path) if row["id"] in ids])


def _header(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def _ends_whole(path: Path) -> bool:
    return path.read_bytes()[-1:] == b"\n"


def _rewrite(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomic(path, _csv_text([columns, *([_cell(row, column) for column in columns] for row in rows)]))


def _merge(header: Sequence[str], columns: Sequence[str]) -> list[str]:
    """``header`` with what is new in ``columns``, each after its predecessor there."""
    merged = list(header)
    for index, column in enumerate(columns):
        if column not in merged:
            merged.insert(merged.index(columns[index - 1]) + 1 if index else 0, column)
    return merged


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _csv_text(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# -------------------------------------------------------------------------------------------------------------- records


def settings_of(sample: Sample, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The first columns of a row's record.

    Args:
        sample: The row.
        size: ``(height, width)`` of the picture, where the row leaves it to the model.
    """
    height, width = size or (None, None)
    options = {config.name: dict(config.options) for config in sample.methods if config.options}
    return {
        "id": sample.id,
        "prompt": sample.prompt,
        "negative_prompt": sample.negative_prompt,
        "seed": sample.seed,
        "method": sample.method,
        "steps": sample.steps,
        "cfg_scale": float(sample.cfg_scale),
        "scheduler": sample.scheduler,
        "height": sample.height or height,
        "width": sample.width or width,
        "options": _json(options),
        "regions": _json([_region(region) for region in sample.regions]),
        "groups": _groups(sample),
        "tags": _json(sample.tags),
    }


def is_cell_column(name: str) -> bool:
    """Whether a column or tag says where in an ablation a row stands."""
    return name == CELL or name.startswith(AXIS)


def record_of(
    result: SampleResult, metrics: Mapping[str, float] | None = None, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """A row's line of ``records.csv``: settings, metrics, costs, in this order.

    Args:
        result: The finished row.
        metrics: Its numbers; names must not be those of other columns.
        size: ``(height, width)`` of the picture, where the row leaves it to the model.
    """
    metrics = dict(metrics or {})
    taken = [name for name in metrics if name in RECORD_COLUMNS]
    if taken:
        raise ValueError(f"Metric {taken[0]!r} has the name of another column of {RECORDS_FILE}; rename it.")
    cost = result.cost
    return {
        **settings_of(result.sample, size),
        **{name: value for name, value in result.sample.tags.items() if is_cell_column(name)},
        **metrics,
        "unet_forwards": cost.unet_forwards,
        "unet_backwards": cost.unet_backwards,
        "seconds": round(cost.seconds, 3),
        "peak_memory_mb": round(cost.peak_memory_mb, 1),
        "status": result.status,
    }


def read_records(folder: str | Path) -> list[dict[str, str]]:
    """Lines of a run folder's ``records.csv``; none if there is none yet.

    Raises:
        ValueError: If the file is no table of records.
    """
    path = Path(folder) / RECORDS_FILE
    lines = read_table(path)
    if missing := [name for name in ("id", "status") if lines and name not in lines[0]]:
        raise ValueError(f"{path}: expected a column {missing[0]!r}, as records have; got {', '.join(lines[0])}.")
    return lines


def finished_ids(folder: str | Path) -> set[str]:
    """Rows of a run folder whose record says ``ok`` and whose picture is there."""
    folder = Path(folder)
    return {
        record["id"]
        for record in read_records(folder)
        if record["status"] == "ok" and (folder / SAMPLES_FOLDER / f"{record['id']}.png").exists()
    }


def complete_ids(folder: str | Path, samples: Sequence[Sample]) -> set[str]:
    """Rows of a run that :func:`finished_ids` holds already.

    Args:
        folder: The run folder.
        samples: The rows of the run.

    Raises:
        ValueError: If a finished row was made with other settings than the row of the same id.
    """
    finished = finished_ids(folder)
    records = {record["id"]: record for record in read_records(folder) if record["id"] in finished}
    done = {sample.id: settings_of(sample) for sample in samples if sample.id in records}
    for id, settings in done.items():
        for name in SETTINGS:
            before, now = records[id].get(name, ""), _cell(settings, name)
            if settings[name] is not None and before != now:
                raise ValueError(
                    f"Row {id!r} in {str(folder)!r} was made with {name} {before!r}, not {now!r}; choose another folder."
                )
    return set(done)


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
    return describe_groups(sample.prompt, row_groups(sample.prompt, sample.groups, sample.regions))


def _floats(value: Any) -> Any:
    """0 and 0.0 are one place, and must read alike in a record."""
    return [_floats(item) for item in value] if isinstance(value, list | tuple) else float(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str) if value else ""


# ----------------------------------------------------------------------------------------------------------- the folder


def config_text(config: Mapping[str, Any]) -> str:
    """A resolved configuration as YAML, in the order given."""
    plain = json.loads(json.dumps(config, default=str))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
    return text


def config_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """The configuration of a run that was described by its rows alone; a table file that :mod:`attnguide.tables` reads."""
    rows = []
    for sample in samples:
        try:
            rows.append(sample_to_dict(sample))
        except ValueError:  # mask tensors and the like: the record still says what it was
            rows.append({key: value for key, value in settings_of(sample).items() if value not in (None, "")})
    return {"samples": rows}


def check_run_folder(
    folder: str | Path, config: Mapping[str, Any] | None = None, *, resume: bool = False, ignore: Collection[str] = ()
) -> None:
    """Refuse a folder that a run cannot use; writes nothing.

    Args:
        folder: May be missing.
        config: Of the new run; compared with the folder's own when resuming.
        resume: Whether a run in the folder is to be continued.
        ignore: Keys of ``config`` that may differ (``resume`` itself, loggers, devices).

    Raises:
        ValueError: If the folder is a file or not writable, holds another run, or was made with another configuration.
    """
    folder = Path(folder)
    _check_writable(folder)
    held = [name for name in (CONFIG_FILE, RECORDS_FILE) if (folder / name).exists()]
    if held and not resume:
        raise ValueError(f"Folder {str(folder)!r} already holds a run ({held[0]}); resume it or choose another folder.")
    if resume and config is not None and (folder / CONFIG_FILE).exists():
        before = _read_config(folder / CONFIG_FILE)
        now = yaml.safe_load(config_text(config))
        for key in sorted({*before, *now} - set(ignore)):
            if before.get(key) != now.get(key):
                at, old, new = _difference(key, before.get(key), now.get(key))
                raise ValueError(
                    f"Folder {str(folder)!r} holds a run with another {at!r} ({_short(old)}, now {_short(new)}); choose "
                    "another folder."
                )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged: it is no YAML.") from error
    if not isinstance(content or {}, dict):
        raise ValueError(f"{path} is damaged: expected settings as 'name: value'; got {_short(content)}.")
    return content or {}


def _difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The first place inside two values where they differ, and what stands there."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = next(name for name in {**before, **now} if before.get(name) != now.get(name))
        return _difference(f"{key}.{inner}", before.get(inner), now.get(inner))
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        place = next(index for index, (old, new) in enumerate(zip(before, now, strict=True)) if old != new)
        return _difference(f"{key}[{place}]", before[place], now[place])
    return key, before, now


def _check_writable(folder: Path) -> None:
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"Folder {str(folder)!r} cannot be made: {str(existing)!r} is a file.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"Folder {str(folder)!r} is not writable.")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
