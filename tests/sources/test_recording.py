"""Maps of words, and masks made of them."""

from __future__ import annotations

import pytest
import torch

from attnguide.attention.sites import Site
from attnguide.prompt.targets import Targets
from attnguide.sources.recording import MapRecording, target_mask
from attnguide.types import PassContext, Step
from tests import tiny

SITE = Site("up.attn2", "cross", 2, 2, 2, "up", 0)
MAPS = torch.tensor([[[0.0, 0.1], [0.2, 0.4]], [[0.4, 0.3], [0.2, 0.0]]])


def test_the_mean_over_part_of_the_schedule_is_stretched() -> None:
    assert torch.allclose(target_mask(MAPS, (0.0, 0.5), stop=0.5), MAPS[0] / 0.4)
    assert torch.equal(target_mask(MAPS, (0.0, 0.5)), torch.ones(2, 2)), "the mean is flat"
    late = torch.tensor([[1.0, 0.75], [0.5, 0.0]])
    assert torch.allclose(target_mask(MAPS, (0.0, 0.5), start=0.4), late)
    assert torch.allclose(target_mask(MAPS, (0.0, 0.5), start=0.9), late), "no step lies there, the nearest counts"


def test_a_threshold_makes_it_a_shape() -> None:
    assert target_mask(MAPS[:1], (0.0,), threshold=0.5).tolist() == [[0, 0], [1, 1]]
    assert target_mask(MAPS[:1], (0.0,), threshold=1.0).tolist() == [[0, 0], [0, 1]]


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        target_mask(torch.full((1, 2, 2), float("nan")), (0.0,))


def test_maps_are_means_over_heads_tokens_and_sites_of_the_conditional_half() -> None:
    row = tiny.row()
    targets = Targets.build([row], [tiny.model().tokenize(row.prompt)], "cpu")
    words = MapRecording(targets, 0)
    assert words.sites.chosen([SITE]) and words.probe("source").kinds == frozenset({"source"})
    probs = torch.rand(2, 2, 4, tiny.LENGTH)
    other = Site("down.attn2", "cross", 2, 2, 2, "down", 0)
    for index in range(3):
        context = PassContext(step := Step.at_sigma(index, 3, 1.0, 1.0), "denoise", (0, 0), ("uncond", "cond"))
        words._record(SITE, probs + index, context)
        words._record(other, probs + index + 1, context)
        words.end_step(step)
    assert words.maps.shape == (1, 2, 3, 2, 2) and words.progress == pytest.approx((0, 1 / 3, 2 / 3))
    tokens = list(targets.token_indices[0][1])
    expected = probs[1][:, :, tokens].mean((0, 2)).view(2, 2)
    assert torch.allclose(words.maps[0, 1, 2], expected + 2.5, atol=1e-5)
