"""Every method in this room where models, sizes, schedulers and precisions are unusual, and together with others."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from attnguide.methods import METHODS, build_method
from attnguide.models.unet import StableDiffusion
from attnguide.sampling.check import check_rows
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Region
from tests import tiny
from tests.injection import common

NEW: dict[str, dict[str, Any]] = {
    "paint_with_words": {"scale": 1.0, "region_seeds": {"red cat": 1}},
    "dense_diffusion": {},
    "forward_layout": {},
    "prompt_to_prompt": {"source_prompt": "a red dog and a blue ball", "blend": "ball"},
    "cross_attention_control": {"source_prompt": "a red dog and a blue ball", "weights": {"ball": 2.0}},
    "masactrl": {"source_prompt": "a red dog", "start": 0.0, "words": "cat", "source_words": "dog"},
    "plug_and_play": {"source_prompt": "a red dog"},
    "pag": {},
}


@functools.cache
def _half() -> StableDiffusion:
    return StableDiffusion(tiny.pipeline().to(torch.bfloat16), "half")


@pytest.mark.parametrize("name", NEW)
def test_half_precision_second_order_odd_size_no_cfg(name: str) -> None:
    settings: dict[str, Any] = {"height": 40, "width": 24, "steps": 2, "scheduler": "heun", "cfg_scale": 1.0}
    method = (MethodConfig(name, NEW[name]),)
    rows = [tiny.row("0", methods=method, **settings), tiny.row("1", seed=4, methods=method, **settings)]
    check_rows(_half(), rows)
    for result in sample_batch(_half(), rows):
        assert result.status == "ok" and result.image is not None and result.image.size == (24, 40)
        assert result.latents is not None and torch.isfinite(result.latents).all()


@pytest.mark.parametrize("scheduler", ["unipc", "dpmpp_2m"])
@pytest.mark.parametrize("name", ["prompt_to_prompt", "masactrl", "pag"])
def test_together_with_guidance_rows_equal_rows_alone(name: str, scheduler: str) -> None:
    """Guidance moves the rows and not their sources."""
    methods = (MethodConfig("mask_guidance", {"step_size": 5.0}), MethodConfig(name, NEW[name]))
    settings: dict[str, Any] = {"methods": methods, "scheduler": scheduler, "steps": 3}
    ball = Region("ball", box=(0.0, 0.0, 0.4, 0.4))
    rows = [tiny.row("0", **settings), tiny.row("1", "a blue cat and a red ball", regions=(ball,), seed=9, **settings)]
    common.assert_rows_equal_rows_alone(rows)


def test_all_of_them_are_there() -> None:
    injections = {name for name, info in METHODS.items() if info.family == "injection" and "maps" not in info.target}
    assert set(NEW) <= injections


@pytest.mark.parametrize("name", ["inject7", "paint_with_words", "dense_diffusion"])
def test_a_perturbed_branch_is_edited_like_the_conditional_one(name: str) -> None:
    """So that what perturbed-attention guidance moves away from differs by the perturbation alone; a source is left alone."""
    built: Any = build_method(name, {"start": 0.0})
    edit = built.edits(common.targets_of([tiny.row()]))[0]
    context = common.context_of(1, ("uncond", "cond", "perturbed", "source"))
    scores = common.random_scores(common.context_of(1, ("cond",)), common.CROSS).expand(4, -1, -1, -1)
    edited = edit.scores(scores, common.CROSS, context)
    assert torch.equal(edited[1], edited[2]) and not torch.equal(edited[1], scores[1])
    assert torch.equal(edited[0], scores[0]) and torch.equal(edited[3], scores[3])
