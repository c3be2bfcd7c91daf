"""A batch of rows that differ in everything a batch allows equals the rows one by one."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from attnguide.models.unet import StableDiffusion
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Region, Sample
from tests import tiny
from tests.closeness import SINGLE, assert_close
from tests.engine.watch import Watch, latents

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")  # the library on a newer numpy

_Options = dict[str, Any]


def _rows(methods: list[tuple[str, list[_Options]]], **settings: Any) -> list[Sample]:
    """Three rows; ``methods`` holds a name and the options of each row."""
    own: list[_Options] = [
        {},
        {
            "prompt": "a dog left of a red zebra",
            "regions": (Region("zebra", box=(0.5, 0.0, 1.0, 1.0), weight=2.0),),
            "seed": 4,
            "cfg_scale": 1.0,
        },
        {
            "prompt": "a cat and a cat",
            "regions": (
                Region("cat", box=(0.0, 0.0, 0.4, 0.5)),
                Region("cat", blob=(0.7, 0.6, 0.2, 0.1), occurrence=1),
                Region("cat", box=(0.0, 0.6, 0.4, 1.0)),
            ),
            "seed": 5,
            "cfg_scale": 3.0,
            "negative_prompt": "blue",
        },
    ]
    return [
        tiny.row(
            str(index), **values, methods=tuple(MethodConfig(name, options[index]) for name, options in methods), **settings
        )
        for index, values in enumerate(own)
    ]


def _each(**options: Any) -> list[_Options]:
    return [options] * 3


INJECT = ("inject5", [{"start": 0.0, "scale": scale} for scale in (0.5, 0.0, 2.0)])
SCORES = ("inject7", [{"start": 0.0, "scale": scale, "branch": "both"} for scale in (5.0, 30.0, -5.0)])
SELF = ("map_injection", _each(kind="self", start=0.0, scale=0.3, levels=[1], mass="renormalize", operation="interpolate"))
EXCITE = (
    "attend_and_excite",
    [
        {"thresholds": {0.0: 0.05, 0.25: 0.12}, "max_refinements": 4, "scale": scale, "quirks": "reference"}
        for scale in (1.0, 0.2, 1.5)
    ],
)
MASK = (
    "mask_guidance",
    [
        {"stop": 1.0, "iterations": 3, "until": until, "scale": scale, "losses": {"mass": 1.0, "outside": 0.5}}
        for until, scale in ((None, 1.0), (0.175, 3.0), (1.0, 1.0))
    ],
)
HEADS = ("mask_guidance", _each(per_head=True, losses={"cross_entropy": 1.0, "iou": 0.5}, max_norm=0.02, levels=[0, 1]))


@functools.cache
def _double() -> StableDiffusion:
    """In double precision no decision hangs on rounding, and nothing that differs can hide in a tolerance."""
    return StableDiffusion(tiny.pipeline().to(torch.float64))


def _assert_rows_equal(model: StableDiffusion, rows: list[Sample], share: float) -> None:
    """Rows of a batch and alone differ by at most ``share`` of the latents' size."""
    together = Watch()
    batch = sample_batch(model, rows, together)
    plain = sample_batch(model, [replace(row, methods=()) for row in rows])
    for index, row in enumerate(rows):
        watch = Watch()
        alone = sample_batch(model, [row], watch)[0]
        assert_close(latents(batch[index]), latents(alone), share)
        moves = [moved for *_, moved in watch.of_row(0)]
        assert [moved for *_, moved in together.of_row(index)] == moves
        halves = 2 if row.cfg_scale > 1 else 1
        guide = batch[index].cost.unet_forwards - 2 * len(watch.after)  # a mixed batch computes both halves for all
        assert guide == alone.cost.unet_forwards - halves * len(watch.after) == len(moves)
        assert batch[index].cost.unet_backwards == alone.cost.unet_backwards == sum(moves)
        injected = any(c.name in ("inject5", "inject7", "map_injection") and c.options["scale"] for c in row.methods)
        differs = (latents(batch[index]) - latents(plain[index])).abs().max() > 1e-4
        assert differs == (injected or any(moves))


CASES = pytest.mark.parametrize(
    ("methods", "settings"),
    [
        ([], {}),
        ([INJECT], {}),
        ([SCORES], {"scheduler": "dpmpp_2m"}),
        ([SELF], {}),
        ([EXCITE], {}),
        ([MASK], {"scheduler": "unipc"}),
        ([HEADS], {"height": 24, "width": 40}),
        ([INJECT, EXCITE, SELF, MASK], {"scheduler": "euler_ancestral"}),
        ([MASK, SCORES], {"scheduler": "heun"}),
    ],
    ids=["plain", "probs", "scores", "self", "excite", "mask", "heads", "all", "heun"],
)


@CASES
def test_a_batch_equals_its_rows(methods: list[tuple[str, list[_Options]]], settings: _Options) -> None:
    _assert_rows_equal(_double(), _rows(methods, **settings), share=1e-7)


@pytest.mark.parametrize("methods", [[], [INJECT, SELF], [EXCITE], [MASK]], ids=["plain", "injected", "excite", "mask"])
def test_a_batch_equals_its_rows_in_single_precision(methods: list[tuple[str, list[_Options]]]) -> None:
    _assert_rows_equal(tiny.model(), _rows(methods), share=SINGLE)


def test_rows_really_differ_in_how_often_they_move() -> None:
    watch = Watch()
    sample_batch(tiny.model(), _rows([MASK]), watch)
    counts = [sum(moved for *_, moved in watch.of_row(row)) for row in range(3)]
    assert counts[0] == 12 and 0 < counts[1] < 12 and counts[2] == 0


def test_a_row_s_place_in_the_batch_does_not_matter() -> None:
    rows = _rows([INJECT, MASK])
    forward = {result.sample.id: latents(result) for result in sample_batch(tiny.model(), rows)}
    for result in sample_batch(tiny.model(), rows[::-1]):
        assert_close(latents(result), forward[result.sample.id], SINGLE)
