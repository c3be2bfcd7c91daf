"""Places are drawn where they are, with the area they have, at any map size; bad places are named."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from attnguide.prompt.masks import load_mask
from attnguide.prompt.regions import check_region, rasterise
from attnguide.types import Region
from tests.prompt.places import boxes, corners

_SIDES = st.integers(1, 19)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_box_by_hand() -> None:
    expected = torch.tensor([[0.0, 0, 0, 0], [0.5, 1, 0.25, 0]])
    torch.testing.assert_close(rasterise(Region("cat", box=(0.125, 0.5, 0.5625, 1.0)), 2, 4), expected)


@given(boxes(), _SIDES, _SIDES)
def test_box_keeps_its_area(box: tuple[float, float, float, float], height: int, width: int) -> None:
    cells = rasterise(Region("cat", box=box), height, width)
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert cells.shape == (height, width)
    assert cells.dtype == torch.float32
    assert 0 <= cells.min() and cells.max() <= 1
    assert cells.double().sum().item() == pytest.approx(area * height * width, rel=1e-5, abs=1e-9)


@given(boxes(), _SIDES, _SIDES)
def test_polygon_of_four_corners_is_the_box(box: tuple[float, float, float, float], height: int, width: int) -> None:
    drawn = rasterise(Region("cat", polygon=corners(box)), height, width)
    torch.testing.assert_close(drawn, rasterise(Region("cat", box=box), height, width), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 12), (1, 1)])
@pytest.mark.parametrize(
    ("polygon", "area"),
    [
        (((0, 0), (1, 0), (0, 1)), 0.5),
        (((0.5, 0.1), (0.9, 0.5), (0.5, 0.9), (0.1, 0.5)), 0.32),
        (((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.5, 0.3), (0.1, 0.9)), 0.64 - 0.24),  # concave
        (((0, 0), (1, 1), (1, 0), (0, 1)), 0.5),  # crosses itself: two triangles
    ],
)
def test_polygon_keeps_its_area(polygon: tuple[tuple[float, float], ...], area: float, height: int, width: int) -> None:
    for turned in (polygon, polygon[::-1], polygon[1:] + polygon[:1]):
        cells = rasterise(Region("cat", polygon=turned), height, width)
        assert cells.mean().item() == pytest.approx(area, abs=0.005)
        assert 0 <= cells.min() and cells.max() <= 1


def test_polygon_by_hand() -> None:
    expected = torch.tensor([[1.0, 0.5], [0.5, 0.0]])
    torch.testing.assert_close(rasterise(Region("cat", polygon=((0, 0), (1, 0), (0, 1))), 2, 2), expected, rtol=0, atol=1e-6)


def test_polygon_outside_is_clipped() -> None:
    wide = ((-1.0, -1.0), (0.5, -1.0), (0.5, 2.0), (-1.0, 2.0))
    torch.testing.assert_close(rasterise(Region("cat", polygon=wide), 2, 4), torch.tensor([[1.0, 1, 0, 0]] * 2))


def test_blob_is_the_cell_mean_of_a_gaussian_with_peak_one() -> None:
    blob = (0.3, 0.6, 0.2, 0.1)
    x, y = (torch.arange(1200).double() + 0.5) / 1200, (torch.arange(1000).double() + 0.5) / 1000
    fine = torch.outer(torch.exp(-0.5 * ((y - 0.6) / 0.1) ** 2), torch.exp(-0.5 * ((x - 0.3) / 0.2) ** 2))
    expected = fine.reshape(5, 200, 12, 100).mean((1, 3)).float()
    torch.testing.assert_close(rasterise(Region("cat", blob=blob), 5, 12), expected, rtol=1e-4, atol=1e-6)
    assert rasterise(Region("cat", blob=blob), 401, 401).max().item() == pytest.approx(1, abs=1e-3)


def test_narrow_blob_never_vanishes() -> None:
    assert rasterise(Region("cat", blob=(0.5, 0.5, 0.001, 0.001)), 8, 8).max() > 0


def test_mask_shrinks_by_area() -> None:
    mask = torch.zeros(4, 6)
    mask[:2, :3] = 1
    mask[3, 5] = 0.5
    expected = torch.tensor([[1.0, 0.0], [0.0, 0.5 / 6]])
    torch.testing.assert_close(rasterise(Region("cat", mask=mask), 2, 2), expected)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_mask_shrinking_keeps_the_mean(rows: int, columns: int, less_rows: int, less_columns: int, seed: int) -> None:
    mask = torch.rand(rows + less_rows, columns + less_columns, generator=torch.Generator().manual_seed(seed))
    assert rasterise(Region("cat", mask=mask), rows, columns).mean().item() == pytest.approx(mask.mean().item(), abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(3, 5), (7, 11), (6, 5)])
def test_mask_grows_bilinearly(height: int, width: int) -> None:
    mask = torch.rand(3, 5)
    expected = torch.nn.functional.interpolate(mask[None, None], (height, width), mode="bilinear")[0, 0]
    torch.testing.assert_close(rasterise(Region("cat", mask=mask), height, width), expected)


def test_mask_may_grow_one_way_and_shrink_the_other() -> None:
    mask = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(rasterise(Region("cat", mask=mask), 3, 2), torch.tensor([[0.0, 1.0]] * 3))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.bfloat16, torch.int64])
def test_mask_of_any_dtype(dtype: torch.dtype) -> None:
    mask = torch.eye(4).to(dtype)
    torch.testing.assert_close(rasterise(Region("cat", mask=mask), 2, 2), torch.eye(2) / 2)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 4, 4), "mask must have axes height width; got the shape (1, 4, 4)"),
        (torch.full((4, 4), 255.0), "mask must lie in [0, 1]; got 255 to 255"),
        (torch.full((4, 4), float("nan")), "mask must lie in [0, 1]; got nan to nan"),
    ],
)
def test_bad_mask_tensor(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"Region 'cat': {message}")):
        rasterise(Region("cat", mask=mask), 4, 4)


def test_rasterise_needs_a_place_and_a_size() -> None:
    with pytest.raises(ValueError, match="Region 'cat' has no place; give it a box, polygon, blob or mask"):
        rasterise(Region("cat"), 4, 4)
    with pytest.raises(ValueError, match="height and width must be at least 1; got 0x4"):
        rasterise(Region("cat", box=(0, 0, 1, 1)), 0, 4)


def test_mask_file_by_alpha(tmp_path: Path) -> None:
    pixels = np.full((2, 3, 4), 255, dtype=np.uint8)
    pixels[:, :2, 3] = [0, 51]
    expected = torch.tensor([[0.0, 0.2, 1.0]] * 2)
    torch.testing.assert_close(load_mask(save(tmp_path / "alpha.png", pixels)), expected)


def test_mask_file_by_luminance_where_alpha_is_constant(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[0, :, :3] = 255
    torch.testing.assert_close(load_mask(save(tmp_path / "opaque.png", pixels)), torch.tensor([[1.0] * 3, [0.0] * 3]))


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("grey.png", np.array([[0, 255]], dtype=np.uint8), [[0.0, 1.0]]),
        ("deep.png", np.array([[0, 13107, 65535]], dtype=np.uint16), [[0.0, 0.2, 1.0]]),
        ("bits.png", np.array([[False, True]]), [[0.0, 1.0]]),
        ("float.tiff", np.array([[0.0, 0.25, 1.0]], dtype=np.float32), [[0.0, 0.25, 1.0]]),
        ("colour.png", np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8), [[0.0, 1.0]]),
    ],
)
def test_mask_files_of_other_kinds(tmp_path: Path, name: str, pixels: np.ndarray, expected: list[list[float]]) -> None:
    torch.testing.assert_close(load_mask(save(tmp_path / name, pixels)), torch.tensor(expected))


def test_mask_file_with_a_palette(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "palette.png", transparency=0)
    torch.testing.assert_close(load_mask(tmp_path / "palette.png"), torch.tensor([[0.0, 1.0]]))


def test_mask_file_is_drawn_like_its_tensor(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", np.eye(6, dtype=np.uint8) * 255)
    torch.testing.assert_close(rasterise(Region("cat", mask=path), 3, 2), rasterise(Region("cat", mask=load_mask(path)), 3, 2))


def test_mask_file_errors(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    black = save(tmp_path / "black.png", np.zeros((4, 4), dtype=np.uint8))
    whole = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:1000])
    for path, problem in [
        (tmp_path / "none.png", "does not exist"),
        (tmp_path, "is a folder; expected a picture"),
        (tmp_path / "text.png", "is not a picture that can be read"),
        (tmp_path / "half.png", "is not a picture that can be read"),
        (black, "is empty"),
    ]:
        for read in (load_mask, lambda path: check_region(Region("cat", mask=path))):
            with pytest.raises(ValueError, match=re.escape(f"Mask file '{path}' {problem}")):
                read(path)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (Region("cow", box=(0, 0, 1, 1)), "Phrase 'cow' does not occur in the prompt 'a cat'."),
        (Region("cat", polygon=((0, 0), (1, 1), (0.5, 0.5))), "Region 'cat' has no area (polygon (0.00, 0.00)"),
        (
            Region("cat", polygon=((0, 0), (1.5, 0), (1, 1))),
            "Region 'cat': polygon corners must lie in [0, 1]; got (1.5, 0.0).",
        ),
        (Region("cat", mask=torch.zeros(4, 4)), "Region 'cat' has no area (mask of shape (4, 4))."),
    ],
)
def test_check_region_finds(region: Region, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_region(region, "a cat")


@pytest.mark.parametrize(
    "region",
    [
        Region("cat"),
        Region("cat", box=(0.5, 0.5, 0.5001, 0.5001)),
        Region("cat", blob=(0, 0, 1e-3, 1e-3)),
        Region("elsewhere", token_indices=(1,)),
    ],
)
def test_check_region_passes(region: Region) -> None:
    check_region(region, "a cat")
    check_region(region)


def test_bad_places_are_found_without_torch() -> None:
    code = (
        "import sys; from attnguide.prompt.notation import parse_region; from attnguide.prompt.regions import check_region\n"
        "check_region(parse_region('cat=0,0,0.5,1'), 'a cat')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
