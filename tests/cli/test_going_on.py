"""``--resume``, configurations that are fed back, and runs that a folder fails."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from attnguide.callbacks import Samples
from attnguide.cli import main
from attnguide.methods import method_options
from attnguide.run_folder.files import write_atomic
from attnguide.run_folder.folder import locked_run
from attnguide.run_folder.made_with import PACKAGES
from attnguide.run_folder.records import read_records
from tests import tiny

from .conftest import Command

WORDS = [tiny.PROMPT, "--region", "red cat=0,0,0.5,1", "--seed", "0..3", "--steps", "1", "--method", "mask_guidance"]
WORDS += ["--no-maps", "--no-norms", "--logger", "none", "--batch-size", "2"]
RESUME = ["sample", "--resume", "--out", "run"]


@pytest.fixture(scope="module")
def first(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs") / "first"
    model = shutil.copytree(tiny_folder, folder.parent / "model")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert main(["sample", *WORDS, "--model", str(model), "--out", str(folder)]) == 0
    yield folder


@pytest.fixture
def run(first: Path, attnguide: Command) -> Path:
    """A copy of the run, in ``run``, whose model is its own copy."""
    shutil.copytree(first, "run")
    shutil.copytree(first.parent / "model", "model")
    change(lambda config: config.update(model="model") or config["made_with"]["model"].update(name="model"))
    return Path("run")


def change(how: Callable[[dict[str, Any]], object]) -> None:
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    how(config)
    Path("run/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "samples").glob("*.png")}


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------------------------- what it is made with


def test_the_configuration_says_versions_the_model_and_every_option(first: Path) -> None:
    said = yaml.safe_load((first / "config.yaml").read_text())["made_with"]
    assert set(said["versions"]) == {"python", *PACKAGES}
    assert said["model"]["scheduler"] == "DDIMScheduler" and (said["model"]["height"], said["batch_size"]) == (32, 2)
    assert said["method_options"] == {"mask_guidance": method_options("mask_guidance")}
    assert {record["scheduler"] for record in read_records(first)} == {"DDIMScheduler"}


def test_another_version_is_told_in_one_line_and_defaults_stay(run: Path, attnguide: Command) -> None:
    change(lambda config: config["made_with"]["versions"].update(torch="1.0"))
    change(lambda config: config["made_with"]["method_options"]["mask_guidance"].update(step_size=77.0, gone=1))
    ended = attnguide("sample", "--config", "run/config.yaml", "--seed", "0", "--out", "again")
    assert ended.status == 0 and ended.err.count("\n") == 3, "the line, and one for each row"
    assert ended.err.startswith("warning: config: made with torch 1.0 (now ")
    options = {record["id"]: record["options"] for record in read_records("again")}
    assert json.loads(options["seed0-mask_guidance"]) == {"mask_guidance": {"step_size": 77.0}}
    kept = yaml.safe_load(Path("again/config.yaml").read_text())["made_with"]["method_options"]["mask_guidance"]
    assert kept["step_size"] == 77.0 and "gone" not in kept
    ended = attnguide(*RESUME)
    assert ended.status == 0 and "8 of 8 rows are complete" in ended.out, "the old default still, so nothing differs"


# ----------------------------------------------------------------------------------------------------- what is compared


def test_rows_of_another_model_are_not_gone_on_with(run: Path, attnguide: Command) -> None:
    (run / "samples" / "seed0-plain.png").unlink()
    before = everything(run)
    path = Path("model/scheduler/scheduler_config.json")
    path.write_text(path.read_text().replace("0.012", "0.011"))
    ended = attnguide(*RESUME)
    assert (ended.status, ended.err.count("\n")) == (2, 1) and "was made with a model of fingerprint" in ended.err
    assert everything(run) == before


def test_settings_that_the_model_decides_are_compared(run: Path, attnguide: Command) -> None:
    (run / "samples" / "seed0-plain.png").unlink()
    change(lambda config: config.pop("made_with"))
    table = run / "records.csv"
    table.write_text(table.read_text().replace(",DDIMScheduler,", ",euler,"))
    ended = attnguide(*RESUME)
    assert ended.status == 2 and "was made with scheduler 'euler', not 'DDIMScheduler'" in ended.err
    change(lambda config: config.update(dtype="bf16"))
    ended = attnguide(*RESUME, "--dtype", "fp32")
    assert ended.status == 2 and '\'dtype\' ("bf16", now "fp32")' in ended.err


def test_a_run_of_a_version_without_an_option_goes_on_with_its_default_alone(run: Path, attnguide: Command) -> None:
    change(lambda config: config.pop("prompt_syntax"))
    assert attnguide(*RESUME).status == 0
    ended = attnguide(*RESUME, "--prompt-syntax", "weights")
    assert ended.status == 2 and 'another \'prompt_syntax\' ("plain", now "weights")' in ended.err


# ------------------------------------------------------------------------------------------------------- what is mended


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", None], ids=["empty", "header", "cut off"])
def test_a_broken_picture_is_made_again(run: Path, attnguide: Command, content: bytes | None) -> None:
    whole = pictures(run)
    path = run / "samples" / "seed2-mask_guidance.png"
    path.write_bytes(whole[path.name][:-30] if content is None else content)
    ended = attnguide(*RESUME)
    assert ended.status == 0 and "7 of 8 rows are complete" in ended.out
    assert pictures(run) == whole


@pytest.mark.usefixtures("no_model")
def test_doubles_and_temporary_files_are_dropped(run: Path, attnguide: Command) -> None:
    once = {name: (run / name).read_text() for name in ("records.csv", "loss_trace.csv")}
    for name, text in once.items():
        (run / name).write_text(text + text.partition("\n")[2])
    write_atomic(run / "samples" / ".seed0-plain-0a1b2c3d.png", b"half")
    ended = attnguide(*RESUME)
    assert ended.status == 0 and "8 of 8 rows are complete" in ended.out and "missing" not in ended.out
    assert {name: (run / name).read_text() for name in once} == once
    assert not (run / "samples" / ".seed0-plain-0a1b2c3d.png").exists()


@pytest.mark.usefixtures("no_model")
def test_a_folder_that_is_written_to_is_refused(run: Path, attnguide: Command) -> None:
    with locked_run(run):
        before = everything(run)
        ended = attnguide(*RESUME)
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert f"out: Folder 'run' is being written by process {os.getpid()} on " in ended.err
        assert everything(run) == before
    assert attnguide(*RESUME).status == 0


# ------------------------------------------------------------------------------------------------- what a folder may do


def _fails_after(count: int, fail: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen to the folder before the picture after ``count`` is written."""
    import attnguide.callbacks.samples as module

    true, done = module.write_picture, []

    def write(path: Path, picture: Any) -> None:
        done.append(path)
        if len(done) > count:
            fail(path)
        true(path, picture)

    monkeypatch.setattr(module, "write_picture", write)


def _full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _closed(path: Path) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@pytest.mark.parametrize(("fail", "said"), [(_full, "No space left on device"), (_closed, "Permission denied")])
def test_a_run_that_its_folder_fails_keeps_what_is_finished(
    first: Path, attnguide: Command, monkeypatch: pytest.MonkeyPatch, fail: Callable[[Path], None], said: str
) -> None:
    words = [*WORDS, "--model", str(first.parent / "model"), "--out", "run"]
    with monkeypatch.context() as patch:
        _fails_after(3, fail, patch)
        ended = attnguide("sample", *words)
    assert ended.status == 1
    line = ended.err.splitlines()[-1]
    assert line.startswith("error: ") and said in line and "--resume --out run" in line
    assert len(read_records("run")) == 2, "the batch before"
    assert attnguide(*RESUME).status == 0
    assert pictures(Path("run")) == pictures(first)
    assert len({record["id"] for record in read_records("run")}) == len(read_records("run")) == 8


@pytest.mark.parametrize("when", ["on_sample_start", "on_denoise_step_end", "on_sample_end"])
def test_a_folder_that_is_removed_ends_the_run(
    first: Path, attnguide: Command, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    true = getattr(Samples, when)
    batches: list[int] = []

    def remove(self: Samples, trainer: Any, *arguments: Any) -> None:
        batches.append(1)
        true(self, trainer, *arguments)
        if len(batches) == 2:
            shutil.rmtree("run")

    monkeypatch.setattr(Samples, when, remove)
    ended = attnguide("sample", *WORDS, "--model", str(first.parent / "model"), "--out", "run")
    assert ended.status == 1 and len(batches) == 2
    assert "'run' was removed while the run was writing to it" in ended.err.splitlines()[-1]
    assert not Path("run").exists()


def test_a_folder_that_is_removed_after_the_last_row_is_an_error(
    first: Path, attnguide: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Samples.on_predict_end

    def remove(self: Samples, *arguments: Any) -> None:
        true(self, *arguments)
        shutil.rmtree("run")

    monkeypatch.setattr(Samples, "on_predict_end", remove)
    ended = attnguide("sample", *WORDS, "--model", str(first.parent / "model"), "--out", "run")
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == "error: Folder 'run' was removed while the run was writing to it; make the run again"
    assert not Path("run").exists()
