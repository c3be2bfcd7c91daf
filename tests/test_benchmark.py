"""What a benchmark folder holds and whose records come back, with rendered scenes instead of samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from attnguide import benchmark
from attnguide.benchmark import OtherSettingsError, layout_samples, read_records, run_benchmark
from attnguide.shapes.layouts import Layout, layout_scene
from attnguide.shapes.renderer import render
from attnguide.types import Cost, Sample, SampleResult

LAYOUTS = [
    Layout(f"{color}", "single", f"a {color} circle", (f"{color} circle",), ((0.3, 0.3, 0.7, 0.7),))
    for color in ("red", "blue")
]
SETTINGS = {"model": "shapes", "weights": "0123", "steps": 2}
MODEL: Any = None


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the rows that were sampled; each picture shows what its row asks for."""
    ids: list[str] = []

    def sample_rows(model: object, rows: Sequence[Sample], **_: object) -> Iterator[SampleResult]:
        for row in rows:
            ids.append(row.id)
            (layout,) = (one for one in LAYOUTS if one.prompt == row.prompt)
            yield SampleResult(row, render(layout_scene(layout)), None, Cost(2, 0, 0.5, 0.5))

    monkeypatch.setattr(benchmark, "sample_rows", sample_rows)
    return ids


def test_records_are_of_the_rows_asked_for_whatever_else_the_folder_holds(sampled: list[str], tmp_path: Path) -> None:
    rows = layout_samples(LAYOUTS, [0, 1], steps=2)
    assert len(run_benchmark(MODEL, LAYOUTS, rows, tmp_path)) == 4
    found = run_benchmark(MODEL, LAYOUTS[1:], layout_samples(LAYOUTS[1:], [1, 2], steps=2), tmp_path)
    assert [record["id"] for record in found] == ["blue-1", "blue-2"]
    assert sampled == ["red-0", "red-1", "blue-0", "blue-1", "blue-2"]
    assert len(read_records(tmp_path / "records.csv")) == 5
    assert {json.loads(record["scores"])["presence"] for record in found} == {1.0}


def test_settings_are_kept_with_the_first_row_and_other_ones_are_refused(sampled: list[str], tmp_path: Path) -> None:
    rows, folder = layout_samples(LAYOUTS, [0], steps=2), tmp_path / "run"
    assert run_benchmark(MODEL, LAYOUTS, [], folder, settings=SETTINGS) == [] and not folder.exists()
    run_benchmark(MODEL, LAYOUTS, rows, folder, settings=SETTINGS)
    assert json.loads((folder / "settings.json").read_text()) == SETTINGS
    assert len(run_benchmark(MODEL, LAYOUTS, rows, folder, settings=SETTINGS)) == 2
    with pytest.raises(OtherSettingsError, match=r"holds pictures made with .*0123.*; give another folder for .*4567"):
        run_benchmark(MODEL, LAYOUTS, rows, folder, settings={**SETTINGS, "weights": "4567"})
    (folder / "settings.json").unlink()
    with pytest.raises(OtherSettingsError, match="settings that are not on record"):
        run_benchmark(MODEL, LAYOUTS, rows, folder, settings=SETTINGS)
    assert sampled == ["red-0", "blue-0"]


def test_settings_without_rows_bind_nobody(sampled: list[str], tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{}")
    assert len(run_benchmark(MODEL, LAYOUTS, layout_samples(LAYOUTS, [0]), tmp_path, settings=SETTINGS)) == 2
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS
