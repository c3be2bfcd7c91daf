"""Two processes share a table; in a process of its own, because it forks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnguide.run_folder.records import read_records
from attnguide.run_folder.tables import read_table

ROOT = Path(__file__).parents[1]

CODE = """
import sys
import torch
torch.set_num_threads(1)
from dataclasses import replace
from attnguide.callbacks import standard_callbacks
from attnguide.data import SampleDataModule
from attnguide.evaluation.callback import EvalLog
from attnguide.judges import Detection, Judge, Seen
from attnguide.loggers import make_loggers
from attnguide.module import GuidanceModule, make_trainer
from tests import tiny
from tests.callbacks.conftest import row

class Finder(Judge):
    name, finds_objects = "finder", True

    def look(self, pictures, asked):
        return [Seen(tuple(Detection(one.label, one.boxes[0]) for one in own.objects if one.boxes)) for own in asked]


rows = [row(f"r{index}", "mask_guidance", seed=index) for index in range(int(sys.argv[2]))]
rows = [replace(one, tags={"arm": "mask_guidance", "subject": one.id}) for one in rows]
judged = standard_callbacks(progress=False, values=True, judges=[Finder()])
trainer = make_trainer(
    sys.argv[1],
    callbacks=[*judged, EvalLog(rows, {}, "two processes", {})],
    loggers=make_loggers(["csv"], sys.argv[1]),
    device="cpu",
    devices=2,
    strategy="ddp_fork",
)
trainer.predict(GuidanceModule(tiny.model()), datamodule=SampleDataModule(rows, 1), return_predictions=False)
"""


@pytest.mark.parametrize("count", [1, 5])
def test_every_row_is_sampled_once_and_on_record(tmp_path: Path, count: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path), str(count)], check=True, cwd=ROOT, env=environment, capture_output=True
    )
    ids = {f"r{index}" for index in range(count)}
    records = read_records(tmp_path)
    assert sorted(record["id"] for record in records) == sorted(ids) and {r["status"] for r in records} == {"ok"}
    assert {file.stem for file in (tmp_path / "samples").iterdir()} == ids
    for name in ("map_norms.csv", "loss_trace.csv", "value_invariance.csv"):
        lines = read_table(tmp_path / name)
        assert {line["id"] for line in lines} == ids, name
    totals = {line["metric"]: line for line in read_table(tmp_path / "table.csv")}
    assert totals["ap"]["mean"] == "1" and totals["presence"]["pictures"] == str(count)  # of both, closed by the first
    assert (tmp_path / "sheet.png").exists() and (tmp_path / "value_invariance.txt").exists()
