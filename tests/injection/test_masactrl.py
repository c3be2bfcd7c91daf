from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.attention.sites import Site
from attnguide.injection.masactrl import MasaCtrl
from attnguide.methods import build_method
from attnguide.types import PassContext, Region, Step
from tests import tiny
from tests.injection import common
from tests.reference import masactrl as reference

ALL = ("uncond", "cond", "source_uncond", "source")
MIDDLE = Step.at_sigma(5, 10, 501.0, 1.6)
SOURCES = ["a blue cat and a red dog", "a cat and a dog", "a blue dog left of a blue ball", "a dog right of a cat"]


def _inputs(rows: int) -> tuple[PassContext, list[Tensor]]:
    context = common.context_of(rows, ALL, MIDDLE)
    shape = (len(context.rows), 2, 24, 4)
    return context, [torch.randn(shape, dtype=torch.float64) for _ in range(3)]


def _output(query: Tensor, key: Tensor, value: Tensor, edit: Any = None, context: Any = None) -> Tensor:
    scores = query @ key.transpose(-1, -2) / 2
    return (scores if edit is None else edit.scores(scores, common.SELF, context)).softmax(-1) @ value


def test_equals_the_slow_reference() -> None:
    edit = MasaCtrl(source_prompt=SOURCES, scale=[1, 0, 1, 0.5]).edits(common.targets_of(common.four_rows("x"), SOURCES))[0]
    context, (query, key, value) = _inputs(4)
    new = edit.qkv(query, key, value, common.SELF, context)
    plain, edited = _output(query, key, value), _output(*new)
    assert torch.equal(new[0], query)
    assert torch.equal(edited[8:], plain[8:])  # the source is left alone
    for half in (0, 4):
        assert torch.equal(edited[half + 1], plain[half + 1])  # scale 0
        for row in (0, 2):
            for head in range(2):
                own, source = (half + row, head), (8 + half + row, head)
                expected = reference.output(query[own].numpy(), key[source].numpy(), value[source].numpy())
                np.testing.assert_allclose(edited[own].numpy(), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(new[1][half + 3], (key[half + 3] + key[half + 11]) / 2)


def test_masks_from_cross_attention_equal_the_slow_reference() -> None:
    rows = [tiny.row("0"), tiny.row("1")]
    sources = ["a blue cat and a red ball", tiny.PROMPT]
    targets = common.targets_of(rows, sources)
    foreground, edit = MasaCtrl(
        source_prompt=sources, words=["red cat", None], source_words=["cat", None], threshold=0.4
    ).edits(targets)
    context, (query, key, value) = _inputs(2)
    large, small = replace(common.CROSS, height=4, width=6), Site("mid", "cross", 2, 3, 2, "mid", 1)
    probs = {site: common.random_scores(context, site).softmax(-1) for site in (small, large)}
    for site, tensor in probs.items():
        assert foreground.probs(tensor, site, context) is tensor
    new = edit.qkv(query, key, value, common.SELF, context)
    edited = _output(*new, edit, context)

    def inside(position: int, tokens: list[int]) -> Any:
        amap = probs[large][position].mean(0)[:, tokens].sum(-1).numpy()
        return (amap - amap.min()) / (amap.max() - amap.min()) >= 0.4

    own, source = inside(2, [2, 3]), inside(6, [3])
    for half in (0, 2):
        for head in range(2):
            at = (4 + half, head)
            expected = reference.output(query[half, head].numpy(), key[at].numpy(), value[at].numpy(), own, source)
            np.testing.assert_allclose(edited[half, head].numpy(), expected, rtol=0, atol=1e-6)
            at = (5 + half, head)
            unmasked = reference.output(query[half + 1, head].numpy(), key[at].numpy(), value[at].numpy())
            np.testing.assert_allclose(edited[half + 1, head].numpy(), unmasked, rtol=0, atol=1e-6)


def test_masks_of_another_pass_are_not_used() -> None:
    targets = common.targets_of([tiny.row()], [tiny.PROMPT])
    foreground, edit = MasaCtrl(words="cat").edits(targets)
    context, _ = _inputs(1)
    foreground.probs(common.random_scores(context, common.CROSS).softmax(-1), common.CROSS, context)
    scores = common.random_scores(context, common.SELF)
    assert edit.scores(scores, common.SELF, replace(context)) is scores
    assert not torch.equal(edit.scores(scores, common.SELF, context), scores)


LEFT = Region("red cat", box=(0.0, 0.0, 0.5, 1.0))
PLACES = np.tile(np.array([True] * 3 + [False] * 3), 4)
"""The left half of a 4x6 map."""


def test_places_as_foreground_of_both_pictures() -> None:
    rows = [tiny.row("0", regions=(LEFT,)), tiny.row("1", regions=(Region("cat"),))]
    (edit,) = MasaCtrl(foreground="regions").edits(common.targets_of(rows, [tiny.PROMPT] * 2))
    context, (query, key, value) = _inputs(2)
    edited = _output(*edit.qkv(query, key, value, common.SELF, context), edit, context)
    for at, masks in ((2, (PLACES, PLACES)), (3, ())):
        source = (4 + at, 1)
        expected = reference.output(query[at, 1].numpy(), key[source].numpy(), value[source].numpy(), *masks)
        np.testing.assert_allclose(edited[at, 1].numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("foreground", ["words", "regions"])
def test_union_equals_the_slow_reference(foreground: Any) -> None:
    rows = [tiny.row(str(number), regions=(LEFT,)) for number in range(3)]
    (edit,) = MasaCtrl(union=True, foreground=foreground, scale=[1, 0, 0.5]).edits(common.targets_of(rows, [tiny.PROMPT] * 3))
    context, (query, key, value) = _inputs(3)
    assert edit.qkv(query, key, value, common.SELF, context)[1] is key
    plain = _output(query, key, value)
    edited = edit.output(plain, common.SELF, context)
    masks = (PLACES, PLACES) if foreground == "regions" else ()
    for half in (0, 3):
        assert torch.equal(edited[half + 1], plain[half + 1])
        for row, share in ((0, 1.0), (2, 0.5)):
            own, other = (half + row, 1), (6 + half + row, 1)
            keys, values = ((of[own].numpy(), of[other].numpy()) for of in (key, value))
            expected = reference.union(query[own].numpy(), keys, values, *masks)
            expected = share * expected + (1 - share) * plain[own].numpy()
            np.testing.assert_allclose(edited[own].numpy(), expected, rtol=0, atol=1e-6)
    assert torch.equal(edited[6:], plain[6:])


def test_rows_with_foregrounds_of_many_kinds_equal_rows_alone() -> None:
    extra: list[dict[str, Any]] = [{}, {"source_words": "dog"}, {"scale": 0.5}, {"source_words": "cat"}]
    shared = {"start": 0.0, "foreground": "regions", "places": None}
    for union in (True, False):
        options = [{"source_prompt": s, **more, **shared, "union": union} for s, more in zip(SOURCES, extra, strict=True)]
        common.assert_rows_equal_rows_alone(common.four_rows("masactrl", options))


def test_the_reference_s_sites_and_steps() -> None:
    edit = MasaCtrl().edits(common.targets_of([tiny.row()], [tiny.PROMPT]))[0]
    up = [Site("x", "self", 8, 8, 2, "up", level) for level in range(4)]
    assert edit.sites.chosen([*up, Site("x", "self", 8, 8, 2, "down", 0), common.CROSS]) == set(up[:2])
    steps = [Step.at_sigma(index, 50, 500.0, 1.0) for index in range(50)]
    assert [edit.active(common.context_of(1, ALL, step)) for step in steps] == [False] * 4 + [True] * 46


def test_rows_of_a_batch_equal_rows_alone() -> None:
    extra: list[dict[str, Any]] = [{"words": "cat"}, {"words": "dog", "source_words": "cat, dog"}, {"scale": 0.5}, {}]
    options = [{"source_prompt": source, **more, "start": 0.0} for source, more in zip(SOURCES, extra, strict=True)]
    common.assert_rows_equal_rows_alone(common.four_rows("masactrl", options))


def test_scale_zero_is_no_method() -> None:
    common.assert_no_method(common.four_rows("masactrl", [{"source_prompt": "a dog", "scale": 0.0, "words": "a"}]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, "scale must be finite; got nan"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1; got 1.0"),
        ({"foreground": "box"}, "foreground must be one of words, regions; got 'box'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("masactrl", options)
    with pytest.raises(ValueError, match="words must be one value, or a list with one per row; got 2 for 1 rows"):
        MasaCtrl(words=["cat", "ball"]).edits(common.targets_of([tiny.row()], [tiny.PROMPT]))
    with pytest.raises(ValueError, match="Phrase 'dog' does not occur"):
        MasaCtrl(words="dog").edits(common.targets_of([tiny.row()], [tiny.PROMPT]))
