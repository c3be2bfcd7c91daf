from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attnguide.attention.sites import Site, SiteSelector, select
from attnguide.injection.plug_and_play import PlugAndPlay
from attnguide.methods import build_method
from attnguide.sampling.table import sample_batch
from attnguide.types import Step
from tests import tiny
from tests.injection import common
from tests.reference import plug_and_play as reference

ALL = ("uncond", "cond", "source_uncond", "source")
EARLY = Step.at_sigma(0, 10, 901.0, 8.4)
SOURCES = ["a blue cat and a red dog", "a cat and a dog", "a blue dog left of a blue ball", "a dog right of a cat"]
FEATURE = Site("up_blocks.1.resnets.1.conv2", "feature", 4, 6, 0, "up", 0)


def test_equals_the_slow_reference() -> None:
    method = PlugAndPlay(source_prompt=SOURCES, scale=[1.0, 0.0, 1.0, 0.5])
    attention, features = method.edits(common.targets_of(common.four_rows("x"), SOURCES))
    context = common.context_of(4, ALL, EARLY)
    query, key, value = torch.randn(3, 16, 2, 24, 4, dtype=torch.float64)
    new = attention.qkv(query, key, value, common.SELF, context)
    edited = (new[0] @ new[1].transpose(-1, -2) / 2).softmax(-1) @ new[2]
    plain = (query @ key.transpose(-1, -2) / 2).softmax(-1) @ value
    assert torch.equal(edited[8:], plain[8:]) and new[2] is value
    maps = torch.randn(16, 3, 4, 6, dtype=torch.float64)
    plugged = features.output(maps, FEATURE, context)
    assert torch.equal(plugged[8:], maps[8:])
    for half in (0, 4):
        for row in (0, 2):
            assert torch.equal(plugged[half + row], maps[8 + half + row])
            for head in range(2):
                source = (8 + half + row, head)
                expected = reference.attended(query[source].numpy(), key[source].numpy(), value[half + row, head].numpy())
                np.testing.assert_allclose(edited[half + row, head].numpy(), expected, rtol=0, atol=1e-6)
        assert torch.equal(edited[half + 1], plain[half + 1]) and torch.equal(plugged[half + 1], maps[half + 1])
        torch.testing.assert_close(plugged[half + 3], (maps[half + 3] + maps[half + 11]) / 2)


@pytest.mark.parametrize("schedule", ["constant", "linear", "exponential"])
def test_the_fading_negative_prompt_equals_the_slow_reference(schedule: Any) -> None:
    method = PlugAndPlay(negative_alpha=0.75, negative_schedule=schedule, scale=[1.0, 0.0])
    uncond, negative = torch.randn(2, 2, 1, 2, 2, dtype=torch.float64)
    for index in range(4):
        found = method.unconditional(uncond, {"negative": negative}, Step.at_sigma(index, 4, 500.0, 1.0))
        assert torch.equal(found[1], uncond[1])
        for at in torch.ones_like(uncond[0]).nonzero().tolist():
            place = (0, *at)
            expected = reference.away_from(float(uncond[place]), float(negative[place]), 0.75, schedule, index, 4)
            assert float(found[place]) == pytest.approx(expected, abs=1e-6)


def test_the_negative_prompt_is_the_source_s_unless_another_is_given() -> None:
    targets = common.targets_of(common.four_rows("x"), SOURCES)
    given = [None, "a dog", "", None]
    method = PlugAndPlay(negative_prompt=given, negative_alpha=0.5)
    assert method.negative_prompts(targets) == [SOURCES[0], "a dog", "", SOURCES[3]]
    assert PlugAndPlay(negative_prompt="a dog").negative_prompts(targets) == ()
    assert PlugAndPlay(negative_alpha=0.5, scale=0.0).branches(EARLY) == PlugAndPlay().branches(EARLY) == ()
    fading = PlugAndPlay(negative_schedule="linear")
    assert [fading.branches(Step.at_sigma(index, 2, 500.0, 1.0)) for index in range(2)] == [(), ("negative",)]


def test_rows_with_negative_prompts_equal_rows_alone_and_count_their_passes() -> None:
    extra: list[dict[str, Any]] = [{}, {"negative_prompt": "a dog"}, {"scale": 0.5}, {"negative_prompt": "ball"}]
    shared = {"negative_alpha": 0.75, "negative_schedule": "linear"}
    options = [{"source_prompt": source, **more, **shared} for source, more in zip(SOURCES, extra, strict=True)]
    rows = common.four_rows("plug_and_play", options)
    fading = common.assert_rows_equal_rows_alone(rows)
    assert {result.cost.unet_forwards for result in sample_batch(tiny.model(), rows)} == {2 * 5}
    constant = [{key: value for key, value in own.items() if not key.startswith("negative")} for own in options]
    assert not torch.equal(fading, common.latents_of(common.four_rows("plug_and_play", constant)))
    weak = replace(rows[0], cfg_scale=1.0)
    (result,) = sample_batch(tiny.model(), [weak])
    assert result.cost.unet_forwards == 2 * 2  # no guidance to lead away from anything


@pytest.mark.parametrize(("quirks", "more"), [("none", 0), ("reference", 1)])
def test_windows(quirks: Any, more: int) -> None:
    edits = PlugAndPlay(quirks=quirks).edits(common.targets_of([tiny.row()], [tiny.PROMPT]))
    contexts = [common.context_of(1, ALL, Step.at_sigma(index, 50, 500.0, 1.0)) for index in range(50)]
    assert [sum(edit.active(context) for context in contexts) for edit in edits] == [25 + more, 40 + more]


def test_the_reference_s_blocks() -> None:
    """Of the decoder's twelve blocks, self-attention of 4 to 11 and features of 4."""
    method = PlugAndPlay()
    names = [f"up_blocks.{block}.attentions.{index}.transformer_blocks.0.attn1" for block in (1, 2, 3) for index in range(3)]
    chosen = [name for name in names if method.attention.chosen([Site(name, "self", 8, 8, 2)])]
    assert chosen == names[1:]
    features = tiny.model().feature_modules(32, 48)
    assert [site.name for site in select(features, method.features)] == ["up_blocks.1.resnets.1.conv2"]


def test_feature_maps_have_the_size_their_site_says() -> None:
    from attnguide.attention.attach import attach
    from attnguide.attention.capture import Probe, Recorder

    model, recorder = tiny.model(), Recorder()
    modules = {**model.attention_modules(32, 48), **model.feature_modules(32, 48)}
    context = common.context_of(1, ("cond",), EARLY)
    states = model.encode_prompt(["a cat"], None)
    with torch.no_grad(), attach(modules, [Probe("output", recorder, SiteSelector("feature"))]) as attention:
        with attention.during(context):
            model.predict(torch.zeros(1, 4, 16, 24), EARLY, states)
    assert len(recorder.tensors) == len(model.feature_modules(32, 48)) == 8
    assert all(tensor.shape[-2:] == (site.height, site.width) for site, tensor in recorder.tensors.items())
    assert not SiteSelector().chosen(list(recorder.tensors))


def test_the_source_s_scores_and_features_are_the_source_s_picture_but_for_values() -> None:
    row = common.four_rows(
        "plug_and_play", [{"source_prompt": SOURCES[0], "feature_stop": 1.0, "feature_names": ["up_blocks.*"]}]
    )
    plugged = common.latents_of(row[:1])
    source = common.latents_of([replace(row[0], prompt=SOURCES[0], regions=(), methods=())])
    plain = common.latents_of([replace(row[0], methods=())])
    assert (plugged - source).abs().mean() < 0.8 * (plain - source).abs().mean()


def test_rows_of_a_batch_equal_rows_alone() -> None:
    extra: list[dict[str, Any]] = [{}, {"scale": 0.5}, {}, {"scale": 0.9}]
    options = [{"source_prompt": source, **more} for source, more in zip(SOURCES, extra, strict=True)]
    common.assert_rows_equal_rows_alone(common.four_rows("plug_and_play", options))


def test_scale_zero_is_no_method() -> None:
    common.assert_no_method(common.four_rows("plug_and_play", [{"source_prompt": "a dog", "scale": 0.0}]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, "scale must be finite; got nan"),
        ({"attention_stop": 2.0}, r"attention_stop must lie in \[0, 1\]; got 2.0"),
        ({"negative_alpha": 1.5}, r"negative_alpha must lie in \[0, 1\]; got 1.5"),
        ({"negative_schedule": "cosine"}, "negative_schedule must be one of constant, linear, exponential; got 'cosine'"),
        ({"quirks": "all"}, "quirks must be one of none, reference; got 'all'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("plug_and_play", options)


def test_features_that_do_not_exist() -> None:
    row = common.four_rows("plug_and_play", [{"feature_names": ["nowhere.*"]}])[0]
    with pytest.raises(ValueError, match=r"No attention site matches .*; 8 feature sites exist"):
        common.latents_of([row])
