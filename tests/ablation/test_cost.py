"""What is expected is what the ledger counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnguide.ablation.cost import expected_cost
from attnguide.models.folder import is_distilled
from attnguide.sampling.table import sample_batch
from attnguide.types import ExpectedCost, MapSource, MethodConfig, Region, Sample
from tests import tiny

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("inject5", {"scale": 2.0, "start": 0.2}, {}),
    ("mask_guidance", {"iterations": 2}, {}),
    ("mask_guidance", {"start": 0.4, "stop": 1.0, "unit": "timestep"}, {"cfg_scale": 1.0}),
    ("pag", {}, {}),
    ("stable", {"attempts": 1}, {}),
    ("stable", {"held": 0.0}, {}),
    ("saga", {"iterations": 3, "at": 0.25}, {}),
    ("initno", {"rounds": 1, "iterations": 1, "last_iterations": 1, "cross_limit": 2.0, "own_limit": 2.0, "stop": 0.0}, {}),
    ("prompt_to_prompt", {"source_prompt": "a red dog and a blue ball"}, {}),
]


@pytest.mark.parametrize(("name", "options", "settings"), CASES)
def test_expected_is_counted(name: str, options: dict[str, Any], settings: dict[str, Any]) -> None:
    row = tiny.row(methods=(MethodConfig(name, options),), **settings)
    cost = sample_batch(tiny.model(), [row])[0].cost
    expected = expected_cost(row)
    assert (expected.forwards, expected.backwards) == (cost.unet_forwards, cost.unet_backwards)


MOST: list[tuple[str, dict[str, Any]]] = [
    ("stable", {"held": 1.0, "attempts": 3}),
    ("initno", {"rounds": 2, "iterations": 2, "last_iterations": 1, "cross_limit": -1.0, "max_refinements": 0, "stop": 0.0}),
]


@pytest.mark.parametrize(("name", "options"), MOST)
def test_the_most_is_what_an_unreachable_threshold_costs(name: str, options: dict[str, Any]) -> None:
    row = tiny.row(methods=(MethodConfig(name, options),))
    cost, expected = sample_batch(tiny.model(), [row])[0].cost, expected_cost(row)
    assert (expected.most, expected.most_backwards) == (cost.unet_forwards, cost.unet_backwards)


def test_plain_and_best_of_k() -> None:
    assert expected_cost(tiny.row()) == ExpectedCost(8, 0, 8, 0)
    assert expected_cost(tiny.row(methods=(MethodConfig("best_of_k", {"k": 3}),))) == ExpectedCost(24, 0, 24, 0)


@pytest.mark.parametrize("judge", ["attention", "denoising", "attention+denoising"])
def test_a_network_that_judges_its_own_pictures_is_counted(judge: str) -> None:
    row = tiny.row(steps=30, methods=(MethodConfig("best_of_k", {"k": 2, "judge": judge}),))
    expected, made = expected_cost(row), sample_batch(tiny.model(), [row])[0].cost
    assert expected.forwards == made.unet_forwards == 2 * (2 * 30 + (0 if judge == "attention" else 3))


def test_thresholds_give_a_range() -> None:
    cost = expected_cost(tiny.row(methods=(MethodConfig("mask_guidance", {"until": 0.1, "iterations": 5}),)))
    assert cost == ExpectedCost(8 + 2, 0, 8 + 2 * 5, 2 * 5)  # half of four steps


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="iterations must be at least 0"):
        expected_cost(tiny.row(methods=(MethodConfig("mask_guidance", {"iterations": -1}),)))


def test_maps_from_other_pictures_are_counted_once() -> None:
    taken = MapSource("seed", seed=9)
    regions = (Region("red cat", source=taken), Region("blue ball", source=taken))
    steered = Sample("s", tiny.PROMPT, regions=regions, methods=(MethodConfig("inject5"),), steps=4)
    drawn = replace(steered, regions=tiny.row().regions)
    assert expected_cost(steered).forwards == expected_cost(drawn).forwards + 8
    assert expected_cost(replace(steered, methods=())) == expected_cost(replace(drawn, methods=()))


@pytest.mark.parametrize("scheduler", ["heun", "kdpm2", "pndm", "dpm_single", "unipc"])
@pytest.mark.parametrize("name", ["mask_guidance", "self_guidance"])
def test_schedulers_with_several_evaluations_a_step(scheduler: str, name: str) -> None:
    row = tiny.row(methods=(MethodConfig(name, {}),), scheduler=scheduler, steps=6)
    cost, expected = sample_batch(tiny.model(), [row])[0].cost, expected_cost(row)
    assert (expected.forwards, expected.backwards) == (cost.unet_forwards, cost.unet_backwards)


def test_a_network_distilled_for_guidance_runs_once_a_step(tmp_path: Path) -> None:
    row = Sample("0", "a cat", steps=4, cfg_scale=8.0)
    assert expected_cost(row).forwards == 8 and expected_cost(row, distilled=True).forwards == 4
    (tmp_path / "unet").mkdir()
    for value, expected in ((256, True), (None, False)):
        (tmp_path / "unet" / "config.json").write_text(json.dumps({"time_cond_proj_dim": value}))
        assert is_distilled(str(tmp_path)) is expected
    for index, expected in (
        ({"_class_name": "FluxPipeline"}, True),
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": True}, True),
        ({"_class_name": "Flux2KleinPipeline"}, False),
        ({"_class_name": "Krea2Pipeline", "is_distilled": True}, False),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        assert is_distilled(str(tmp_path)) is expected
    assert not is_distilled("shapes") and not is_distilled(str(tmp_path / "gone"))
