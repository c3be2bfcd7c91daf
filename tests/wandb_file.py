"""Reading an offline W&B run back from its ``.wandb`` file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WandbRun:
    """What an offline run holds.

    Attributes:
        history: Lines of ``log``, by key; media and tables as ``<key>._type`` and so on.
        config: By key.
        summary: What was written to the summary, by key.
        metrics: ``define_metric`` by key or pattern: the axis, and whether W&B makes no panel for it.
        artifacts: Names and types.
        run: The record of the run itself.
        written: All bytes.
    """

    history: list[dict[str, Any]]
    config: dict[str, Any]
    summary: dict[str, Any]
    metrics: dict[str, tuple[str, bool]]
    artifacts: dict[str, tuple[str, list[str]]]
    run: Any
    written: bytes

    def keys(self) -> set[str]:
        """Keys of the history, those of pictures and tables once."""
        found = set()
        for line in self.history:
            media = {key.removesuffix("._type") for key in line if key.endswith("._type")}
            inner = {key for key in line if any(key.startswith(f"{name}.") for name in media)}
            found |= media | set(line) - inner
        return {key for key in found if not key.startswith("_")}

    def charts(self) -> set[str]:
        """Keys for which W&B makes a panel by itself."""
        hidden = [name for name, (_, is_hidden) in self.metrics.items() if is_hidden]
        return {key for key in self.keys() if not any(_matches(name, key) for name in hidden)}

    def curve(self, key: str, axis: str) -> list[tuple[float, float]]:
        """A curve over an axis."""
        return [(line[axis], line[key]) for line in self.history if key in line]


def _matches(pattern: str, key: str) -> bool:
    return key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern


def read_wandb(folder: Path, path: Path | None = None) -> WandbRun:
    """The one offline run below a folder, or one of several by its file, once W&B's own process has written its end."""
    if path is None:
        (path,) = wandb_files(folder)
    records = finished_records(path)
    kinds: dict[str, list[Any]] = {}
    for record in records:
        kinds.setdefault(record.WhichOneof("record_type"), []).append(record)
    (run,) = [record.run for record in kinds["run"]][:1]
    updates = [*run.config.update, *(item for record in kinds.get("config", []) for item in record.config.update)]
    summary = [item for record in kinds.get("summary", []) for item in record.summary.update]
    return WandbRun(
        [_items(record.history.item) for record in kinds.get("history", [])],
        _items(updates),
        _items(summary),
        {
            record.metric.glob_name or record.metric.name: (record.metric.step_metric, record.metric.options.hidden)
            for record in kinds.get("metric", [])
        },
        {
            record.artifact.name: (record.artifact.type, [entry.path for entry in record.artifact.manifest.contents])
            for record in kinds.get("artifact", []) + [r.request.log_artifact for r in kinds.get("request", [])]
        },
        run,
        b"".join(record.SerializeToString() for record in records),
    )


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def wandb_files(folder: Path) -> list[Path]:
    """The files of all offline runs below a folder."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def finished_records(path: Path) -> list[Any]:
    """Records of a run's file (a finished run may still be on its way there)."""
    for _ in range(300):
        records = _read_records(path)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"the run's file has no end; it holds {len(records)} records")


def _read_records(path: Path) -> list[Any]:
    """Framed protobuf records after a header of 7 bytes, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, at, part, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        body = data[at + 7 : at + 7 + size]
        at += 7 + size
        if at > len(data):
            break  # still being written
        part = body if kind in (1, 2) else part + body
        if kind in (1, 4):
            records.append(wandb_internal_pb2.Record.FromString(part))
    return records
