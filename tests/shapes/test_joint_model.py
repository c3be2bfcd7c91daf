"""What measures the joint-attention model, mostly on random weights: benchmark by command and by script, blocks one by one."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attnguide import benchmark
from attnguide.cli import main
from attnguide.judges.patches import seen_patches
from attnguide.judges.shapes import asked_from_caption
from attnguide.metrics.functional import score
from attnguide.models.load import load_model
from attnguide.run_folder.records import read_records
from attnguide.sampling.table import sample_rows
from attnguide.shapes.renderer import SIDE
from attnguide.shapes.scene import COLORS, SHAPES
from attnguide.types import MethodConfig, Region, Sample
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
    assert said.getvalue().count("all_present") == 2 and "by colour alone" in said.getvalue()  # a table for either judge
    monkeypatch.setattr(sys, "argv", ["bench_shapes.py", *words, "--true-cfg-scale", "3"])
    with pytest.raises(SystemExit, match=r"holds pictures made with .*2\.0"):
        runpy.run_path(str(ROOT / "scripts" / "bench_shapes.py"), run_name="__main__")
    lines = [line.split() for line in said.getvalue().splitlines() if "_blocks." in line]
    assert [line[0] for line in lines] == [
        f"{part}transformer_blocks.{n}.attn" for part, n in (("", 0), ("single_", 0), ("single_", 1))
    ]
    assert all(line[1] == "1" and line[3] == "0.500" and 0 < float(line[2]) < 1 for line in lines)


def test_moved_attention_places_what_the_embedded_model_draws() -> None:
    """By colour, since this model draws shapes badly: boxes that plain pictures leave empty are filled."""
    prompt, boxes = (
        "a red circle and a blue square",
        {"red circle": (0.05, 0.3, 0.45, 0.7), "blue square": (0.55, 0.3, 0.95, 0.7)},
    )
    layout = asked_from_caption(prompt)
    assert layout is not None
    asked = replace(layout, objects=tuple(replace(one, boxes=(boxes[one.label],)) for one in layout.objects))
    regions = tuple(Region(phrase, box=box) for phrase, box in boxes.items())
    common: dict[str, Any] = {"steps": 12, "true_cfg_scale": 2.0, "negative_prompt": ""}
    hits: dict[str, list[float]] = {}
    rows = [
        Sample(f"{name}-{seed}", prompt, seed=seed, regions=regions, methods=methods, tags={"arm": name}, **common)
        for seed in range(4)
        for name, methods in (("plain", ()), ("moved", (MethodConfig("forward_layout"),)))
    ]
    for result in sample_rows(load_model("shapes-mmdit", device="cpu"), rows, batch_size=8):
        assert result.image is not None
        found = score(seen_patches(result.image, asked), asked)
        hits.setdefault(str(result.sample.tags["arm"]), []).append(found["region_hit"])
    assert fmean(hits["moved"]) > fmean(hits["plain"]) + 0.3
