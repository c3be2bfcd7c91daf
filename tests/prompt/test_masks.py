"""Masks from files, pictures and arrays."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from attnguide.prompt.masks import mask_values, open_picture
from attnguide.prompt.regions import check_region, rasterise
from attnguide.types import Region


def _half() -> Image.Image:
    picture = Image.new("L", (8, 8))
    picture.paste(255, (0, 0, 4, 8))
    return picture


@pytest.mark.parametrize("kind", ["picture", "uint8", "bytes of a tensor", "bool", "float", "bfloat16", "ones"])
def test_masks_of_every_kind(kind: str) -> None:
    values = np.asarray(_half())
    mask = {
        "picture": _half(),
        "uint8": values,
        "bytes of a tensor": torch.from_numpy(values.copy()),
        "bool": values > 0,
        "float": values / 255,
        "bfloat16": torch.from_numpy(values / 255).bfloat16(),
        "ones": (values > 0).astype(np.uint8),
    }[kind]
    drawn = rasterise(Region("cat", mask=mask), 2, 2)  # type: ignore[arg-type]
    assert drawn.tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("mask", [np.full((2, 2), 255), np.zeros((2, 2, 3)), np.array([["a"]]), np.full((2, 2), np.nan)])
def test_arrays_that_are_no_mask(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Region 'cat': mask must"):
        mask_values("cat", mask)


def _warned(region: Region) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_region(region)
    return [str(one.message) for one in caught]


def test_black_paint_on_white_is_warned_of() -> None:
    picture = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(picture).ellipse((8, 8, 24, 24), fill="black")
    (told,) = _warned(Region("cat", mask=picture))  # type: ignore[arg-type]
    assert "looks inverted" in told and "white is inside" in told


def test_coloured_paint_is_warned_of(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 32))
    ImageDraw.Draw(picture).ellipse((8, 8, 24, 24), fill="red")
    picture.save(tmp_path / "red.png")
    (told,) = _warned(Region("cat", mask=tmp_path / "red.png"))
    assert told.startswith(f"Mask file '{tmp_path / 'red.png'}' has colours") and "white is inside" in told


def test_ordinary_masks_are_not_warned_of() -> None:
    shaped = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    ImageDraw.Draw(shaped).ellipse((8, 8, 24, 24), fill=(255, 0, 0, 255))  # the alpha is the mask
    for mask in (_half(), shaped, torch.eye(4)):
        assert _warned(Region("cat", mask=mask)) == []  # type: ignore[arg-type]


def _png(width: int, height: int) -> bytes:
    """A picture that says it is large."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_pictures_that_are_too_large_are_not_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "large.png").write_bytes(_png(side, side))
    with pytest.raises(ValueError, match=r"Mask file '.*large\.png' must have at most 67,108,864 pixels"):
        open_picture(tmp_path / "large.png", "Mask")


def test_arrays_that_lie_about_their_size(tmp_path: Path) -> None:
    path = tmp_path / "map.npy"
    np.save(path, np.ones((2, 2)))
    path.write_bytes(path.read_bytes().replace(b"(2, 2)", b"(2000, 2000)").replace(b" " * 10, b" " * 4, 1))
    with pytest.raises(ValueError, match="is not an array that can be read"):
        mask_values("cat", path)


@pytest.mark.parametrize("kind", ["complex64", "datetime64[s]", "U1"])
def test_arrays_that_hold_no_real_numbers(kind: str, tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", np.zeros((2, 2)).astype(kind))
    with pytest.raises(ValueError, match="is not an array that can be read"):
        mask_values("cat", tmp_path / "map.npy")


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: File name too long"):
        open_picture(tmp_path / ("n" * 300))
