"""Sheets, curves and heat maps of a small grid whose numbers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from attnguide.ablation.axes import Axis, Point
from attnguide.ablation.cells import expand
from attnguide.ablation.outputs import places, write_outputs
from attnguide.ablation.plots import curves, heat, write_plots
from attnguide.ablation.sheets import sheet_of
from attnguide.cli import values
from attnguide.run_tables import append_table
from attnguide.types import Region, Sample

from .conftest import Read

GRID = "parameters:\n  method: {values: [inject1, inject3]}\n  method.scale: {values: [1, 2.5]}\n"
SUBJECTS = [Sample(f"seed{seed}", "a cat", seed, (Region("cat", box=(0, 0, 0.5, 1)),)) for seed in (0, 1)]
SHADES = {"plain": 250, "inject1, 1": 10, "inject1, 2.5": 60, "inject3, 1": 110, "inject3, 2.5": 160}


def _number(x: str, function: str, seed: int) -> float:
    return float(x) + (10 if function == "inject3" else 0) + 0.5 * seed


def _run(read: Read, folder: Path) -> tuple[tuple[Axis, ...], list, dict[str, dict[str, str]]]:
    """A finished run of two functions times two scales, its hit known, each cell's picture of one shade."""
    ablation = read(GRID)
    rows = expand(ablation, SUBJECTS, (), values.methods, plain=True)
    records = {}
    (folder / "samples").mkdir()
    for row in rows:
        tags = {key: str(value) for key, value in row.sample.tags.items()}
        hit = _number(tags["axis.method.scale"], tags["axis.method"], row.sample.seed) if "axis.method" in tags else 5.0
        line = {"id": row.sample.id, "seed": str(row.sample.seed), "regions": "", **tags, "hit": str(hit), "status": "ok"}
        records[row.sample.id] = line
        columns = ("id", "seed", "regions", "cell", "axis.method", "axis.method.scale", "hit", "status")
        append_table(folder / "records.csv", columns, [line])
        Image.new("L", (8, 8), SHADES[tags["cell"]]).save(folder / "samples" / f"{row.sample.id}.png")
    return ablation.axes, rows, records


def test_sheet_puts_every_cell_in_its_place(read: Read, tmp_path: Path) -> None:
    axes, rows, records = _run(read, tmp_path)
    members = [row for row in rows if row.subject == "seed1"]
    sheet = sheet_of(tmp_path, axes, members, records)
    assert sheet is not None
    pixels = np.asarray(sheet.convert("L")).astype(int)
    width = pixels.shape[1] // 3
    upper, lower = pixels.shape[0] // 4, 3 * pixels.shape[0] // 4 - 10
    shown = [[int(pixels[y, x * width + width // 2]) for x in range(3)] for y in (upper, lower)]
    assert shown == [[250, 10, 110], [238, 60, 160]]  # one plain picture, then grey


def test_curves_average_over_seeds(read: Read, tmp_path: Path) -> None:
    axes, _, records = _run(read, tmp_path)
    found = curves(list(records.values()), axes, axes[1], "hit")
    assert [curve.label for curve in found] == ["method = inject1", "method = inject3"]
    assert [curve.xs for curve in found] == [(1.0, 2.5)] * 2
    assert [[point.mean for point in curve.points] for curve in found] == [[1.25, 2.75], [11.25, 12.75]]
    assert all(point.n == 2 and point.low < point.mean < point.high for curve in found for point in curve.points)


def test_many_combinations_are_drawn_by_the_first_axis(read: Read, tmp_path: Path) -> None:
    axes, _, records = _run(read, tmp_path)
    third = Axis("more", tuple(Point(value, {}, 1) for value in range(20)))
    lines = [{**line, "axis.more": str(index % 20)} for index, line in enumerate(records.values())]
    assert len(curves(lines, (*axes, third), axes[1], "hit")) == 2


def test_heat_has_a_number_for_each_two_values(read: Read, tmp_path: Path) -> None:
    axes, _, records = _run(read, tmp_path)
    table = heat(list(records.values()), axes, axes[0], axes[1], "hit")
    assert [[cell.mean for cell in line if cell] for line in table] == [[1.25, 11.25], [2.75, 12.75]]


def test_everything_is_written_and_named(read: Read, tmp_path: Path) -> None:
    axes, rows, _ = _run(read, tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in write_outputs(tmp_path, axes, rows)}
    assert files == {
        "summary.csv",
        "sheets/seed0.png",
        "sheets/seed1.png",
        "plots/hit-over-method.scale.png",
        "plots/hit-over-method-and-method.scale.png",
    }
    for name in files - {"summary.csv"}:
        assert len(np.unique(np.asarray(Image.open(tmp_path / name).convert("L")))) > 5
    assert [path.name for path, _ in places(tmp_path)] == ["summary.csv", "sheets", "plots", "samples", "records.csv"]


def test_nothing_is_drawn_of_nothing(read: Read, tmp_path: Path) -> None:
    axes = read(GRID).axes
    assert list(write_outputs(tmp_path, axes, [])) == [] and list(write_plots(tmp_path, axes, [])) == []
