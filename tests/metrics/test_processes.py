"""Metrics of two processes that each saw half of the pictures: this one and a new one."""

from __future__ import annotations

import os
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed

from attnguide.judges.base import Asked, AskedObject, Detection, Seen
from attnguide.metrics import AveragePrecision, object_metrics
from attnguide.types import Region, Sample

PATIENCE = timedelta(minutes=2)
BOX = (0.1, 0.1, 0.5, 0.5)


def pictures() -> tuple[list[Seen], list[Asked]]:
    """Ten pictures, each with its object a little further off than the last."""
    moved = [tuple(edge + 0.03 * index for edge in BOX) for index in range(10)]
    seen = [Seen((Detection("dog", box, 1 - 0.05 * index),)) for index, box in enumerate(moved)]  # type: ignore[arg-type]
    return seen, [Asked("a dog", (AskedObject("dog", boxes=(BOX,)), AskedObject("cat")))] * len(seen)


def measured(first: int, step: int) -> dict[str, float]:
    seen, asked = (one[first::step] for one in pictures())
    metrics, precision = object_metrics(), AveragePrecision()
    metrics.update(seen, asked)
    precision.update(seen, asked)
    return {**{name: float(value) for name, value in metrics.compute().items()}, "ap": float(precision.compute())}


def closed(folder: Path) -> None:
    """Compare the one picture of a run."""
    from attnguide.evaluation.compare import compare_folder

    sample = Sample("a", "a dog", regions=(Region("dog", box=BOX),), tags={"arm": "plain", "subject": "0"})
    (folder / "records.csv").write_text("id,status,unet_forwards,unet_backwards,seconds\na,ok,1,0,1.0\n")
    judged = 'id,judge,numbers,detections\na,detector,{},"[[""dog"", [0.1, 0.1, 0.5, 0.5], 0.9]]"\n'
    (folder / "judged.csv").write_text(judged)
    assert compare_folder(folder, [sample], {}).totals == {("plain", "ap"): 1.0}


def half(rank: int, folder: str) -> None:
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=PATIENCE)
    try:
        torch.save(measured(rank, 2), Path(folder, f"{rank}.pt"))
        if rank == 0:  # a comparison is closed by one process, while others wait for nothing
            closed(Path(folder))
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    other = get_context("spawn").Process(target=half, args=(1, str(tmp_path)))
    other.start()
    half(0, str(tmp_path))
    other.join()
    alone = measured(0, 1)
    assert 0 < alone["ap"] < 1 and 0 < alone["iou"] < 1
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(alone, abs=1e-6, nan_ok=True)
