"""Grids of pictures, and colours of methods."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from attnguide.methods import METHODS
from attnguide.sheets.colors import css, method_color
from attnguide.sheets.grid import Grid, contact_sheet, draw_grids, strip

RED = Image.new("RGB", (32, 32), (255, 0, 0))


def _fields(sheet: Image.Image, color: tuple[int, int, int]) -> int:
    """How many pictures of one colour stand on a sheet, by connected rows and columns of it."""
    found = (np.asarray(sheet) == color).all(-1)
    rows, columns = found.any(1), found.any(0)
    return int((np.diff(rows.astype(int)) == 1).sum()) * int((np.diff(columns.astype(int)) == 1).sum())


def test_sheets_have_a_field_for_every_cell() -> None:
    sheet = contact_sheet([[RED, None], [None, RED]], column_labels=["plain", "b"], row_labels=["one", "two"], cell=32)
    red_cells = (np.asarray(sheet) == (255, 0, 0)).all(-1)
    assert red_cells.sum() == 2 * 32 * 32
    columns = np.nonzero(red_cells.any(0))[0]
    assert columns.max() - columns.min() > 64
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([[None]])
    with pytest.raises(ValueError, match="one label per picture"):
        strip([RED], [])
    assert strip([RED, RED], ["a", "b"]).width > 64


def test_a_grid_of_forty_columns_is_folded_and_its_first_column_repeated() -> None:
    plain, others = Image.new("RGB", (256, 256), (0, 0, 255)), [Image.new("RGB", (256, 256), (255, 0, 0))] * 40
    labels = ["plain", *(f"method.scale = {index / 10}" for index in range(40))]
    sheet = draw_grids([Grid([[plain, *others]], labels, ["seed 0"], kept=1)], title="a prompt")
    assert sheet.width < 1800 and _fields(sheet, (0, 0, 255)) == 5, "five grids of plain and eight"
    assert _fields(sheet, (255, 0, 0)) == 5 * 8
    red = (np.asarray(sheet) == (255, 0, 0)).all(-1)
    assert red.any(0).sum() >= 8 * 128, "pictures are at least 128 pixels wide"


def test_labels_and_colours_stand_above_their_columns_and_beside_their_rows() -> None:
    bare = draw_grids([Grid([[RED, RED]])], cell=64)
    full = draw_grids([Grid([[RED, RED]], ["a", "b"], ["seed 0"], "title", [(0, 200, 0), None])], title="whole", cell=64)
    assert full.width > bare.width and full.height > bare.height
    pixels = np.asarray(full)
    green, red = (pixels == (0, 200, 0)).all(-1), (pixels == (255, 0, 0)).all(-1)
    columns = np.nonzero(red.any(0))[0]
    assert np.nonzero(green.any(0))[0].tolist() == columns[:64].tolist(), "over the first picture alone"
    assert np.nonzero(green.any(1))[0].max() < np.nonzero(red.any(1))[0].min()
    dark = (pixels.max(-1) < 160) & ~green
    assert dark[:, : columns.min()].any(), "the seed stands to the left"


def test_methods_keep_their_colours_and_differ() -> None:
    colors = {name: method_color(name) for name in ("plain", *METHODS)}
    pairs = itertools.combinations(np.array(list(colors.values()), dtype=float), 2)
    assert min(np.linalg.norm(one - other) for one, other in pairs) > 35, "no two of all methods are the same to the eye"
    assert method_color("inject5+stable") == method_color("inject5+stable") != method_color("inject5")
    assert css((255, 0, 16)) == "#ff0010"
