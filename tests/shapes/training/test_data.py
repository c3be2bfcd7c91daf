from __future__ import annotations

from itertools import islice

import torch

from attnguide.shapes.renderer import SIDE
from attnguide.shapes.training.data import Crops, picture_tensor


def test_pictures_are_scenes_between_minus_one_and_one() -> None:
    picture = picture_tensor(3)
    assert picture.shape == (3, SIDE, SIDE)
    assert -1 <= picture.min() < picture.max() <= 1


def test_crops_are_endless_pieces_of_training_scenes() -> None:
    first, again = (list(islice(Crops(side=32, seed=5), 6)) for _ in range(2))
    assert all(crop.shape == (3, 32, 32) and crop.abs().max() <= 1 for crop in first)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    other = list(islice(Crops(side=32, seed=6), 6))
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))
