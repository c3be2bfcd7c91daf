"""Drawing."""

import numpy as np
import pytest
import torch
from PIL import Image

from attnguide.sheets.overlays import draw_regions, heat_colors, heat_map, region_color
from attnguide.types import Region

GREY = Image.new("RGB", (96, 64), (128, 128, 128))


def changed(picture: Image.Image) -> np.ndarray:
    return (np.asarray(picture) != np.asarray(GREY)).any(-1)


@pytest.mark.parametrize(
    "region",
    [
        Region("x", box=(0.25, 0.25, 0.75, 0.75)),
        Region("x", polygon=((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))),
        Region("x", blob=(0.5, 0.5, 0.25, 0.25)),
        Region("x", mask=torch.nn.functional.pad(torch.ones(4, 4), (2, 2, 2, 2))),
    ],
)
def test_every_place_is_outlined_where_it_is(region: Region) -> None:
    drawn = draw_regions(GREY, [region], labels=False)
    rows, columns = np.nonzero(changed(drawn))
    assert abs(rows.min() - 16) <= 3 and abs(rows.max() - 47) <= 3
    assert abs(columns.min() - 24) <= 3 and abs(columns.max() - 71) <= 3
    assert not changed(drawn)[32, 48], "only the outline"
    inks = {tuple(ink) for ink in np.asarray(drawn)[changed(drawn)].tolist()}
    assert inks == {region_color(0), (255, 255, 255)}, "edged in white, so that it shows on an object of its own colour"
    assert not changed(GREY).any(), "the picture itself stays as it is"


def test_regions_without_a_place_are_left_out_and_colours_differ() -> None:
    assert not changed(draw_regions(GREY, [Region("x")])).any()
    assert len({region_color(index) for index in range(12)}) == 12


def test_places_of_one_phrase_have_one_colour_and_one_label() -> None:
    places = [Region("red dots", box=(0.1, 0.1, 0.3, 0.4)), Region("red dots", box=(0.6, 0.5, 0.9, 0.9))]
    drawn = np.asarray(draw_regions(GREY, places))
    bare = np.asarray(draw_regions(GREY, places, labels=False))
    inks = {tuple(ink) for ink in bare[(bare != np.asarray(GREY)).any(-1)].tolist()}
    assert inks == {(212, 28, 48), (255, 255, 255)}
    written = (drawn != bare).any(-1)
    assert written[:, :48].any() and not written[32:, 58:].any(), "the phrase stands at its first place alone"


def test_labels_stay_inside_the_picture() -> None:
    drawn = draw_regions(GREY, [Region("a long phrase of many words", box=(0.9, 0.9, 1, 1))])
    assert drawn.size == GREY.size and changed(drawn)[:, :48].any()


def test_heat_colours_rise_in_lightness() -> None:
    light = heat_colors(np.linspace(-0.5, 1.5, 64)).astype(float) @ [0.3, 0.6, 0.1]
    assert (np.diff(light) >= 0).all() and light[0] < 5 and light[-1] > 230
    assert heat_colors(np.array([np.nan])).tolist() == heat_colors(np.array([0.0])).tolist()


def test_heat_map_shows_where_the_map_is_large() -> None:
    values = np.zeros((4, 6))
    values[1, 4] = 0.01
    lightness = np.asarray(heat_map(GREY, values).convert("L")).astype(int)
    row, column = np.unravel_index(lightness.argmax(), lightness.shape)
    assert (row // 16, column // 16) == (1, 4)
    assert np.asarray(heat_map(GREY, values, top=1.0).convert("L")).max() < lightness.max()
    with pytest.raises(ValueError, match="axes height width"):
        heat_map(GREY, np.zeros((2, 2, 2)))
