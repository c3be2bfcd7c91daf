"""Curves, pictures and tables in the loggers."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from attnguide.callbacks import LedgerLog, WandbLog, standard_callbacks
from attnguide.callbacks.wandb_log import region_overlays
from attnguide.loggers import LOGGERS, check_loggers, close_loggers, make_loggers, sync_hint, wandb_offline
from attnguide.run_tables import read_table
from attnguide.types import Region
from tests.callbacks.conftest import REGIONS, Run, row


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))


def wandb_records(folder: Path) -> list[Any]:
    """What an offline run's file holds, once W&B's own process has written its end (a finished run may still be on its way)."""
    for _ in range(300):
        records = _read_records(folder)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"the run's file has no end; it holds {len(records)} records")


def _read_records(folder: Path) -> list[Any]:
    """Framed protobuf records after a header of 7 bytes, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
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


def history(records: list[Any]) -> list[dict[str, Any]]:
    lines = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in line} for line in lines]


def test_an_offline_run_holds_everything(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("A_SECRET", "do-not-write-me")
    loggers = make_loggers(["wandb"], tmp_path, name="first", group="tests", tags=["x"])
    assert sync_hint(loggers) is None
    rows = [row("a-plain"), row("a", "mask_guidance")]
    config = {"steps": 3, "nested": {"k": [1, 2]}}
    run(standard_callbacks(config, progress=False), rows, batch_size=1, loggers=loggers)
    close_loggers(loggers)
    assert sync_hint(loggers) == f"wandb sync {tmp_path / 'wandb'}/offline-run-*"
    records = wandb_records(tmp_path)
    written = b"".join(record.SerializeToString() for record in records)
    assert b"do-not-write-me" not in written and b"a" * 40 not in written
    lines = history(records)
    curve = [
        (line["denoise/step"], line["denoise/loss/a/mask_guidance"]) for line in lines if "denoise/loss/a/mask_guidance" in line
    ]
    assert curve and [step for step, _ in curve] == sorted(step for step, _ in curve) and all(loss > 0 for _, loss in curve)
    sample = next(line for line in lines if "sample/mask_guidance.path" in line)
    assert sample["sample/mask_guidance._type"] == "image-file"
    assert any("boxes" in key for key in sample) and any("masks" in key for key in sample)
    table = next(line for line in lines if "rows.path" in line)
    assert table["rows.nrows"] == 2
    content = json.loads(next(tmp_path.glob(f"wandb/offline-run-*/files/{table['rows.path']}")).read_text())
    assert [line[content["columns"].index("method")] for line in content["data"]] == ["plain", "mask_guidance"]
    configs = {}
    for record in records:
        items = record.run.config.update if record.WhichOneof("record_type") == "run" else record.config.update
        configs.update({item.key or item.nested_key[0]: item.value_json for item in items})
    assert json.loads(configs["nested"]) == {"k": [1, 2]}
    started = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (started.display_name, started.run_group, list(started.tags)) == ("first", "tests", ["x"])
    axes = {
        record.metric.glob_name: record.metric.step_metric for record in records if record.WhichOneof("record_type") == "metric"
    }
    assert axes["denoise/*"] == "denoise/step" and axes["row/*"] == "row/index"


def test_two_runs_of_one_process_are_two(run: Run, tmp_path: Path) -> None:
    ids = []
    for name in "ab":
        loggers = make_loggers(["wandb"], tmp_path / name)
        run([WandbLog(), LedgerLog()], [row(name, steps=1)], loggers=loggers)
        ids.append(loggers[0].experiment.id)
        close_loggers(loggers)
    assert len(set(ids)) == 2
    assert os.environ["WANDB_MODE"] == "offline", "not changed by an offline run"


def test_csv_and_tensorboard_get_the_curves(run: Run, tmp_path: Path) -> None:
    loggers = make_loggers(["csv", "tensorboard"], tmp_path)
    run(standard_callbacks(progress=False, maps=True), [row("a", "mask_guidance")], loggers=loggers)
    lines = read_table(tmp_path / "csv" / "metrics.csv")
    curve = [(line["step"], line["denoise/inside/a/red cat"]) for line in lines if line["denoise/inside/a/red cat"]]
    assert [step for step, _ in curve] == ["0", "1", "2"]
    assert [line["row/unet_forwards"] for line in lines if line["row/unet_forwards"]]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "denoise/loss/a/mask_guidance" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["maps/a"]
    assert sync_hint(loggers) is None


def test_callbacks_run_without_any_logger(run: Run, tmp_path: Path) -> None:
    run(standard_callbacks(progress=False, values=True), [row("a", "mask_guidance", steps=1)])
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["samples"][0]["id"] == "a"


def test_logger_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_loggers(["none"], tmp_path) == []
    with pytest.raises(ValueError, match=f"Unknown logger 'wanbd'; choose from {', '.join(LOGGERS)}"):
        make_loggers(["wanbd"], tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'attnguide\[wandb\]'"):
        check_loggers(["csv", "wandb"])


class _Server(BaseHTTPRequestHandler):
    status = 400

    def do_POST(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return monkeypatch


def test_offline_without_a_key_or_a_server(no_settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_settings.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert wandb_offline(), "no key"
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    assert wandb_offline(), "a key, but nobody listens"
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        no_settings.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        assert not wandb_offline()
        no_settings.setattr(_Server, "status", 503)
        assert wandb_offline(), "a server that is out of order"
        server.shutdown()


def test_a_server_that_never_answers(no_settings: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    no_settings.setenv("WANDB_API_KEY", "a" * 40)
    no_settings.setattr("attnguide.loggers._ANSWER", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        no_settings.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert wandb_offline()
    (record,) = [found for found in caplog.records if found.name == "attnguide.loggers"]
    assert "cannot be reached" in record.getMessage() and record.getMessage().endswith("the run is kept offline.")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("WANDB_MODE", "online", "there is no key"),
        ("WANDB_MODE", "nonsense", "WANDB_MODE is 'nonsense'"),
        ("WANDB_BASE_URL", "nonsense", "WANDB_BASE_URL is 'nonsense'"),
        ("WANDB_BASE_URL", "http://x:99999999", "WANDB_BASE_URL is"),
    ],
)
def test_settings_that_cannot_work_are_said_and_the_run_is_offline(
    name: str, value: str, says: str, no_settings: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    no_settings.setenv(name, value)
    loggers = make_loggers(["wandb"], tmp_path)
    loggers[0].experiment.log({"x": 1})  # type: ignore[attr-defined]
    close_loggers(loggers)
    assert list(tmp_path.glob("wandb/offline-run-*")) and os.environ[name] == value
    (record,) = [found for found in caplog.records if found.name == "attnguide.loggers"]
    assert record.getMessage().startswith(f"W&B: {says}") and record.levelname == "WARNING"


def test_overlays_name_every_phrase() -> None:
    boxes, masks = region_overlays((*REGIONS, Region("nowhere")), 8, 16)
    (box,) = boxes["regions"]["box_data"]
    assert box["position"] == {"minX": 0, "maxX": 0.5, "minY": 0, "maxY": 1} and box["class_id"] == 1
    (mask,) = masks.values()
    assert mask["mask_data"].shape == (8, 16) and mask["mask_data"].dtype == "uint8" and set(mask["mask_data"].flat) == {0, 2}
    assert mask["class_labels"] == {1: "red cat", 2: "blue ball", 3: "nowhere"}
    assert region_overlays((), 8, 8) == ({}, {})
