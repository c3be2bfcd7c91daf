"""From what the browser sends to regions, files and a command line."""

from __future__ import annotations

import base64
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnguide.cli import main
from attnguide.text.html import png_bytes, region_colors
from attnguide.types import Region
from attnguide.ui.drawing import (
    check_picture,
    command_line,
    config_of,
    load_drawing,
    phrases,
    read_drawing,
    read_seeds,
    save_drawing,
    with_source,
    without_overlaps,
)

PROMPT = "a red circle and a blue square"


def _url(mask: np.ndarray[Any, Any]) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(Image.fromarray(mask))).decode()


MASK = np.zeros((8, 8), np.uint8)
MASK[2:, :4] = 128
DRAWING = json.dumps(
    {
        "regions": [
            {"phrase": "red circle", "mask": _url(MASK)},
            {"phrase": "blue square", "box": [0.5, 0, 1, 0.5]},
            {"phrase": "a"},
        ]
    }
)


def test_phrases_are_noun_phrases_then_words() -> None:
    assert phrases(PROMPT)[:2] == ["red circle", "blue square"] and "circle" in phrases(PROMPT)


def test_a_drawing_is_read() -> None:
    first, second, third = read_drawing(DRAWING)
    assert np.array_equal(np.asarray(first.mask), MASK / 255) or np.array_equal(np.asarray(first.mask), MASK)
    assert second.box == (0.5, 0, 1, 0.5) and not third.has_place and read_drawing("") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "list of at most"),
        ('{"regions": [{}]}', "has a phrase"),
        ('{"regions": [{"phrase": "a", "box": [0, 1]}]}', "four numbers"),
        ('{"regions": [{"phrase": "a", "mask": "http://somewhere/x.png"}]}', "data URL"),
        ('{"regions": [{"phrase": "a", "mask": "data:image/png;base64,AAAA"}]}', "cannot be read"),
        (json.dumps({"regions": [{"phrase": "a", "mask": _url(np.zeros((1, 1025), np.uint8))}]}), "at most 1024"),
        ('{"regions": [' + ",".join(['{"phrase": "a"}'] * 33) + "]}", "at most 32"),
        (" " * (4 * 2**20 + 1), "at most 4 MiB"),
    ],
    ids=["list", "no-phrase", "box", "url", "no-picture", "large-mask", "many", "long"],
)
def test_what_is_no_drawing_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_drawing(text)


def test_upper_layers_hide_lower_ones() -> None:
    low, high = Region("red circle", box=(0, 0, 1, 1)), Region("blue square", box=(0.5, 0, 1, 1))
    cut, kept = without_overlaps([low, high], side=4)
    assert kept is high and np.asarray(cut.mask).tolist() == [[1, 1, 0, 0]] * 4
    apart = [Region("red circle", box=(0, 0, 0.5, 1)), high]
    assert without_overlaps(apart, side=4) == apart


def test_a_picture_gives_places_to_words_without_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    drawn = [Region("red circle"), Region("blue square", box=(0, 0, 1, 1))]
    first, second = with_source(drawn, PROMPT, str(path), "invert")
    assert first.source is not None and first.source.kind == "invert" and second is drawn[1]
    assert [region.phrase for region in with_source([], PROMPT, str(path), "noise")] == ["red circle", "blue square"]
    assert with_source(drawn, PROMPT, str(path), "none") == drawn
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match="no picture"):
        check_picture(str(tmp_path / "b.png"))


def test_saved_regions_come_back_and_the_configuration_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        **{"prompt": PROMPT, "model": "shapes", "method": "mask_guidance", "options": {"scale": 2.0}, "seeds": [3]},
        **{"steps": 1, "cfg_scale": 5.0, "negative_prompt": ""},
    }
    regions = read_drawing(DRAWING)[:2]
    config = config_of(settings, regions)
    assert config["regions"] == ["red circle=red_circle.png", "blue square=0.5,0,1,0.5"]
    save_drawing(tmp_path / "regions.zip", DRAWING, config, regions)
    assert load_drawing(tmp_path / "regions.zip") == DRAWING
    (tmp_path / "regions.json").write_text(DRAWING)
    assert load_drawing(tmp_path / "regions.json") == DRAWING
    with zipfile.ZipFile(tmp_path / "regions.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command_line(config))
    assert words[:4] == ["attnguide", "sample", PROMPT, "--region"]
    assert main(["sample", "--config", "config.yaml", "--logger", "none", "--no-maps", "--out", "run"]) == 0
    assert main([*words[1:], "--logger", "none", "--no-maps", "--out", "again"]) == 0
    assert _steered("run") == _steered("again")


def _steered(folder: str) -> bytes:
    return Path(folder, "samples", "seed3-mask_guidance.png").read_bytes()


def test_a_file_without_a_drawing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no drawing"):
        load_drawing(tmp_path / "a.json")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("other.txt", "x")
    with pytest.raises(ValueError, match="no drawing"):
        load_drawing(tmp_path / "a.zip")


def test_seeds_are_numbers_and_ranges() -> None:
    assert read_seeds("0 1, 7..9") == [0, 1, 7, 8, 9]
    for text in ("", "a", "3..1", "0..999999999999", "-1"):
        with pytest.raises(ValueError, match="Seeds are"):
            read_seeds(text)


def test_a_region_has_the_colour_that_its_phrase_names() -> None:
    red, blue = region_colors(["red circle", "blue square"])
    assert red[0] > 2 * max(red[1:]) and blue[2] > 2 * max(blue[:2])
    assert len(set(region_colors(["red a", "red b", "c"]))) == 3
