"""Sheets, curves and heat maps of a small grid whose numbers are known."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from attnguide.ablation.axes import Axis, Point
from attnguide.ablation.cells import expand
from attnguide.ablation.outputs import places, write_outputs
from attnguide.ablation.plots import curve_colors, curves, heat, new_figure, plain_ticks, varying_metrics, write_plots
from attnguide.ablation.sheets import sheet_of
from attnguide.cli import values
from attnguide.run_folder.records import RECORD_COLUMNS
from attnguide.run_folder.tables import append_table
from attnguide.sheets.colors import css, method_color
from attnguide.sheets.sheet import run_sheet
from attnguide.types import Region, Sample

from .conftest import Read

GRID = "parameters:\n  method: {values: [inject1, inject3]}\n  method.scale: {values: [1, 2.5]}\n"
SUBJECTS = [Sample(f"seed{seed}", "a cat", seed, (Region("cat", box=(0, 0, 0.5, 1)),)) for seed in (0, 1)]
SHADES = {"plain": 250, "inject1, 1": 10, "inject1, 2.5": 60, "inject3, 1": 110, "inject3, 2.5": 160}


OVER_STEPS = "parameters:\n  steps: {values: [2, 4]}\n  method: {values: [inject1, inject3]}\n"


def test_plain_pictures_that_differ_from_left_to_right_stand_above(read: Read, tmp_path: Path) -> None:
    ablation = read(OVER_STEPS)
    rows = [row for row in expand(ablation, SUBJECTS, (), values.methods, plain=True) if row.subject == "seed0"]
    shades = {"plain, 2": 250, "plain, 4": 200, "2, inject1": 10, "4, inject1": 60, "2, inject3": 110, "4, inject3": 160}
    (tmp_path / "samples").mkdir()
    for row in rows:
        Image.new("L", (8, 8), shades[row.cell.name if row.sample.methods else f"plain, {row.sample.steps}"]).save(
            tmp_path / "samples" / f"{row.sample.id}.png"
        )
    records = {row.sample.id: {"id": row.sample.id, "regions": ""} for row in rows}
    sheet = sheet_of(tmp_path, ablation.axes, rows, records)
    assert sheet is not None
    pixels = np.asarray(sheet.convert("L")).astype(int)
    right = pixels[:, -2 * 262 :]
    shown = [(int(line[134]), int(line[262 + 134])) for line in right]
    assert [line for line in dict.fromkeys(shown) if set(line) <= set(shades.values())] == [(250, 200), (10, 60), (110, 160)]


def test_an_axis_of_one_value_is_named_above_and_takes_no_column(read: Read, tmp_path: Path) -> None:
    ablation = read("parameters:\n  method: {values: [inject1]}\n  method.scale: {values: [1, 2.5]}\n")
    rows = [row for row in expand(ablation, SUBJECTS, (), values.methods, plain=True) if row.subject == "seed0"]
    (tmp_path / "samples").mkdir()
    for row in rows:
        Image.new("L", (8, 8), SHADES[row.cell.name] if row.sample.methods else 250).save(
            tmp_path / "samples" / f"{row.sample.id}.png"
        )
    sheet = sheet_of(tmp_path, ablation.axes, rows, {row.sample.id: {"id": row.sample.id, "regions": ""} for row in rows})
    assert sheet is not None
    pixels = np.asarray(sheet.convert("L")).astype(int)
    assert [int(pixels[-134, x * 262 + 134]) for x in range(3)] == [250, 10, 60] and sheet.width < 3 * 262 + 20


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
    assert shown == [[250, 10, 110], [250, 60, 160]], "the one plain picture stands in each line"


def test_the_run_s_sheet_has_scales_across_and_seeds_down_for_each_method(read: Read, tmp_path: Path) -> None:
    _, _, records = _run(read, tmp_path)
    full = dict.fromkeys(RECORD_COLUMNS, "") | {"prompt": "a cat", "method": "x"}
    (tmp_path / "records.csv").unlink()
    for line in records.values():
        append_table(tmp_path / "records.csv", (*full, "cell", "axis.method", "axis.method.scale"), [{**full, **line}])
    sheet = run_sheet(tmp_path)
    assert sheet is not None
    pixels = np.asarray(sheet.convert("L")).astype(int)
    right = pixels[:, -3 * 262 :]
    shades = [[int(right[y, x * 262 + 134]) for x in range(3)] for y in range(right.shape[0])]
    pictures = [line for line in shades if line[0] == 250 and line[1] in SHADES.values()]
    once = [line for index, line in enumerate(pictures) if index % 256 == 0]
    assert once == [[250, 10, 60], [250, 10, 60], [250, 110, 160], [250, 110, 160]], "two methods of two seeds"


def test_a_line_of_the_sheet_is_of_one_prompt_and_scales_rise_however_rows_ended(tmp_path: Path) -> None:
    shades = {(prompt, scale): 10 + 40 * index for index, (prompt, scale) in enumerate(itertools.product("pq", ("9", "10")))}
    ended = [("q", "10"), ("p", "10"), ("p", "9"), ("q", "9")]
    rows = [
        {"id": f"{prompt}{scale}", "prompt": prompt, "seed": "0", "axis.way": "a", "axis.scale": scale, "cell": f"a, {scale}"}
        for prompt, scale in ended
    ] + [{"id": "b", "prompt": "p", "seed": "0", "axis.way": "b", "axis.scale": "10", "cell": "b, 10"}]
    (tmp_path / "samples").mkdir()
    for row in rows:
        line = {**dict.fromkeys(RECORD_COLUMNS, ""), **row, "method": "x", "status": "ok"}
        append_table(tmp_path / "records.csv", tuple(line), [line])
        shade = shades.get((row["prompt"], row["axis.scale"]), 0) if row["axis.way"] == "a" else 210
        Image.new("L", (8, 8), shade).save(tmp_path / "samples" / f"{row['id']}.png")
    sheet = run_sheet(tmp_path)
    assert sheet is not None
    pixels = np.asarray(sheet.convert("L")).astype(int)
    left = pixels.shape[1] - 2 * 262
    found = list(dict.fromkeys((int(line[left + 128]), int(line[left + 262 + 128])) for line in pixels))
    lines = [line for line in found if line[0] in {*shades.values(), 210}]
    assert lines[:2] == [(90, 130), (10, 50)] and lines[2][0] == 210 and lines[2][1] == 255, "b has one column"


def test_a_metric_that_never_changes_is_not_drawn(read: Read, tmp_path: Path) -> None:
    axes, _, records = _run(read, tmp_path)
    lines = [{**line, "same": "1"} for line in records.values()]
    assert varying_metrics(lines, axes) == ["hit"]
    for path in write_plots(tmp_path, axes, lines):
        assert path.name.startswith("hit-")


def test_ticks_are_the_values_of_the_axis_written_out(read: Read, tmp_path: Path) -> None:
    figure, plot = new_figure(3, 2)
    plot.plot([0.25, 4], [1, 1e5])
    plot.set_xscale("log", base=2)
    plain_ticks(plot, [0.25, 1, 4])
    figure.canvas.draw()
    assert [label.get_text() for label in plot.get_xticklabels()] == ["0.25", "1", "4"]
    assert "20000" in [label.get_text() for label in plot.get_yticklabels()]


def test_curves_have_the_colours_of_their_methods_unless_all_are_of_one() -> None:
    inject1, stable = css(method_color("inject1")), css(method_color("stable"))
    assert curve_colors(["inject1", "stable"]) == [inject1, stable]
    assert curve_colors(["inject1", "inject1"]) == ["C0", "C1"] and curve_colors([""]) == ["C0"]
    first, second, other = curve_colors(["stable", "stable", "inject1"])
    assert (first, other) == (stable, inject1) and second not in (stable, inject1)
    lighter = [int(second[at : at + 2], 16) - int(stable[at : at + 2], 16) for at in (1, 3, 5)]
    assert min(lighter) >= 0 and max(lighter) > 50


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
