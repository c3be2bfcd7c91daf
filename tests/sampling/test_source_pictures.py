"""Inverted pictures denoised again, and how far they are from what they were."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from attnguide.engine.inversion import encode_pictures, invert
from attnguide.prompt.inputs import fitted
from attnguide.sampling.source_pictures import picture_error, reconstruct
from attnguide.types import Sample
from tests import tiny

SIZE = (4, 8, 8)


def row(id: str, steps: int, **settings: object) -> Sample:
    return Sample(id, tiny.PROMPT, **{"height": 16, "width": 16, "steps": steps, "cfg_scale": 1.0, **settings})


def test_pictures_come_back_with_their_error() -> None:
    model = tiny.model()
    given = [Image.new("RGBA", (40, 30), (200, 10, 10, 128)), Image.new("RGB", (16, 16), (0, 100, 200))]
    clean = encode_pictures(model, given, 16, 16)
    assert clean.shape == (2, *SIZE)
    path = invert(model, clean, [tiny.PROMPT] * 2, steps=6, iterations=10)
    found = reconstruct(model, path, [row("a", 6), row("b", 6, scheduler="euler")], given)
    for one, picture, own in zip(found, given, clean, strict=True):
        assert one.result.image is not None and one.result.latents is not None and one.result.status == "ok"
        assert (one.mse, one.psnr) == picture_error(one.result.image, fitted(picture, 16, 16))
        assert one.latents_mse == pytest.approx(float((one.result.latents - own).square().mean()))
        (decoded,) = model.decode(own[None])
        assert decoded.image is not None
        assert one.mse == pytest.approx(picture_error(decoded.image, fitted(picture, 16, 16))[0], rel=0.3)


def test_error_of_pictures() -> None:
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (51, 51, 51))
    assert picture_error(black, black) == (0.0, math.inf)
    mse, psnr = picture_error(black, grey)
    assert mse == pytest.approx(0.04) and psnr == pytest.approx(10 * math.log10(25))
    with pytest.raises(ValueError, match="one size"):
        picture_error(black, black.resize((2, 2)))


def test_refusals() -> None:
    model = tiny.model()
    given = [Image.new("RGB", (16, 16))] * 2
    path = invert(model, torch.randn(2, *SIZE), [tiny.PROMPT] * 2, steps=2)
    with pytest.raises(ValueError, match="steps of samples must be the 2"):
        reconstruct(model, path, [row("a", 3), row("b", 3)], given)
    with pytest.raises(ValueError, match="as many as inverted"):
        reconstruct(model, path, [row("a", 2)], given[:1])
