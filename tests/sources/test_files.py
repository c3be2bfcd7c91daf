"""Maps that are saved, looked at, painted on and loaded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from attnguide.prompt.masks import load_mask
from attnguide.prompt.regions import rasterise
from attnguide.sources.files import map_bytes, map_names, map_picture, target_path
from attnguide.types import Region

MASK = torch.rand(16, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(16, 12), (8, 6), (4, 3)])
def test_a_picture_is_the_mask_again(tmp_path: Path, size: tuple[int, int]) -> None:
    map_picture(MASK).save(tmp_path / "cat.png")
    assert min(Image.open(tmp_path / "cat.png").size) >= 256
    drawn, kept = Region("cat", mask=MASK), Region("cat", mask=tmp_path / "cat.png")
    assert torch.allclose(rasterise(kept, *size), rasterise(drawn, *size), atol=0.5 / 255 + 1e-6)


def test_paint_counts(tmp_path: Path) -> None:
    picture = map_picture(torch.zeros(4, 4))
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width // 2 - 1, picture.height), fill=255)
    picture.save(tmp_path / "cat.png")
    assert rasterise(Region("cat", mask=tmp_path / "cat.png"), 4, 4).tolist() == [[1, 1, 0, 0]] * 4


def test_numbers_are_stretched_and_averaged_over_steps(tmp_path: Path) -> None:
    maps = np.stack([np.array([[0.0, 2.0], [4.0, 6.0]]), np.array([[0.0, 0.0], [0.0, 2.0]])])
    (tmp_path / "cat.npy").write_bytes(map_bytes(maps))
    assert load_mask(tmp_path / "cat.npy").tolist() == [[0.0, 0.25], [0.5, 1.0]]
    (tmp_path / "flat.npy").write_bytes(map_bytes(np.full((2, 3), 0.2)))
    assert torch.equal(rasterise(Region("cat", mask=tmp_path / "flat.npy"), 4, 4), torch.ones(4, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"nothing", "not an array"), (map_bytes(np.ones(3)), "axes height width"), (map_bytes(np.array([[np.nan]])), "finite")],
)
def test_unusable_numbers(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "cat.npy").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_mask(tmp_path / "cat.npy")
    with pytest.raises(ValueError, match="does not exist"):
        load_mask(tmp_path / "gone.npy")


def test_names_differ() -> None:
    cat, dog = Region("red cat"), Region("a/b dog!")
    assert map_names([cat, dog, replace(cat, occurrence=1)]) == ["red_cat", "a_b_dog", "red_cat~2"]
    assert target_path(Path("run"), "row", [cat, dog], 1) == Path("run/targets/row/a_b_dog.png")


def test_refuses_what_is_no_mask() -> None:
    for mask in (torch.ones(3), 2 * torch.ones(2, 2), torch.full((2, 2), float("nan"))):
        with pytest.raises(ValueError, match=r"height width in \[0, 1\]"):
            map_picture(mask)
