"""What only a process of its own can show: what is imported, exit statuses, and Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnguide.run_folder.records import read_records
from tests import tiny

from .conftest import Command

ROOT = Path(__file__).resolve().parents[2]
LIGHT = f"""
import contextlib, io, sys
from attnguide.cli import main

prompt = {tiny.PROMPT!r}
asked = [
    (0, []), (0, ["--help"]), (0, ["--version"]), (0, ["sample", "--help"]), (0, ["methods"]), (0, ["models"]),
    (0, ["completion", "bash"]), (0, ["methods", "mask_guidance"]), (0, ["methods", "inject3"]),
    (0, ["sample", prompt, "--steps", "3", "--print_config"]),
    (2, ["smaple"]), (2, ["sample", prompt, "--steps", "-1"]), (2, ["sample", prompt, "--method", "none_such"]),
    (2, ["sample", prompt, "--method", "mask_guidance", "--method.scale", ".nan"]), (2, ["sample", prompt, "--stpes", "1"]),
    (2, ["sample", prompt, "--scheduler", "none_such"]), (2, ["sample", prompt, "--config", "gone.yaml"]),
]
for status, words in asked:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ended = main(words)
    loaded = [name for name in ("torch", "diffusers", "transformers", "lightning", "wandb") if name in sys.modules]
    assert ended == status, (words, ended)
    assert not loaded, (words, loaded)
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _run(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=600)


def test_help_lists_and_errors_come_without_torch(tmp_path: Path) -> None:
    ended = _run("-c", LIGHT, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    ended = _run("-m", "attnguide", "sample", tiny.PROMPT, "--region", "red cst=0,0,1,1", folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_two_processes_make_the_same_pictures(tiny_folder: Path, tmp_path: Path, attnguide: Command) -> None:
    words = [tiny.PROMPT, "--region", "red cat=0,0,0.5,1", "--method", "mask_guidance", "--method.step_size", "20"]
    words += ["--seed", "0..1", "--steps", "2", "--logger", "csv", "--model", str(tiny_folder)]
    ended = _run("-m", "attnguide", "sample", *words, "--out", "there", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr and "Warning" not in ended.stderr
    assert attnguide("sample", *words, "--out", "here").status == 0
    for name in ("seed0-plain", "seed0-mask_guidance", "seed1-plain", "seed1-mask_guidance"):
        there = (tmp_path / "there" / "samples" / f"{name}.png").read_bytes()
        assert there == Path("here", "samples", f"{name}.png").read_bytes()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_ended_run_keeps_the_finished_rows(
    tiny_folder: Path, tmp_path: Path, attnguide: Command, how: signal.Signals
) -> None:
    words = [tiny.PROMPT, "--seed", "0..199", "--steps", "8", "--batch-size", "1", "--no-maps", "--no-norms"]
    words += ["--logger", "none", "--model", str(tiny_folder)]
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-m", "attnguide", "sample", *words, "--out", str(out)],
        cwd=tmp_path,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background hands SIGINT on as ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 500
        # A signal between a record's writing and its sync takes it back: two are certain once a third is seen.
        while len(read_records(out)) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(how)
        said, complained = process.communicate(timeout=100)
    assert process.returncode == 130, complained
    assert "Traceback" not in complained
    records = read_records(out)
    assert 2 <= len(records) < 200
    assert {record["status"] for record in records} == {"ok"}
    assert {record["id"] for record in records} <= {path.stem for path in (out / "samples").glob("*.png")}
    assert f"{200 - len(records)} of 200 rows" in said and "--resume" in said
    assert (out / "sheet.png").is_file()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_before_its_first_row_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import os, signal, sys, attnguide.models.load as load\n"
        f"signal.signal({int(how)}, signal.SIG_DFL)\n"  # whatever nohup or a runner of tests has left to this process
        f"load.load_model = lambda *a, **k: os.kill(os.getpid(), {int(how)})\n"
        "from attnguide.cli import main\n"
        "sys.exit(main(['sample', 'a cat', '--logger', 'none', '--out', 'run']))\n"
    )
    ended = _run("-c", code, folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_of_several_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.strategies.launchers import subprocess_script

    from attnguide.cli.opening import quiet

    dead = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    dead.wait()
    watch = subprocess_script._ChildProcessObserver(os.getpid(), [dead])
    monkeypatch.setattr(watch, "_terminate_all", lambda: None)
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", told.append)
    logger = logging.getLogger(subprocess_script.__name__)
    logger.addHandler(handler)
    try:
        quiet()
        assert watch._run()
    finally:
        logger.removeHandler(handler)
    assert "terminated with code 3" in told[0].getMessage()
