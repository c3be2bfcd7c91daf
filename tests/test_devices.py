"""Two processes share a table; in a process of its own, because it forks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnguide.records import read_records
from attnguide.run_tables import read_table

ROOT = Path(__file__).parents[1]

CODE = """
import sys
import torch
torch.set_num_threads(1)
from attnguide.callbacks import standard_callbacks
from attnguide.data import SampleDataModule
from attnguide.loggers import make_loggers
from attnguide.module import GuidanceModule, make_trainer
from tests import tiny
from tests.callbacks.conftest import row

rows = [row(f"r{index}", "mask_guidance", seed=index) for index in range(int(sys.argv[2]))]
trainer = make_trainer(
    sys.argv[1],
    callbacks=standard_callbacks(progress=False, values=True),
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
    assert (tmp_path / "sheet.png").exists() and (tmp_path / "value_invariance.txt").exists()
