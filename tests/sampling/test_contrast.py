"""Contrast of nouns' attention: by hand, and from the maps of a tiny model."""

import pytest
import torch

from attnguide.figures.watch import Watch
from attnguide.models.load import adapt
from attnguide.sampling.contrast import Contrast, least_contrast
from attnguide.sampling.table import sample_batch
from attnguide.types import Region
from tests import tiny
from tests.models import families


def test_the_least_of_the_words_by_hand() -> None:
    maps = torch.tensor([[0.0, 0.0, 0.0, 4.0], [1.0, 1.0, 1.0, 3.0]])
    assert least_contrast(maps) == 2.0 and least_contrast(maps[:1]) == 4.0
    assert least_contrast(torch.ones(1, 9)) == 1.0


def test_it_is_of_the_last_pass_row_by_row() -> None:
    rows = [
        tiny.row("0", seed=1, steps=3, regions=(Region("red cat"), Region("blue ball"))),
        tiny.row("1", seed=2, steps=3, regions=(Region("blue ball"),)),
    ]
    contrast, watch = Contrast(), Watch()
    sample_batch(tiny.model(), rows, contrast)
    sample_batch(tiny.model(), rows, watch)
    for score, watched in zip(contrast.scores, watch.rows, strict=True):
        last = torch.stack([torch.from_numpy(maps[-1]).flatten() for maps in watched.maps.values()])
        assert abs(score - least_contrast(last)) < 1e-4
    assert len(contrast.scores) == 2


@pytest.mark.parametrize("family", ["sdxl", "flux_dev", "sd3", "qwen_image", "lumina2"])
def test_words_are_found_among_the_keys_of_every_family(family: str) -> None:
    model = adapt(families.shared(family))
    side = 32 if family != "sdxl" else model.default_size[0]
    row = tiny.row(seed=1, steps=2, height=side, width=side, regions=(Region("blue ball"),))
    contrast, watch = Contrast(), Watch()
    sample_batch(model, [row], contrast)
    sample_batch(model, [row], watch)
    (score,), (watched,) = contrast.scores, watch.rows
    last = torch.from_numpy(watched.maps["blue ball"][-1]).flatten()
    assert score == pytest.approx(least_contrast(last[None]), rel=1e-4)
