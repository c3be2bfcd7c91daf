"""Losses to file and record."""

from pathlib import Path

import pytest

from attnguide.callbacks import LossTrace, RunFolder
from attnguide.run_folder.records import read_records
from attnguide.run_folder.tables import read_table
from attnguide.types import MethodConfig
from tests.callbacks.conftest import Run, row


def test_every_guide_pass_has_its_line(run: Run, tmp_path: Path) -> None:
    guided = [
        row(id, seed=seed, methods=(MethodConfig("mask_guidance", {"stop": 0.5, "iterations": 2}),))
        for id, seed in (("a", 0), ("b", 1))
    ]
    run([LossTrace(), RunFolder(sheet=False)], [*guided, row("p")])
    lines = read_table(tmp_path / "loss_trace.csv")
    assert [(line["id"], line["step"], line["iteration"]) for line in lines] == [
        (id, step, iteration) for step in "01" for iteration in "01" for id in "ab"
    ]
    assert all(
        line["moved"] == "1" and float(line["gradient_norm"]) > 0 and line["method"] == "mask_guidance" for line in lines
    )
    records = {record["id"]: record for record in read_records(tmp_path)}
    assert float(records["b"]["loss_mask_guidance"]) == pytest.approx(float(lines[-1]["loss"]))
    assert records["p"]["loss_mask_guidance"] == ""
    assert records["a"]["unet_backwards"] == "4" and records["p"]["unet_backwards"] == "0"


def test_plain_rows_leave_no_file(run: Run, tmp_path: Path) -> None:
    run([LossTrace()], [row("p")])
    assert not (tmp_path / "loss_trace.csv").exists()
