"""The run folder, its resumption and its sheet."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from PIL import Image

from attnguide.callbacks import AttentionMapsLogger, LossTrace, MapNorms, RunFolder, Samples, SamplingCallback
from attnguide.data import SampleDataModule
from attnguide.module import GuidanceModule, make_trainer
from attnguide.rows.tables import read_samples
from attnguide.run_folder.records import RECORD_COLUMNS, complete_ids, read_records
from attnguide.run_folder.tables import read_table
from attnguide.sampling.table import sample_rows
from attnguide.sheets.sheet import run_sheet
from attnguide.types import MethodConfig, Sample, SampleResult
from tests import tiny
from tests.callbacks.conftest import Run, row


def brightness(result: SampleResult) -> dict[str, float]:
    assert result.image is not None
    return {"brightness": float(np.asarray(result.image).mean())}


def test_everything_is_there(run: Run, tmp_path: Path) -> None:
    rows = [row("a-plain"), row("a", "mask_guidance"), row("b", seed=1, tags={"kind": "x"})]
    folder = RunFolder(scorer=brightness)
    run([Samples(), folder], rows)
    records = read_records(tmp_path)
    assert [record["id"] for record in records] == ["a-plain", "b", "a"], "batch by batch"
    assert [name for name in records[0] if name != "brightness"] == list(RECORD_COLUMNS)
    assert {record["status"] for record in records} == {"ok"} and records[1]["tags"] == '{"kind": "x"}'
    assert (records[0]["height"], records[0]["scheduler"], records[0]["unet_forwards"]) == ("32", "DDIMScheduler", "6")
    for record, result in zip(records[:2], sample_rows(tiny.model(), [rows[0], rows[2]]), strict=True):
        with Image.open(tmp_path / "samples" / f"{record['id']}.png") as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(result.image))
            assert float(record["brightness"]) == pytest.approx(np.asarray(picture).mean(), rel=1e-4)
    assert len(folder.records) == 3
    again = read_samples(tmp_path / "config.yaml")
    assert [sample.id for sample in again] == ["a-plain", "a", "b"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 2 * 256 and sheet.height > 2 * 256
    assert {path.name for path in tmp_path.rglob(".*")} == {".lock", ".run.lock"}, "no temporary file is left"


def test_a_given_configuration_is_written_as_it_is(run: Run, tmp_path: Path) -> None:
    run([RunFolder({"steps": 3, "methods": ["x"]}, sheet=False)], [row("p", steps=1)])
    assert (tmp_path / "config.yaml").read_text() == "steps: 3\nmethods:\n- x\n"
    assert not (tmp_path / "sheet.png").exists()


def test_another_run_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    run([Samples(), RunFolder()], [row("p", steps=1)])
    before = (tmp_path / "records.csv").read_text()
    with pytest.raises(ValueError, match="already holds a run"):
        run([Samples(), RunFolder()], [row("q", steps=1)])
    assert (tmp_path / "records.csv").read_text() == before and not (tmp_path / "samples" / "q.png").exists()


class Interrupt(SamplingCallback):
    """Stops the run in its second batch."""

    def __init__(self, error: type[BaseException]) -> None:
        self.batches = 0
        self.error = error

    def on_sample_start(self, trainer, module, info) -> None:  # type: ignore[no-untyped-def]
        self.batches += 1
        if self.batches == 2:
            raise self.error


@pytest.fixture
def _signals() -> Iterator[None]:
    """Lightning ignores further interrupts after the first."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


ROWS = [row(id, "mask_guidance", seed=seed) for seed, id in enumerate("abc")]


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(("error", "raised"), [(RuntimeError, RuntimeError), (KeyboardInterrupt, SystemExit)])
def test_a_stopped_run_keeps_its_rows_and_goes_on(
    tmp_path: Path, error: type[BaseException], raised: type[BaseException]
) -> None:
    def go(callbacks: Sequence[L.Callback], resume: bool, skip: Sequence[str] = ()) -> None:
        tables = [MapNorms(), LossTrace(), Samples(), RunFolder(resume=resume)]
        trainer = make_trainer(tmp_path, callbacks=[*tables, *callbacks], device="cpu")
        data = SampleDataModule(ROWS, 1, skip=skip)
        trainer.predict(GuidanceModule(tiny.model()), datamodule=data, return_predictions=False)

    with pytest.raises(raised):
        go([Interrupt(error)], resume=False)
    done = complete_ids(tmp_path, ROWS)
    assert done == {"a"} and (tmp_path / "sheet.png").exists()
    (tmp_path / "samples" / "a.png").write_bytes(kept := (tmp_path / "samples" / "a.png").read_bytes())
    with (tmp_path / "map_norms.csv").open("a") as file:
        file.write("b,0,before\n")
    (tmp_path / "own.csv").write_text(own := "id,note\nb,the user's\n")
    go([], resume=True, skip=sorted(done))
    assert (tmp_path / "own.csv").read_text() == own, "not the run's to touch"
    assert [record["id"] for record in read_records(tmp_path)] == ["a", "b", "c"]
    assert (tmp_path / "samples" / "a.png").read_bytes() == kept
    for name in ("map_norms.csv", "loss_trace.csv"):
        ids = [line["id"] for line in read_table(tmp_path / name)]
        assert {id: ids.count(id) for id in "abc"} == dict.fromkeys("abc", len(ids) // 3), name
    straight = {result.sample.id: result for result in sample_rows(tiny.model(), ROWS, batch_size=1)}
    for id in "abc":
        with Image.open(tmp_path / "samples" / f"{id}.png") as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(straight[id].image))


def _content(folder: Path) -> dict[str, object]:
    """Pictures, maps and numbers of a run; its times aside."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".png", ".npy") and path.parent != folder]
    tables = {name: read_table(folder / name) for name in ("records.csv", "map_norms.csv", "loss_trace.csv")}
    for line in tables["records.csv"]:
        line.pop("seconds"), line.pop("peak_memory_mb")
    ordered = {name: sorted(map(repr, lines)) for name, lines in tables.items()}
    return {**{str(path.relative_to(folder)): path.read_bytes() for path in files}, **ordered}


def test_a_run_that_goes_on_within_a_batch_is_the_run_to_the_bit(run: Run, tmp_path: Path) -> None:
    rows = [row(id, "mask_guidance", seed=seed) for seed, id in enumerate("abcd")] + [row("e"), row("f", "forward_layout")]

    def callbacks(**options: bool) -> list[L.Callback]:
        return [MapNorms(), LossTrace(), AttentionMapsLogger(), Samples(), RunFolder(sheet=False, **options)]

    run(callbacks(), rows, 3)
    whole = _content(tmp_path)
    for name in ("b", "d", "f"):
        (tmp_path / "samples" / f"{name}.png").write_bytes(b"")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("samples/[ace].png")}
    trainer = make_trainer(tmp_path, callbacks=callbacks(resume=True), device="cpu")
    data = SampleDataModule(rows, 3, skip=complete_ids(tmp_path, rows))
    trainer.predict(GuidanceModule(tiny.model()), datamodule=data, return_predictions=False)
    assert [sample.id for sample in data.remaining] == ["b", "d", "f"]
    assert _content(tmp_path) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished rows keep their files"


def test_a_row_that_breaks_is_recorded_with_step_and_method(run: Run, tmp_path: Path) -> None:
    broken = row("bad", methods=(MethodConfig("mask_guidance", {"scale": 1e38, "stop": 1.0}),))
    fine = row("good", methods=(MethodConfig("mask_guidance", {"scale": 1.0, "stop": 1.0}),))
    run([Samples(), RunFolder()], [broken, fine])
    records = {record["id"]: record for record in read_records(tmp_path)}
    assert "step 0" in records["bad"]["status"] and "mask_guidance" in records["bad"]["status"]
    assert records["good"]["status"] == "ok"
    assert [file.name for file in (tmp_path / "samples").iterdir()] == ["good.png"]
    assert complete_ids(tmp_path, [broken, fine]) == {"good"}


def test_the_sheet_pairs_methods_of_the_same_seed(run: Run, tmp_path: Path) -> None:
    def scaled(id: str, seed: int, scale: float) -> Sample:
        return row(id, seed=seed, steps=1, methods=(MethodConfig("mask_guidance", {"scale": scale}),))

    rows = [scaled("s1", 0, 1.0), scaled("s2", 0, 2.0), row("p0", steps=1), scaled("t1", 1, 1.0), row("p0-again", steps=1)]
    run([Samples(), RunFolder(sheet=False)], rows)
    one = run_sheet(tmp_path, limit=1)
    full = run_sheet(tmp_path)
    assert one is not None and full is not None
    assert one.width == full.width > 3 * 256 and full.height > 3 * 256 > one.height
    assert run_sheet(tmp_path / "empty") is None
