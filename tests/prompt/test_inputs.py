"""Files of input pictures: found and looked at before a model is loaded, and read at a row's size."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnguide.inputs import Control
from attnguide.prompt.inputs import absolute_row, check_inputs, fitted, mask_at, picture_at
from attnguide.rows.samples import checked_samples, sample_to_dict
from attnguide.types import MapSource, Region, Sample


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 4), "red").save("a.png")
    Image.new("L", (8, 4), 255).save("mask.png")
    Image.new("L", (4, 4), 255).save("small.png")
    Image.new("L", (8, 4), 127).save("black.png")
    Path("text.png").write_text("no picture")
    return tmp_path


def row(**given: object) -> Sample:
    return Sample("x", "a cat", **given)  # type: ignore[arg-type]


def test_sound_files_pass_and_are_read_once(folder: Path) -> None:
    sizes: dict[str, tuple[int, int]] = {}
    check_inputs(row(), sizes)
    check_inputs(row(init_image="a.png", inpaint_mask="mask.png", control=(Control("canny", "small.png"),)), sizes)
    assert sizes == {"a.png": (8, 4), "mask.png": (8, 4), "small.png": (4, 4)}
    Path("a.png").unlink()
    check_inputs(row(init_image="a.png"), sizes)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"init_image": "none.png"}, "init_image file 'none.png' does not exist"),
        ({"init_image": "."}, "init_image file '.' is a folder; expected a picture"),
        ({"init_image": "text.png"}, "init_image file 'text.png' is not a picture"),
        ({"init_image": "a.png", "inpaint_mask": "none.png"}, "inpaint_mask file 'none.png' does not exist"),
        ({"init_image": "a.png", "inpaint_mask": "small.png"}, "inpaint_mask must have the size .* 8x4 pixels; got 4x4"),
        ({"init_image": "a.png", "inpaint_mask": "black.png"}, "inpaint_mask file 'black.png' is black everywhere"),
        ({"control": (Control("canny", "none.png"),)}, "control canny file 'none.png' does not exist"),
        ({"init_image": "a.png", "strength": 0.02}, "strength 0.02 of 30 steps leaves none to make; expected at least 0.033"),
    ],
    ids=["missing", "folder", "text", "mask", "size", "black", "control", "strength"],
)
def test_files_that_cannot_be_used_end_their_row_alone(folder: Path, given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_inputs(row(**given), {})
    marked = checked_samples([row(**given), Sample("y", "a dog")])
    assert [one.problem is None for one in marked] == [False, True]


def test_paths_are_made_absolute(folder: Path) -> None:
    region = Region("cat", source=MapSource("noise", image=Path("a.png")))
    found = absolute_row(row(init_image="a.png", inpaint_mask="mask.png", control=(Control("c", "b.png"),), regions=(region,)))
    assert (found.init_image, found.inpaint_mask) == (str(folder / "a.png"), str(folder / "mask.png"))
    assert found.control[0].image == str(folder / "b.png")
    assert found.regions[0].source is not None and found.regions[0].source.image == folder / "a.png"
    assert sample_to_dict(absolute_row(found, Path("/elsewhere"))) == sample_to_dict(found)
    assert absolute_row(row(init_image="a.png"), Path("/elsewhere")).init_image == "/elsewhere/a.png"
    plain = row()
    assert absolute_row(plain) is plain


def test_pictures_are_stretched_to_the_row(folder: Path) -> None:
    assert picture_at("a.png", (16, 24), "init_image").size == (24, 16)
    assert picture_at("mask.png", (4, 8), "init_image").mode == "RGB"
    values = np.array([[0, 127, 128, 255]], dtype=np.uint8)
    Image.fromarray(values).save("grey.png")
    assert np.asarray(mask_at("grey.png", (1, 4))).tolist() == [[0, 0, 255, 255]]


def test_masks_are_read_as_those_of_regions_are(folder: Path) -> None:
    """By their alpha, where that varies: what lies under transparent parts is no drawing. 16 bits are not clipped."""
    Image.fromarray(np.array([[[255, 255, 255, 0], [0, 0, 0, 255]]], dtype=np.uint8)).save("alpha.png")
    assert np.asarray(mask_at("alpha.png", (1, 2))).tolist() == [[0, 255]]
    Image.fromarray(np.array([[300, 65535]], dtype=np.uint16)).save("deep.png")
    assert np.asarray(mask_at("deep.png", (1, 2))).tolist() == [[0, 255]]


def test_transparent_parts_are_white(folder: Path) -> None:
    assert np.asarray(fitted(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), 2, 6)).min() == 255
    assert fitted(Image.new("L", (4, 4)), 2, 6).size == (6, 2)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save("clear.png")
    assert np.asarray(picture_at("clear.png", (4, 4), "init_image")).min() == 255


def test_deep_pictures_keep_their_greys(folder: Path) -> None:
    """Pillow alone makes all above 255 of 16 bits white, and all of numbers in [0, 1] black."""
    half = np.full((4, 4), 0.5)
    for deep in (half * 65535).astype(np.uint16), (half * 65535).astype(np.int32), half.astype(np.float32):
        assert np.unique(np.asarray(fitted(Image.fromarray(deep), 4, 4))).tolist() in ([127], [128])
    Image.fromarray((half * 65535).astype(np.uint16)).save("depth.png")
    assert np.unique(np.asarray(picture_at("depth.png", (4, 4), "control depth"))).tolist() in ([127], [128])
