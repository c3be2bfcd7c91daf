"""Whether attention tells what is missing: areas and choices by hand, and a run on a tiny model."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import check_presence
from check_presence import Picture

from attnguide.benchmark import layout_samples
from attnguide.shapes.layouts import Layout
from tests import tiny


def _picture(prompt: str, presence: float, contrast: float) -> Picture:
    return Picture(prompt, presence, presence / 2, (contrast,) * 4, (0.0,) * 4, -contrast)


def test_areas_by_hand() -> None:
    assert check_presence.auc([3.0, 1.0], [2.0, 0.0]) == 0.75
    assert check_presence.auc([1.0], [1.0]) == 0.5
    assert math.isnan(check_presence.auc([], [1.0]))


def test_maps_by_hand() -> None:
    left, right = np.zeros((2, 2)), np.zeros((2, 2))
    left[0, 0], right[1, 1] = 4.0, 1.0
    even = np.ones((2, 2))
    assert check_presence.contrast([left, even]) == 1 and check_presence.contrast([left, right]) == 4
    assert check_presence.overlap([left, right]) == 0 and check_presence.overlap([left, even, right]) == 0.25
    assert check_presence.overlap([even]) == 0


def test_the_interval_is_over_prompts() -> None:
    pictures = [_picture(f"{prompt}", prompt % 2, 0.0) for prompt in range(8) for _ in range(2)]
    found, low, high = check_presence.area(pictures, [1 - picture.presence for picture in pictures])
    assert (found, low, high) == (1, 1, 1)


def test_two_seeds_by_hand() -> None:
    pictures = [
        _picture("a", 0.5, 1.0),
        _picture("a", 1.0, 2.0),
        _picture("b", 1.0, 1.0),
        _picture("b", 0.5, 2.0),
        _picture("b", 0.0, 9.0),
    ]
    presence, explained = check_presence.SCORES.values()
    by_contrast, by_denoising, by_both = check_presence.CHOICES
    found = [check_presence.best_of(pictures, 2, by, presence) for by in (by_contrast, by_denoising, by_both, presence)]
    means = [(one.mean, one.pictures, one.clusters) for one in found if one]
    kept = [1.0, 0.5, 0.0, 0.0]  # of a its second picture, of b's pairs the second, third and third
    assert means[:3] == [(pytest.approx(sum(kept) / 4), 4, 2)] * 3
    assert means[3] == (pytest.approx((1.0 + 1.0 + 1.0 + 0.5) / 4), 4, 2)
    recognised = check_presence.best_of(pictures, 2, by_contrast, explained)
    assert recognised is not None and recognised.mean == pytest.approx(means[0][0] / 2)


def test_pictures_come_with_their_words_maps() -> None:
    layout = Layout(
        "a0", "two_objects", "a red circle and a blue square", ("red circle", "blue square"), ((0, 0, 0.5, 1), (0.5, 0, 1, 1))
    )
    rows = layout_samples([layout], range(2), steps=2)
    found = check_presence.gather(tiny.model(), [layout], rows, batch_size=1)
    assert [picture.prompt for picture in found] == [layout.prompt] * 2
    for picture in found:
        assert len(picture.contrast) == len(picture.overlap) == 4 and 0 <= picture.presence <= 1
        assert math.isfinite(picture.denoising)
        assert (
            picture.contrast[0] >= 1
            and 0 <= picture.overlap[0] <= 1
            and picture.contrast[2] != pytest.approx(picture.contrast[3], abs=0)
        )
