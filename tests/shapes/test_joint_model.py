"""What measures the joint-attention model, on random weights: benchmark by command and by script, blocks one by one."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from attnguide import benchmark
from attnguide.cli import main
from attnguide.run_folder.records import read_records
from attnguide.shapes.renderer import SIDE
from attnguide.shapes.scene import COLORS, SHAPES
from tests import joint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield joint.save(tmp_path_factory.mktemp("models") / "joint")


def test_methods_are_compared_on_it(model: str, tmp_path: Path) -> None:
    out, small = str(tmp_path / "run"), ["--limit", "1", "--seed", "0", "--steps", "2", "--best-of", "0", "--logger", "none"]
    guided = ["--true-cfg-scale", "2", "--negative-prompt", "", "--categories", "boxes"]
    methods = ["--method", "forward_layout", "--method.depths", "[0,0.4]", "--method", "mask_guidance", "--method", "stable"]
    with redirect_stdout(StringIO()):
        status = main(["eval", "development", "--model", model, *guided, *small, *methods, "--out", out])
    records = read_records(out)
    assert status == 0 and len(records) == 4 and {record["status"] for record in records} == {"ok"}
    assert "region_hit" in Path(out, "table.md").read_text()


def test_blocks_are_told_one_by_one(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of random weights hold no object to look for, so the judge sees every one in the left half, of any shape."""
    left = np.arange(SIDE) < SIDE // 2
    seen = [SimpleNamespace(color=c, shape=s, mask=np.tile(left, (SIDE, 1))) for c in COLORS for s in SHAPES]
    monkeypatch.setattr(benchmark, "judge", lambda image, likeliest: SimpleNamespace(detections=seen if likeliest else []))
    rows = ["--layouts", "development", "--categories", "single", "--prompts", "1", "--seeds", "1", "--steps", "2"]
    words = ["--model", model, *rows, "--true-cfg-scale", "2", "--blocks", "--any-shape", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["bench_shapes.py", *words])
    with redirect_stdout(StringIO()) as said:
        runpy.run_path(str(ROOT / "scripts" / "bench_shapes.py"), run_name="__main__")
    lines = [line.split() for line in said.getvalue().splitlines() if "_blocks." in line]
    assert [line[0] for line in lines] == [
        f"{part}transformer_blocks.{n}.attn" for part, n in (("", 0), ("single_", 0), ("single_", 1))
    ]
    assert all(line[1] == "1" and line[3] == "0.500" and 0 < float(line[2]) < 1 for line in lines)
