import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from attnguide.engine.observer import BatchInfo, Observer
from attnguide.methods import build_method
from attnguide.models.load import adapt
from attnguide.sampling.best_of_k import BestOfK, build_baseline
from attnguide.sampling.check import mark_rows
from attnguide.sampling.contrast import Contrast
from attnguide.sampling.denoising import denoising_errors
from attnguide.sampling.table import sample_batch
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import Scene, SceneObject
from attnguide.types import Cost, MethodConfig, Sample, SampleResult
from tests import tiny
from tests.closeness import assert_close
from tests.steering import pipelines

PICTURES = {
    name: render(Scene((SceneObject("circle", color, x, 0.5, 0.15),)))
    for name, color, x in (("right", "red", 0.3), ("elsewhere", "red", 0.7), ("wrong", "blue", 0.3))
}


def likes_dark(result: SampleResult) -> dict[str, float]:
    assert result.image is not None
    low, high = result.image.convert("L").getextrema()
    return {"dark": -float(low), "flat": -float(high)}


def _run(shown: Sequence[Sequence[str | None]]) -> tuple[Any, list[list[int]]]:
    """Tries that show given pictures, one list per try, and the seeds they were asked for."""
    seeds: list[list[int]] = []

    def run(rows: Sequence[Sample], observer: Observer) -> list[SampleResult]:
        names = shown[len(seeds)]
        seeds.append([row.seed for row in rows])
        images: list[Image.Image | None] = [None if name is None else PICTURES[name] for name in names]
        return [SampleResult(row, image, None, Cost(10, 2, 0.5, 7.0)) for row, image in zip(rows, images, strict=True)]

    return run, seeds


def test_keeps_what_the_judge_of_shapes_likes_best_row_by_row() -> None:
    rows = [Sample("a", "a red circle", seed=3), Sample("b", "a blue circle", seed=4), Sample("c", "a red circle", seed=5)]
    run, seeds = _run([["wrong", "right", None], ["right", "wrong", "wrong"], ["elsewhere", "right", "right"]])
    kept = BestOfK(k=3).sample(run, rows, Observer())
    assert seeds == [[3, 4, 5], [1_000_006, 1_000_007, 1_000_008], [2_000_009, 2_000_010, 2_000_011]]
    assert [result.sample.id for result in kept] == ["a", "b", "c"]
    assert [result.sample.seed for result in kept] == [1_000_006, 1_000_007, 2_000_011]
    assert [result.image for result in kept] == [PICTURES["right"], PICTURES["wrong"], PICTURES["right"]]
    assert kept[0].cost == Cost(30, 6, 1.5, 7.0)


def test_of_equals_the_first() -> None:
    run, _ = _run([["right"], ["right"]])
    assert BestOfK(k=2).sample(run, [Sample("a", "a red circle", seed=3)], Observer())[0].sample.seed == 3


def test_on_the_model_it_is_the_best_of_the_plain_pictures() -> None:
    options = {"k": 3, "judge": "tests.sampling.test_best_of_k:likes_dark"}
    rows = [
        tiny.row(str(seed), seed=seed, steps=2, regions=(), methods=(MethodConfig("best_of_k", options),)) for seed in (1, 2)
    ]
    kept = sample_batch(tiny.model(), rows)
    for row, result in zip(rows, kept, strict=True):
        plain = [
            sample_batch(tiny.model(), [tiny.row(seed=row.seed + index * 1_000_003, steps=2, regions=())])[0]
            for index in range(3)
        ]
        best = max(plain, key=lambda one: sum(likes_dark(one).values()))
        assert result.sample.id == row.id and result.sample.seed == best.sample.seed
        assert result.cost.unet_forwards == 3 * best.cost.unet_forwards
        assert result.latents is not None and best.latents is not None
        assert_close(result.latents, best.latents)


def test_denoising_keeps_the_picture_of_the_least_error_and_counts_its_passes() -> None:
    method = MethodConfig("best_of_k", {"k": 3, "judge": "denoising"})
    row = tiny.row(seed=1, steps=4, regions=(), methods=(method,))
    (kept,) = sample_batch(tiny.model(), [row])
    tries = [sample_batch(tiny.model(), [tiny.row(seed=1 + n * 1_000_003, steps=4, regions=())])[0] for n in range(3)]
    errors, costs = zip(*(denoising_errors(tiny.model(), [one]) for one in tries), strict=True)
    best = tries[min(range(3), key=lambda number: errors[number][0])]
    assert kept.sample.seed == best.sample.seed
    passes = [one.cost.unet_forwards + cost[0].unet_forwards for one, cost in zip(tries, costs, strict=True)]
    assert kept.cost.unet_forwards == sum(passes) > 3 * best.cost.unet_forwards


def test_both_judges_together_add_their_logs() -> None:
    """Contrast and error of each try, on their own; a try without a picture has no score."""
    both = MethodConfig("best_of_k", {"k": 3, "judge": "attention+denoising"})
    row = tiny.row(seed=2, steps=4, regions=(), methods=(both,))
    (kept,) = sample_batch(tiny.model(), [row])
    worth: dict[int, float] = {}
    for seed in (2 + number * 1_000_003 for number in range(3)):
        watch = Contrast()
        (one,) = sample_batch(tiny.model(), [tiny.row(seed=seed, steps=4, regions=())], watch)
        worth[seed] = math.log(watch.scores[0]) - denoising_errors(tiny.model(), [one])[0][0]
    assert kept.sample.seed == max(worth, key=lambda seed: worth[seed])

    def fails(rows: Sequence[Sample], observer: Observer) -> list[SampleResult]:
        return [SampleResult(one, None, None, Cost(1, 0, 0.0, 0.0), "stopped: NaN") for one in rows]

    (lost,) = BestOfK(k=2, judge="attention+denoising").sample(fails, [row], Observer())
    assert lost.image is None and lost.status == "stopped: NaN" and lost.cost.unet_forwards == 2


def test_who_watches_sees_the_kept_pictures_once_with_the_cost_of_all_tries() -> None:
    class Watching(Observer):
        def __init__(self) -> None:
            self.starts: list[tuple[int, ...]] = []
            self.costs: list[int] = []

        def on_sample_start(self, info: BatchInfo) -> None:
            self.starts.append(tuple(sample.seed for sample in info.samples))

        def on_sample_end(self, results: Sequence[SampleResult]) -> None:
            self.costs += [result.cost.unet_forwards for result in results]

    options = {"k": 2, "judge": "tests.sampling.test_best_of_k:likes_dark"}
    row = tiny.row(steps=1, regions=(), methods=(MethodConfig("best_of_k", options),))
    watching = Watching()
    kept = sample_batch(tiny.model(), [row], watching)
    assert watching.starts == [(kept[0].sample.seed,)]
    assert watching.costs == [4] and kept[0].cost.unet_forwards == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a whole number of at least 1; got 0"),
        ({"k": 2.5}, "k must be a whole number; got 2.5"),
        (
            {"judge": "nowhere:nothing"},
            "shapes_scores .the default., attention, denoising, attention.denoising, or module:function of another that exists",
        ),
        ({"judge": "likes_dark"}, "judge must be attnguide.metrics.scoring:shapes_scores .* got 'likes_dark'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("best_of_k", options)


def test_a_prompt_that_the_judge_cannot_read_ends_its_row_alone() -> None:
    class Watching(Observer):
        def __init__(self) -> None:
            self.lost: list[SampleResult] = []

        def on_rows_given_up(self, results: Sequence[SampleResult]) -> None:
            self.lost += results

    run, _ = _run([["right", "wrong"], ["right", "right"], ["right"]])
    watching = Watching()
    cat, circle = BestOfK().sample(run, [Sample("a", "a cat"), Sample("b", "a red circle")], watching)
    assert cat.image is None and "has no score for the prompt 'a cat'" in cat.status and cat.cost.unet_forwards == 20
    assert [result.sample.id for result in watching.lost] == ["a"]
    assert circle.image is not None and circle.sample.seed == 1_000_003


def test_attention_decides_on_any_prompt() -> None:
    options = {"k": 3, "judge": "attention"}
    rows = [
        tiny.row(str(seed), seed=seed, steps=2, regions=(), methods=(MethodConfig("best_of_k", options),)) for seed in (1, 2)
    ]
    kept = sample_batch(tiny.model(), rows)
    for row, result in zip(rows, kept, strict=True):
        scores = {}
        for seed in (row.seed + index * 1_000_003 for index in range(3)):
            watch = Contrast()
            sample_batch(tiny.model(), [tiny.row(seed=seed, steps=2, regions=())], watch)
            (scores[seed],) = watch.scores
        assert result.sample.seed == max(scores, key=scores.__getitem__) and len(set(scores.values())) == 3
        assert result.image is not None and result.cost.unet_forwards == 12


def test_attention_needs_a_noun() -> None:
    row = tiny.row(steps=2, regions=(), prompt="and", methods=(MethodConfig("best_of_k", {"judge": "attention"}),))
    (marked,) = mark_rows(tiny.model(), [row])
    assert marked.problem is not None and "finds no noun in the prompt 'and'" in marked.problem


@pytest.mark.parametrize("judge", ["denoising", "attention+denoising"])
def test_denoising_needs_a_step_between_noise_and_picture(judge: str) -> None:
    method = MethodConfig("best_of_k", {"judge": judge})
    rows = [tiny.row(str(steps), steps=steps, regions=(), methods=(method,)) for steps in (1, 2)]
    bad, good = mark_rows(adapt(pipelines.shared("flux_dev")), [replace(one, height=32, width=48) for one in rows])
    assert bad.problem is not None and "needs an evaluation between noise and picture; got 1 of pure noise" in bad.problem
    assert good.problem is None


def test_two_baselines() -> None:
    with pytest.raises(ValueError, match="Only one baseline can be named; got best_of_k, best_of_k"):
        build_baseline(Sample("a", "a cat", methods=(MethodConfig("best_of_k"), MethodConfig("best_of_k"))))
