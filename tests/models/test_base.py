"""What every family of models shares."""

from typing import Any

import pytest
import torch

from attnguide.models.base import Conditioning, halves
from tests import tiny

BOTH, ONE = ("uncond", "cond"), ("cond",)


@pytest.mark.parametrize(
    ("settings", "plain", "distilled"),
    [
        ({"cfg_scale": 5.0}, BOTH, ONE),
        ({"cfg_scale": 1.0}, ONE, ONE),
        ({"cfg_scale": 0.0, "negative_prompt": "blue"}, ONE, ONE),
        ({"cfg_scale": 3.5, "true_cfg_scale": 4.0}, BOTH, ONE),
        ({"cfg_scale": 1.0, "true_cfg_scale": 4.0, "negative_prompt": ""}, ONE, BOTH),
        ({"true_cfg_scale": 1.0, "negative_prompt": "blue"}, BOTH, ONE),
    ],
    ids=["cfg", "none", "zero", "nothing said", "true cfg", "no true cfg"],
)
def test_halves(settings: dict[str, Any], plain: tuple[str, ...], distilled: tuple[str, ...]) -> None:
    row = tiny.row(**settings)
    assert halves(row) == plain and halves(row, distilled=True) == distilled


@pytest.mark.parametrize(("scale", "combined"), [(5.0, 5.0), (1.0, 1.0), (0.5, 1.0)])
def test_combining_scale(scale: float, combined: float) -> None:
    assert tiny.model().combining_scale(tiny.row(cfg_scale=scale)) == combined


def test_a_true_cfg_scale_is_for_distilled_models() -> None:
    with pytest.raises(ValueError, match=r"true_cfg_scale is for models that read cfg_scale as a condition .* got 3"):
        tiny.model().check_row(tiny.row(true_cfg_scale=3.0))


def test_texts_of_differing_lengths_share_a_pass_behind_masks() -> None:
    states, mask = torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    shorter = Conditioning(states, states[:, :1], {"mask": (mask, mask[:, :1]), "pooled": (states[:, 0], None)}).padded(5)
    assert shorter.length == 5 and shorter.cond[:, 3:].abs().max() == 0 and torch.equal(shorter.cond[:, :3], states)
    assert shorter.extra["mask"][0].sum(1).tolist() == [3, 3] and shorter.half(uncond=True).extra["mask"][0].sum() == 2
    assert shorter.extra["pooled"][0].shape == (2, 4)
    with pytest.raises(ValueError, match="Texts of 3 and 5 tokens cannot share a pass"):
        Conditioning(states).padded(5)
    assert torch.equal(Conditioning(states).padded(3).cond, states)
