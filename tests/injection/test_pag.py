from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline
from torch import Tensor

from attnguide.engine.cfg import combine
from attnguide.injection.pag import PerturbedAttention
from attnguide.methods import build_method
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Sample, Step
from tests import tiny
from tests.injection import common
from tests.reference import pag as reference

ALL = ("uncond", "cond", "perturbed")


def _peer_run(rows: Sequence[Sample], layers: list[str], scale: float, adaptive: float) -> Tensor:
    """Final latents of diffusers' pipeline on the same weights."""
    parts = tiny.pipeline().components
    pipe = StableDiffusionPAGPipeline(**parts, requires_safety_checker=False, pag_applied_layers=layers)
    pipe.set_progress_bar_config(disable=True)
    latents: Tensor = pipe(
        [row.prompt for row in rows],
        negative_prompt=[row.negative_prompt or "" for row in rows],
        height=rows[0].height,
        width=rows[0].width,
        num_inference_steps=rows[0].steps,
        guidance_scale=rows[0].cfg_scale,
        generator=[torch.Generator().manual_seed(row.seed) for row in rows],
        pag_scale=scale,
        pag_adaptive_scale=adaptive,
        output_type="latent",
    ).images
    return latents


@pytest.mark.parametrize(
    ("cfg_scale", "options", "layers"),
    [
        (5.0, {}, ["mid"]),
        (1.0, {}, ["mid"]),
        (5.0, {"scale": 4.0, "adaptive": 0.01, "places": None, "names": ["up_blocks.1.*"]}, ["up_blocks.1"]),
    ],
)
def test_equals_the_peer_end_to_end(cfg_scale: float, options: dict[str, Any], layers: list[str]) -> None:
    method = (MethodConfig("pag", options),)
    shared: dict[str, Any] = {"methods": method, "cfg_scale": cfg_scale, "height": 32, "width": 48, "steps": 3}
    rows = [
        tiny.row("0", seed=5, negative_prompt="blue", **shared),
        tiny.row("1", "a dog", regions=(), **shared),
    ]
    found = common.latents_of(rows)
    expected = _peer_run(rows, layers, options.get("scale", 3.0), options.get("adaptive", 0.0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cfg", [True, False])
def test_equals_the_slow_reference(cfg: bool) -> None:
    method = PerturbedAttention(scale=[3.0, 0.5], adaptive=0.002)
    step = Step.at_sigma(2, 10, 801.0, 5.1)
    uncond, cond, perturbed = torch.randn(3, 2, 1, 2, 2, dtype=torch.float64)
    answers: Any = {"cond": cond, "perturbed": perturbed} | ({"uncond": uncond} if cfg else {})
    found = method.correct(combine(answers.get("uncond"), cond, [5.0, 5.0]), answers, step)
    for at in torch.ones_like(cond).nonzero().tolist():
        index = tuple(at)
        expected = reference.prediction(
            float(uncond[index]) if cfg else None,
            float(cond[index]),
            float(perturbed[index]),
            5.0,
            reference.strength((3.0, 0.5)[index[0]], 0.002, 801.0),
        )
        assert float(found[index]) == pytest.approx(expected, abs=1e-6)


def test_only_the_perturbed_branch_sees_itself_alone() -> None:
    edit = PerturbedAttention().edits(common.targets_of(common.four_rows("x")))[0]
    context = common.context_of(4, ALL)
    probs = common.random_scores(context, common.SELF).softmax(-1)
    edited = edit.probs(probs, common.SELF, context)
    assert torch.equal(edited[:8], probs[:8])
    assert (edited[8:] == torch.eye(24)).all()
    assert not edit.active(common.context_of(4))


def test_the_branch_is_there_only_where_it_counts() -> None:
    method = PerturbedAttention(scale=3.0, adaptive=0.01, stop=0.5)
    steps = [Step.at_sigma(0, 4, 999.0, 14.0), Step.at_sigma(1, 4, 600.0, 3.0), Step.at_sigma(2, 4, 950.0, 2.0)]
    assert [method.branches(step) for step in steps] == [("perturbed",), (), ()]
    answers: Any = {"cond": torch.ones(1, 1, 1, 1)}
    assert method.correct(answers["cond"], answers, steps[1]) is answers["cond"]


def test_rows_of_a_batch_equal_rows_alone() -> None:
    options = [{"scale": 3.0}, {"scale": 8.0}, {"scale": 6.0}, {"scale": 4.0}]
    rows = common.four_rows("pag", options)
    common.assert_rows_equal_rows_alone(rows)
    assert [result.cost.unet_forwards for result in sample_batch(tiny.model(), rows)] == [6] * 4


def test_scale_zero_is_no_method() -> None:
    common.assert_no_method(common.four_rows("pag", [{"scale": 0.0}]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, "scale must be finite; got nan"),
        ({"adaptive": -1.0}, "adaptive must be at least 0; got -1.0"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("pag", options)


def test_sites_that_do_not_exist() -> None:
    row = common.four_rows("pag", [{"places": None, "names": ["nowhere.*"]}])[0]
    with pytest.raises(ValueError, match="No attention site matches"):
        common.latents_of([row])
