from typing import Any

import numpy as np
import pytest
import torch

from attnguide.injection.paint_with_words import PaintWithWords
from attnguide.methods import build_method
from attnguide.types import Region, Sample, Step
from tests import tiny
from tests.injection import common
from tests.reference import paint_with_words as reference

ROWS = common.four_rows("paint_with_words")


def _painted(row: Sample) -> dict[int, common.Array]:
    painted: dict[int, common.Array] = {}
    for region, mask in zip(row.regions, common.masks_of(row, common.CROSS), strict=True):
        for token in common.token_positions(row, region):
            painted[token] = painted.get(token, np.zeros(mask.size)) + region.weight * mask.flatten()
    return painted


@pytest.mark.parametrize("kind", ["max", "std", "std_squared"])
def test_equals_the_slow_reference(kind: Any) -> None:
    scales = [0.4, 0.0, 0.1, 1.3]
    edit = PaintWithWords(weight_function=kind, scale=scales).edits(common.targets_of(ROWS))[0]
    context = common.context_of(4)
    scores = common.random_scores(context, common.CROSS)
    edited = edit.scores(scores, common.CROSS, context)
    assert torch.equal(edited[:4], scores[:4])  # the unconditional half is left alone
    for row, sample in enumerate(ROWS):
        expected = reference.edited_scores(
            kind, scores[4 + row].numpy(), _painted(sample), common.STEP.sigma, scales[row], head_dim=8
        )
        np.testing.assert_allclose(edited[4 + row].numpy(), expected, rtol=0, atol=1e-6)


def test_where_painted_attention_rises_and_nowhere_else() -> None:
    edit = PaintWithWords(scale=0.4).edits(common.targets_of(ROWS[:1]))[0]
    context = common.context_of(1, ("cond",))
    scores = common.random_scores(context, common.CROSS)
    change = (edit.scores(scores, common.CROSS, context) - scores)[0, 0].unflatten(0, (4, 6))
    cat = change[..., 3]
    assert (cat[:, :3] > 0).all() and (cat[:, 3:] == 0).all()
    assert (change[..., [0, 1, 4, 5, 8]] == 0).all()


def test_it_stays_finite_where_there_is_no_signal() -> None:
    """Flow matching begins with an infinite sigma, which counts as 16."""
    edit = PaintWithWords(scale=0.4).edits(common.targets_of(ROWS[:1]))[0]
    first, noisy = (
        common.context_of(1, ("cond",), step) for step in (Step(0, 4, 1000.0, 0.0, 1.0), Step.at_sigma(0, 4, 999.0, 16.0))
    )
    scores = common.random_scores(first, common.CROSS)
    edited = edit.scores(scores, common.CROSS, first)
    assert edited.isfinite().all() and torch.equal(edited, edit.scores(scores, common.CROSS, noisy))


def test_rows_of_a_batch_equal_rows_alone() -> None:
    options = [{"scale": 0.4}, {"scale": 2.0}, {"scale": 1.0, "region_seeds": {"red ball": 7}}, {"scale": 3.0}]
    common.assert_rows_equal_rows_alone(common.four_rows("paint_with_words", options))


def test_scale_zero_is_no_method() -> None:
    common.assert_no_method(common.four_rows("paint_with_words", [{"scale": 0.0}]))


def test_seeds_of_regions_replace_the_noise_inside_them() -> None:
    row = Sample("0", tiny.PROMPT, regions=(tiny.CAT, Region("ball", box=(0.25, 0.0, 1.0, 1.0))))
    noise = torch.randn(1, 4, 4, 8)
    method = PaintWithWords(region_seeds={"red cat": 1, "ball": 2})
    changed = method.initial_noise(noise, common.targets_of([row]))
    own = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(1))
    ball = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(changed[0, ..., :2], own[..., :2])
    assert torch.equal(changed[0, ..., 2:], ball[..., 2:])  # later regions lie on top
    added = PaintWithWords(region_seeds={"red cat": 1, "ball": 2}, quirks="reference")
    both = added.initial_noise(noise, common.targets_of([row]))
    torch.testing.assert_close(both[0, ..., 2:4], own[..., 2:4] + ball[..., 2:4])
    assert PaintWithWords().initial_noise(noise, common.targets_of([row])) is noise


def test_a_seed_for_no_region() -> None:
    method = PaintWithWords(region_seeds={"dog": 1})
    with pytest.raises(ValueError, match=r"region_seeds must name phrases of placed regions .*red cat.*; got 'dog'"):
        method.initial_noise(torch.zeros(1, 4, 4, 4), common.targets_of([tiny.row()]))


def test_quirks_paint_every_occurrence_and_sample_corners() -> None:
    row = Sample("0", "a cat and a cat", regions=(Region("cat", box=(0.0, 0.0, 0.4, 1.0), occurrence=1),))
    context = common.context_of(1, ("cond",))
    scores = common.random_scores(context, common.CROSS)
    first, second = 2, 5
    change = {}
    for quirks in ("none", "reference"):
        method = PaintWithWords(quirks=quirks)
        change[quirks] = (method.edits(common.targets_of([row]))[0].scores(scores, common.CROSS, context) - scores)[0, 0]
    assert (change["none"][:, first] == 0).all()
    torch.testing.assert_close(change["reference"][:, first], change["reference"][:, second])
    # 0.4 of six cells: two whole cells and two fifths of a third; at aligned corners the third lies at 0.4 exactly.
    area, corners = (change[quirks][:6, second] / change[quirks][0, second] for quirks in ("none", "reference"))
    torch.testing.assert_close(area, torch.tensor([1, 1, 0.4, 0, 0, 0]).double(), rtol=0, atol=1e-6)
    assert corners[:2].tolist() == [1, 1] and 0 < corners[2] < 1 and corners[2] != area[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_function": "mean"}, "weight_function must be one of max, std, std_squared; got 'mean'"),
        ({"scale": float("nan")}, "scale must be finite; got nan"),
        ({"quirks": "all"}, "quirks must be one of none, reference; got 'all'"),
        ({"start": 0.5, "stop": 0.2}, "a progress window needs start <= stop"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("paint_with_words", options)


def test_as_many_scales_as_rows() -> None:
    with pytest.raises(ValueError, match="scale must be one value, or a list with one per row; got 3 for 4 rows"):
        PaintWithWords(scale=[1, 2, 3]).edits(common.targets_of(ROWS))
