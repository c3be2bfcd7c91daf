"""Curves, pictures and tables in the loggers."""

from __future__ import annotations

import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from attnguide.callbacks import RunLog, standard_callbacks
from attnguide.callbacks.sinks import region_overlays
from attnguide.loggers import LOGGERS, check_loggers, close_loggers, make_loggers, show_hint, sync_hint, wandb_offline
from attnguide.loggers.artifacts import keep_files
from attnguide.run_folder.tables import read_table
from attnguide.types import Region
from tests.callbacks.conftest import REGIONS, Run, row
from tests.wandb_file import read_wandb


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))


def test_an_offline_run_holds_everything(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("A_SECRET", "do-not-write-me")
    loggers = make_loggers(["wandb"], tmp_path, name="first", group="tests", tags=["x"], job_type="trial")
    assert sync_hint(loggers) is None
    rows = [row("a-plain"), row("a", "mask_guidance"), row("b", "mask_guidance", seed=1)]
    callbacks = standard_callbacks({"steps": 3, "nested": {"k": [1, 2]}}, progress=False, facts={"command": "trial"})
    run(callbacks, rows, batch_size=1, loggers=loggers)
    keep_files(loggers, tmp_path)
    close_loggers(loggers)
    assert sync_hint(loggers) == f"wandb sync {tmp_path / 'wandb'}/offline-run-*"
    found = read_wandb(tmp_path)
    assert b"do-not-write-me" not in found.written and b"a" * 40 not in found.written
    trace = read_table(tmp_path / "loss_trace.csv")
    losses = {(line["id"], int(line["step"])): float(line["loss"]) for line in trace}  # the last of each step
    for step, loss in found.curve("guide/loss/mask_guidance", "guide/step"):
        both = [losses["a", int(step)], losses["b", int(step)]]
        assert loss == pytest.approx(sum(both) / 2)
    assert {"guide/inside/plain", "guide/inside/mask_guidance", "maps/l2/plain/placed", "pictures/plain"} <= found.keys()
    assert not any("/a" in key or "/b" in key for key in found.keys()), "no name of a row in a key"
    pictures = next(line for line in found.history if "pictures/mask_guidance._type" in line)
    assert pictures["pictures/mask_guidance.count"] == 2 and pictures["pictures/mask_guidance._type"] == "images/separated"
    assert any("all_boxes" in key for key in pictures) and any("all_masks" in key for key in pictures)
    table = next(line for line in found.history if "rows.path" in line)
    content = json.loads(next(tmp_path.glob(f"wandb/offline-run-*/files/{table['rows.path']}")).read_text())
    methods = [line[content["columns"].index("method")] for line in content["data"]]
    assert methods == ["plain", "mask_guidance", "mask_guidance"]
    assert found.config["nested/k"] == "[1, 2]" and found.config["command"] == "trial" and found.config["rows"] == 3
    assert (found.run.display_name, found.run.run_group, list(found.run.tags)) == ("first", "tests", ["x"])
    assert found.run.job_type == "trial"
    assert found.metrics["guide/loss/*"] == ("guide/step", False) and found.metrics["maps/l2/*"] == ("maps/step", True)
    assert found.summary["mean/inside/plain"] > 0 and found.summary["n/mask_guidance"] == 2
    kinds = {name.rsplit("-", 1)[1]: files for name, (kind, files) in found.artifacts.items() if kind.startswith("attnguide-")}
    assert {"records.csv", "config.yaml", "sheet.png", "loss_trace.csv"} <= set(kinds["results"])
    assert "maps/a/red_cat.npy" in kinds["maps"]


def test_lines_of_single_rows_on_request(run: Run, tmp_path: Path) -> None:
    loggers = make_loggers(["csv"], tmp_path)
    rows = [row("a", "mask_guidance"), row("b", "mask_guidance")]
    run(standard_callbacks(progress=False, maps=False, row_curves=1), rows, loggers=loggers)
    (columns,) = {tuple(line) for line in read_table(tmp_path / "csv" / "metrics.csv")}
    assert {"rows/loss/a", "rows/inside/a"} <= set(columns) and not any(name.endswith("/b") for name in columns)


def test_two_runs_of_one_process_are_two(run: Run, tmp_path: Path) -> None:
    ids = []
    for name in "ab":
        loggers = make_loggers(["wandb"], tmp_path / name)
        run([RunLog()], [row(name, steps=1)], loggers=loggers)
        ids.append(loggers[0].experiment.id)
        close_loggers(loggers)
    assert len(set(ids)) == 2
    assert os.environ["WANDB_MODE"] == "offline", "not changed by an offline run"


def test_csv_tensorboard_and_trackio_have_the_same_names(run: Run, tmp_path: Path) -> None:
    loggers = make_loggers(["csv", "tensorboard", "trackio"], tmp_path, project="tests", name=tmp_path.name)
    run(standard_callbacks(progress=False), [row("a", "mask_guidance"), row("a-plain")], loggers=loggers)
    close_loggers(loggers)
    lines = read_table(tmp_path / "csv" / "metrics.csv")
    curve = [(line["step"], line["guide/inside/mask_guidance"]) for line in lines if line["guide/inside/mask_guidance"]]
    assert [step for step, _ in curve] == ["0", "1", "2"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    curves = {name for name in lines[0] if name.startswith(("guide/", "maps/", "progress/", "mean/"))}
    assert curves <= set(tags["scalars"])
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert sorted(tags["images"]) == ["pictures/maps", "pictures/mask_guidance", "pictures/plain", "pictures/sheet"]
    assert events.Images("pictures/plain")[0].width == 256, "enlarged, with its regions drawn in"
    import trackio

    (kept,) = [found for found in trackio.Api().runs("tests") if found.name == tmp_path.name]
    assert kept.config["methods"] == "mask_guidance, plain"
    from trackio.sqlite_storage import SQLiteStorage

    logged = SQLiteStorage.get_logs("tests", tmp_path.name)
    names = {name for line in logged for name in line}
    assert curves - {"progress/rows"} <= names and {"pictures/plain", "rows"} <= names
    assert sync_hint(loggers) is None and show_hint(loggers) == "trackio show --project tests"


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
