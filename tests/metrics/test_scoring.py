"""Judging finished rows of the shapes world."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image

from attnguide.judges.shapes import ShapesJudge
from attnguide.metrics.scoring import JudgeScores, shapes_scores
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import Scene, SceneObject
from attnguide.types import Cost, MapSource, Region, Sample, SampleResult


def result(image: Image.Image | None, prompt: str, *regions: Region) -> SampleResult:
    return SampleResult(Sample("r", prompt, regions=regions), image, None, Cost(0, 0, 0.0, 0.0))


def test_prompts_of_other_worlds_have_no_scores() -> None:
    assert shapes_scores(result(Image.new("RGB", (64, 64)), "a photo of a cat")) == {}


def test_a_row_without_a_picture_has_no_scores() -> None:
    assert shapes_scores(result(None, "a red circle on a white background")) == {}


def test_a_rendered_scene_is_judged_with_and_without_its_places() -> None:
    objects = (SceneObject("circle", "red", 0.25, 0.5, 0.15), SceneObject("square", "blue", 0.75, 0.5, 0.15))
    picture, prompt = render(Scene(objects, "white")), "a red circle and a blue square on a white background"
    right = Region("red circle", box=(0.05, 0.25, 0.45, 0.75)), Region("a blue square", box=(0.55, 0.25, 0.95, 0.75))
    swapped = Region("red circle", box=(0.55, 0.25, 0.95, 0.75)), Region("a blue square", box=(0.05, 0.25, 0.45, 0.75))
    assert "region_hit" not in shapes_scores(result(picture, prompt))
    assert shapes_scores(result(picture, prompt))["all_present"] == 1
    counting = JudgeScores([ShapesJudge()])
    assert counting(result(picture, prompt))["count_found"] == 2
    assert counting(result(picture, "two red circles on a white background"))["count_found"] == 1
    assert "count_found" not in shapes_scores(result(picture, prompt)), "a number of objects decides no choice among pictures"
    assert shapes_scores(result(picture, prompt, *right))["region_hit"] == 1
    assert shapes_scores(result(picture, prompt, *swapped))["region_hit"] == 0
    assert shapes_scores(result(picture, "a green star on a white background"))["all_present"] == 0


def test_a_map_from_another_picture_is_judged_by_its_largest_part() -> None:
    picture = render(Scene((SceneObject("circle", "red", 0.25, 0.5, 0.15),), "white"))
    mask = torch.zeros(16, 16)
    mask[4:12, 1:7] = 0.8
    mask[0, 15] = mask[10:12, 12:14] = 1.0
    taken = Region("red circle", source=MapSource("seed", seed=1), mask=mask)
    prompt = "a red circle on a white background"
    assert shapes_scores(result(picture, prompt, taken))["region_hit"] == 1
    assert shapes_scores(result(picture, prompt, replace(taken, mask=mask.flip(1))))["region_hit"] == 0
    assert "region_hit" not in shapes_scores(result(picture, prompt, replace(taken, mask=mask * 0.1)))
    assert "region_hit" not in shapes_scores(result(picture, prompt, Region("red circle", mask=mask))), (
        "drawn masks have no box"
    )
