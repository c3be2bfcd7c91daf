import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnguide.prompt.drawing import Rule, binary_mask, cell_edges, require_cell, sampled_mask, soft_mask
from attnguide.prompt.regions import rasterise
from attnguide.types import Box, Region
from tests.reference import masks as reference

POLYGON = ((0, 0), (0.05, 0), (0.05, 0.05), (0, 0.05), (0, 0.02))


def random_boxes(count: int, seed: int = 0) -> list[Box]:
    """Corners anywhere; every third box is small, and every fifth has its edges on a coarse grid, where rounding is decided."""
    source, found = random.Random(seed), []
    for number in range(count):
        reach = 0.2 if number % 3 == 0 else 1.0
        x0, y0 = source.random() * (1 - reach * 0.5), source.random() * (1 - reach * 0.5)
        x1, y1 = (first + source.random() * min(reach, 1 - first) for first in (x0, y0))
        if number % 5 == 0:
            x0, y0, x1, y1 = (round(edge * 32) / 32 for edge in (x0, y0, x1, y1))
        if x0 < x1 and y0 < y1:
            found.append((x0, y0, x1, y1))
    return found


def cells_of(mask: torch.Tensor) -> set[tuple[int, int]]:
    return {(int(row), int(column)) for row, column in mask.nonzero().tolist()}


@pytest.mark.parametrize(("rule", "published"), [("rounded", reference.rounded), ("truncated", reference.truncated)])
def test_published_rules_on_random_boxes(rule: Rule, published: Any) -> None:
    for number, box in enumerate(random_boxes(400)):
        height, width = ((16, 16), (4, 4), (8, 12), (64, 64))[number % 4]
        drawn = cells_of(binary_mask(Region("cat", box=box), height, width, rule))
        assert drawn == published(box, height, width), (box, height, width)


def test_published_rules_by_hand() -> None:
    """On 4 cells, edges at 0.5, 1.5 and 2.5 go to 0, 2 and 2; truncated, to 0, 1 and 2."""
    assert cell_edges((0.125, 0.375, 0.375, 0.625), 4, 4, "rounded") == (0, 2, 2, 2)
    assert cell_edges((0.125, 0.375, 0.375, 0.625), 4, 4, "truncated") == (0, 1, 1, 2)
    assert not binary_mask(Region("cat", box=(0.375, 0.0, 0.625, 1.0)), 4, 4, "rounded").any()


def test_by_half_and_by_the_fullest_cells() -> None:
    region = Region("cat", box=(0.1, 0.0, 0.6, 1.0))  # covers 0.6, 1, 0.4, 0 of four columns
    assert binary_mask(region, 1, 4).tolist() == [[True, True, False, False]]
    quarter = binary_mask(Region("cat", box=(0.375, 0.375, 0.625, 0.625)), 4, 4)  # a quarter of each of four cells
    assert cells_of(quarter) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    corner = binary_mask(Region("cat", box=(0.45, 0.45, 0.55, 0.6)), 4, 4)  # the lower two cells hold twice as much
    assert cells_of(corner) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert cells_of(binary_mask(Region("cat", box=(0.3, 0.3, 0.4, 0.45)), 4, 4)) == {(1, 1)}


@given(
    st.tuples(*[st.floats(0, 1, allow_subnormal=False)] * 4).filter(
        lambda box: abs(box[0] - box[1]) * abs(box[2] - box[3]) > 1e-6
    ),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_a_region_never_vanishes_by_half(edges: tuple[float, ...], height: int, width: int) -> None:
    (x0, x1), (y0, y1) = sorted(edges[:2]), sorted(edges[2:])
    region = Region("cat", box=(x0, y0, x1, y1))
    mask, cells = binary_mask(region, height, width), rasterise(region, height, width)
    assert mask.any() and not (mask & (cells == 0)).any() and mask[cells > 0.501].all()
    if cells.max() > 0.501:
        assert not (mask & (cells < 0.499)).any()


def test_places_that_are_no_boxes_know_one_rule() -> None:
    blob = Region("cat", blob=(0.5, 0.5, 0.3, 0.3))
    for rule in ("rounded", "truncated"):
        assert torch.equal(binary_mask(blob, 4, 4, rule), binary_mask(blob, 4, 4))


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="rule must be one of half, rounded, truncated; got 'floor'"):
        binary_mask(Region("cat", box=(0, 0, 1, 1)), 4, 4, "floor")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            {"box": (0.4, 0.4, 0.42, 0.42)},
            "Region 'cat' covers no cell of the 8x8 map (box (0.40, 0.40, 0.42, 0.42)); use a larger box or a finer site.",
        ),
        (
            {"blob": (0.5, 0.5, 0.01, 0.01)},
            "Region 'cat' covers no cell of the 8x8 map (blob (0.50, 0.50, 0.01, 0.01)); use a larger blob or a finer site.",
        ),
        (
            {"polygon": tuple((x / 2, y / 2) for x, y in POLYGON)},
            "Region 'cat' covers no cell of the 8x8 map (polygon (0.00, 0.00) (0.025, 0.00) (0.025, 0.025) (0.00, 0.025) ...); "
            "use a larger polygon or a finer site.",
        ),
        (
            {"mask": torch.full((8, 8), 0.02)},
            "Region 'cat' covers no cell of the 8x8 map (mask of shape (8, 8)); use a larger mask or a finer site.",
        ),
    ],
)
def test_a_region_that_vanishes_is_named(place: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        require_cell(Region("cat", **place), 8, 8)


def test_a_box_that_a_published_rule_leaves_without_cells_is_named() -> None:
    ordinary = Region("cat", box=(0.375, 0.25, 0.625, 0.75))
    require_cell(ordinary, 4, 4)
    with pytest.raises(
        ValueError, match=re.escape("no cell of the 4x4 map with its edges rounded, as the published code draws it (box (0.375")
    ):
        require_cell(ordinary, 4, 4, "rounded")


def test_a_painting_read_at_points() -> None:
    for box in random_boxes(6, seed=1):
        painted = reference.by_half(box, 64, 64)
        expected = reference.aligned_corners(painted, 64, 8)
        np.testing.assert_allclose(sampled_mask(Region("cat", box=box), 8, 8, 8, "corners"), expected, atol=1e-5)
        every_eighth = {(y // 8, x // 8) for y, x in painted if y % 8 == x % 8 == 0}
        assert cells_of(sampled_mask(Region("cat", box=box), 8, 8, 8, "nearest")) == every_eighth


@pytest.mark.parametrize(
    ("box", "fullest"),
    [((0.5, 0.5, 0.503, 0.6), 1.0), ((0.1, 0.1, 0.12, 0.12), 1.0), ((0.02, 0.0, 0.09, 1.0), 0.5), ((0.0, 0.0, 0.5, 1.0), 1.0)],
)
def test_a_soft_box_below_half_a_cell_is_grown_to_its_fullest_cell(
    box: tuple[float, float, float, float], fullest: float
) -> None:
    region = Region("cat", box=box)
    soft, cells = soft_mask(region, 8, 8), rasterise(region, 8, 8)
    assert float(soft.max()) >= fullest and float(soft.max()) <= 1
    assert torch.equal(soft >= 0.5 - 1e-6, binary_mask(region, 8, 8))
    if float(cells.max()) >= 0.5:
        assert torch.equal(soft, cells)


def test_a_soft_mask_says_itself_how_strong_it_is() -> None:
    region = Region("cat", mask=torch.full((8, 8), 0.25))
    assert torch.equal(soft_mask(region, 8, 8), rasterise(region, 8, 8))


def test_messages_keep_the_edges_of_a_narrow_box_apart() -> None:
    with pytest.raises(ValueError, match=r"\(box \(0\.50, 0\.50, 0\.5003, 0\.60\)\)"):
        require_cell(Region("cat", box=(0.5, 0.5, 0.5003, 0.6)), 8, 8)
