"""Files of input pictures: found and looked at before a model is loaded, and read at a row's size."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnguide.inputs import Control
from attnguide.prompt.inputs import absolute_row, check_inputs, mask_at, picture_at
from attnguide.rows import checked_samples, sample_to_dict
from attnguide.types import MapSource, Region, Sample


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 4), "red").save("a.png")
    Image.new("L", (8, 4), 255).save("mask.png")
    Image.new("L", (4, 4), 255).save("small.png")
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
        ({"init_image": "text.png"}, "init_image file 'text.png' is not a picture"),
        ({"init_image": "a.png", "inpaint_mask": "none.png"}, "inpaint_mask file 'none.png' does not exist"),
        ({"init_image": "a.png", "inpaint_mask": "small.png"}, "inpaint_mask must have the size .* 8x4 pixels; got 4x4"),
        ({"control": (Control("canny", "none.png"),)}, "control canny file 'none.png' does not exist"),
        ({"init_image": "a.png", "strength": 0.02}, "strength 0.02 of 30 steps leaves none to make; expected at least 0.033"),
    ],
    ids=["missing", "text", "mask", "size", "control", "strength"],
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
