from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attnguide.injection.cross_attention_control import CrossAttentionControl
from attnguide.methods import build_method
from attnguide.sampling.table import sample_batch
from attnguide.types import Step
from tests import tiny
from tests.closeness import assert_close
from tests.injection import common
from tests.reference import cross_attention_control as reference

ALL = ("uncond", "cond", "source")
SOURCES = ["a blue cat and a red ball", "a red dog and a cat", "a blue dog left of a blue ball", "a dog right of a cat"]


def _sources_of(index: int) -> dict[int, int]:
    """By hand: the second source has a word more, which nothing stands for."""
    if index != 1:
        return {position: position for position in range(tiny.LENGTH)}
    return {0: 0, 1: 1} | {position: position + 1 for position in range(2, tiny.LENGTH - 1)}


def test_equals_the_slow_reference() -> None:
    rows = common.four_rows("cross_attention_control")
    method = CrossAttentionControl(
        source_prompt=SOURCES, weights=[{"red cat": -2.0}, None, {"ball": 3.0}, None], scale=[1.0, 1.0, 1.0, 0.0]
    )
    context = common.context_of(4, ALL)
    probs = common.random_scores(context, common.CROSS).softmax(-1)
    edited = probs
    for edit in method.edits(common.targets_of(rows, SOURCES)):
        edited = edit.probs(edited, common.CROSS, context)
    assert torch.equal(edited[:4], probs[:4]) and torch.equal(edited[8:], probs[8:])
    assert torch.equal(edited[7], probs[7])  # scale 0
    for index in range(3):
        weights = [1.0] * tiny.LENGTH
        for position in {0: (2, 3), 2: (8,)}.get(index, ()):
            weights[position] = -2.0 if index == 0 else 3.0
        expected = reference.edited_probs(probs[4 + index].numpy(), probs[8 + index].numpy(), _sources_of(index), weights)
        np.testing.assert_allclose(edited[4 + index].numpy(), expected, rtol=0, atol=1e-6)


def test_self_attention_is_replaced_as_a_whole() -> None:
    method = CrossAttentionControl(source_prompt=SOURCES)
    swap = method.edits(common.targets_of(common.four_rows("x"), SOURCES))[0]
    context = common.context_of(4, ALL)
    probs = common.random_scores(context, common.SELF).softmax(-1)
    edited = swap.probs(probs, common.SELF, context)
    expected = reference.edited_probs(probs[4].numpy(), probs[8].numpy(), None, [1.0] * 24)
    np.testing.assert_allclose(edited[4].numpy(), expected, rtol=0, atol=1e-6)
    assert torch.equal(edited[:4], probs[:4])


def test_the_source_is_asked_for_only_within_a_window() -> None:
    method = CrossAttentionControl(tokens_start=0.8, spatial_start=0.95)
    steps = [Step.at_sigma(index, 4, timestep, 1.0) for index, timestep in enumerate((999.0, 850.0, 700.0, 10.0))]
    assert [method.branches(step) for step in steps] == [("source",), ("source",), (), ()]
    swap = method.edits(common.targets_of([tiny.row()], [tiny.PROMPT]))[0]
    context = common.context_of(1, ALL, steps[1])
    probs = common.random_scores(context, common.SELF).softmax(-1)
    assert swap.probs(probs, common.SELF, context) is probs


def test_a_further_forward_only_where_the_source_is_read() -> None:
    row = common.four_rows("cross_attention_control", [{"source_prompt": "a dog", "tokens_start": 0.9, "spatial_start": 0.9}])[
        0
    ]
    assert sample_batch(tiny.model(), [row])[0].cost.unet_forwards == 3 + 2


def test_rows_of_a_batch_equal_rows_alone() -> None:
    options: list[dict[str, Any]] = [{}, {"weights": {"dog": 4.0}}, {"scale": 0.5}, {}]
    merged = [{"source_prompt": source, **more} for source, more in zip(SOURCES, options, strict=True)]
    common.assert_rows_equal_rows_alone(common.four_rows("cross_attention_control", merged))


def test_scale_zero_is_no_method() -> None:
    common.assert_no_method(common.four_rows("cross_attention_control", [{"source_prompt": "a dog", "scale": 0.0}]))


def test_the_same_prompt_is_no_method() -> None:
    rows = common.four_rows("cross_attention_control")
    plain = common.latents_of([replace(row, methods=()) for row in rows])
    assert_close(common.latents_of(rows), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, "scale must be finite; got nan"),
        ({"tokens_start": -0.5}, "window start must be a number of at least 0; got -0.5"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("cross_attention_control", options)


def test_a_weight_for_no_word() -> None:
    with pytest.raises(ValueError, match="Phrase 'dog' does not occur"):
        CrossAttentionControl(weights={"dog": 2.0}).edits(common.targets_of([tiny.row()], [tiny.PROMPT]))
