"""Prompts of different lengths in one table, of models whose texts are as long as their prompts."""

import csv
from pathlib import Path

import pytest

from tests.models import families

from .conftest import Command

ROWS = """
- {id: long, prompt: a red cat and a blue ball, regions: {red cat: [0, 0, 0.5, 1]}}
- {id: short, prompt: a dog, regions: {dog: [0, 0, 0.5, 1]}}
"""


@pytest.mark.parametrize("family", [name for name in ("lumina2", "z_image") if name in families.available()])
def test_rows_of_different_lengths_share_a_batch(attnguide: Command, tmp_path: Path, family: str) -> None:
    families.shared(family).save_pretrained(tmp_path / family)
    Path("rows.yaml").write_text(ROWS)
    words = ["--model", str(tmp_path / family), "--method", "layout_guidance", "--height", "32", "--width", "32"]
    words += ["--steps", "2", "--no-plain", "--no-maps", "--no-norms", "--logger", "none"]
    losses = []
    for size in ("1", "2"):
        ended = attnguide("sample", "--rows", "rows.yaml", *words, "--batch-size", size, "--out", f"by{size}")
        assert ended.status == 0, ended.err
        with Path(f"by{size}", "records.csv").open() as file:
            records = list(csv.DictReader(file))
        assert [record["status"] for record in records] == ["ok", "ok"]
        losses.append([float(record["loss_layout_guidance"]) for record in records])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
