from typing import Any

import numpy as np
import pytest
import torch

from attnguide.injection.forward_layout import ForwardLayout
from attnguide.methods import build_method
from attnguide.types import Region
from tests import tiny
from tests.injection import common
from tests.reference import forward_layout as reference

CATS = tiny.row(
    "2",
    "a cat and a ball",
    regions=(Region("cat", box=(0, 0, 0.4, 1)), Region("cat", box=(0.6, 0, 1, 0.5)), Region("ball", blob=(0.5, 0.5, 0.2, 0.1))),
)
ROWS = [tiny.row("0"), tiny.row("1", "a dog", regions=(Region("dog", box=(0.2, 0.1, 0.9, 0.6)),)), CATS]


@pytest.mark.parametrize("spread", [1.0, 0.5, None])
def test_equals_the_slow_reference(spread: float | None) -> None:
    scales = [0.8, 0.0, 0.3]
    edit = ForwardLayout(scale=scales, spread=spread).edits(common.targets_of(ROWS))[0]
    context = common.context_of(3)
    probs = common.random_scores(context, common.CROSS).softmax(-1)
    edited = edit.probs(probs, common.CROSS, context)
    assert torch.equal(edited[:3], probs[:3])  # the unconditional half is left alone
    for row, sample in enumerate(ROWS):
        expected = probs[3 + row].numpy().copy()
        windows: dict[int, list[common.Array]] = {}
        for region, mask in zip(sample.regions, common.masks_of(sample, common.CROSS), strict=True):
            for token in common.token_positions(sample, region):
                windows.setdefault(token, []).append(reference.window(mask, spread).flatten())
        for token, drawn in windows.items():
            for head in range(2):
                expected[head, :, token] = reference.moved(expected[head, :, token], drawn, scales[row])
        np.testing.assert_allclose(edited[3 + row].numpy(), expected, rtol=0, atol=1e-6)


def test_every_token_keeps_its_mass_and_full_strength_leaves_none_outside() -> None:
    edit = ForwardLayout(scale=1.0).edits(common.targets_of(ROWS))[0]
    context = common.context_of(3, ("cond",))
    probs = common.random_scores(context, common.CROSS).softmax(-1)
    edited = edit.probs(probs, common.CROSS, context)
    torch.testing.assert_close(edited.sum(2), probs.sum(2), rtol=0, atol=1e-6)
    cat = edited[0, :, :, 3].unflatten(-1, (4, 6))
    assert (cat[..., 3:].abs() < 1e-6).all() and (cat[..., :3] > 0).all()


def test_the_window_is_highest_in_the_middle_and_follows_the_map_s_sides() -> None:
    edit = ForwardLayout(scale=1.0).edits(common.targets_of([tiny.row(regions=(Region("cat", box=(0, 0, 1, 1)),))]))[0]
    context = common.context_of(1, ("cond",))
    flat = torch.full((1, 2, 24, tiny.LENGTH), 1 / 24)
    cat = edit.probs(flat, common.CROSS, context)[0, 0, :, 3].unflatten(0, (4, 6))
    torch.testing.assert_close(cat, cat.flip(0, 1))
    assert cat[1, 2] == cat.max() and cat[0, 0] == cat.min()


def test_rows_of_a_batch_equal_rows_alone() -> None:
    options = [{"scale": 0.8}, {"scale": 1.0}, {"scale": 0.5}, {"scale": 0.9}]
    common.assert_rows_equal_rows_alone(common.four_rows("forward_layout", options))


def test_scale_zero_is_no_method() -> None:
    common.assert_no_method(common.four_rows("forward_layout", [{"scale": 0.0}]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 1.2}, r"scale must lie in \[0, 1\]; got 1.2"),
        ({"scale": float("nan")}, "scale must be finite; got nan"),
        ({"spread": 0.0}, "spread must be above 0, or None for a flat window; got 0.0"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("forward_layout", options)
