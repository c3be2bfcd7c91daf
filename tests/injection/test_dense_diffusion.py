from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.injection.dense_diffusion import DenseDiffusion, _pieces
from attnguide.methods import build_method
from attnguide.models.readers import TextReader
from attnguide.prompt.tokens import token_indices
from attnguide.types import Region, Sample, Step
from tests import tiny
from tests.injection import common
from tests.models import readers
from tests.reference import dense_diffusion as reference

ROWS = common.four_rows("dense_diffusion")


def _segments(row: Sample, site: Site) -> list[common.Array]:
    return [(mask >= 0.5).flatten() for mask in common.masks_of(row, site)]


def _expected(row: Sample, site: Site, scores: common.Array, scale: float, quirks: str) -> common.Array:
    segments = _segments(row, site)
    owners = [common.token_positions(row, region) for region in row.regions]
    words = range(1, len(row.prompt.split()) + 1)

    def crosses(query: int, key: int) -> bool:
        return any(segment[query] and key in owned for segment, owned in zip(segments, owners, strict=True))

    def shares(query: int, key: int) -> bool:
        return any(bool(segment[query] and segment[key]) for segment in segments)

    cross = site.kind == "cross"

    def factor(query: int, key: int) -> float:
        weights = [region.weight for region in row.regions]
        at_query = [bool(segment[query]) for segment in segments]
        at_key = [key in owned for owned in owners] if cross else [bool(segment[key]) for segment in segments]
        both = [here and there for here, there in zip(at_query, at_key, strict=True)]
        if any(both):
            return float(np.mean(np.compress(both, weights)))
        sides = [float(np.mean(np.compress(side, weights))) if any(side) else 1.0 for side in (at_query, at_key)]
        return float(np.sqrt(sides[0] * sides[1]))

    return reference.edited_scores(
        scores,
        segments,
        crosses if cross else shares,
        lambda key: not cross or quirks == "reference" or key in words,
        (1.0 if cross else 0.3) * scale,
        common.STEP.timestep,
        most=1.0 if quirks == "none" else float("inf"),
        factor=factor,
    )


@pytest.mark.parametrize("quirks", ["none", "reference"])
@pytest.mark.parametrize("site", [common.CROSS, common.SELF], ids=["cross", "self"])
def test_equals_the_slow_reference(site: Site, quirks: Any) -> None:
    scales = [1.0, 0.0, 0.5, 8.0]
    edit = DenseDiffusion(scale=scales, quirks=quirks).edits(common.targets_of(ROWS))[0]
    context = common.context_of(4)
    scores = common.random_scores(context, site)
    edited = edit.scores(scores, site, context)
    assert torch.equal(edited[:4], scores[:4])  # the unconditional half is left alone
    for row, sample in enumerate(ROWS):
        expected = _expected(sample, site, scores[4 + row].numpy(), scales[row], quirks)
        np.testing.assert_allclose(edited[4 + row].numpy(), expected, rtol=0, atol=1e-6)


def test_probs_gather_in_the_segment_and_start_and_padding_keep_their_scores() -> None:
    edit = DenseDiffusion().edits(common.targets_of(ROWS[:1]))[0]
    context = common.context_of(1, ("cond",))
    scores = common.random_scores(context, common.CROSS)
    edited = edit.scores(scores, common.CROSS, context)
    cat = (edited - scores)[0, :, :, 3].unflatten(-1, (4, 6))
    assert (cat[..., :3] >= 0).all() and (cat[..., 3:] <= 0).all()
    inside, outside = (edited.softmax(-1) - scores.softmax(-1))[0, :, :, 3].unflatten(-1, (4, 6)).split(3, -1)
    assert inside.mean() > 0 > outside.mean()
    assert torch.equal(edited[..., [0, 8, 12]], scores[..., [0, 8, 12]])
    reference_edit = DenseDiffusion(quirks="reference").edits(common.targets_of(ROWS[:1]))[0]
    assert (reference_edit.scores(scores, common.CROSS, context)[..., [0, 8, 12]] <= scores[..., [0, 8, 12]]).all()


def _edited(row: Sample, site: Site = common.CROSS) -> torch.Tensor:
    context = common.context_of(1, ("cond",))
    scores = common.random_scores(context, site)
    return DenseDiffusion().edits(common.targets_of([row]))[0].scores(scores, site, context) - scores


def _weighted(*weights: float) -> Sample:
    regions = (tiny.CAT, tiny.BALL)
    return tiny.row(regions=tuple(replace(region, weight=weight) for region, weight in zip(regions, weights, strict=True)))


@pytest.mark.parametrize("site", [common.CROSS, common.SELF], ids=["cross", "self"])
def test_weights_are_factors_on_the_strength(site: Site) -> None:
    """Below the strength at which scores would pass their largest."""
    half, quarter = _edited(_weighted(0.5, 0.5), site), _edited(_weighted(0.25, 0.25), site)
    placed = [2, 3, 6, 7] if site.kind == "cross" else [0]  # words of regions; a cell of the cat's
    cell = 0  # in the left half, where the cat is
    torch.testing.assert_close(half[0, :, cell, placed], 2 * quarter[0, :, cell, placed])
    assert half[0, :, cell, placed].abs().max() > 0.01
    one_sided = _edited(_weighted(0.5, 1.0), site)
    torch.testing.assert_close(one_sided[0, :, cell, placed[0]], half[0, :, cell, placed[0]])
    assert not torch.allclose(one_sided, half)


def test_a_region_without_weight_is_not_there() -> None:
    for site in (common.CROSS, common.SELF):
        assert torch.equal(_edited(_weighted(1.0, 0.0), site), _edited(tiny.row(regions=(tiny.CAT,)), site))
    row, states = _weighted(0.0, 1.0), tiny.model().encode_prompt([tiny.PROMPT], None)
    spliced = DenseDiffusion().condition(states, common.targets_of([row]), tiny.model()).cond
    alone = DenseDiffusion().condition(states, common.targets_of([tiny.row(regions=(tiny.BALL,))]), tiny.model()).cond
    assert torch.equal(spliced, alone) and not torch.equal(spliced, states.cond)
    nothing = DenseDiffusion().edits(common.targets_of([_weighted(0.0, 0.0)]))[0]
    assert not nothing.active(common.context_of(1, step=replace(common.STEP, index=0)))


def test_only_the_first_steps() -> None:
    edit = DenseDiffusion().edits(common.targets_of(ROWS))[0]
    steps = [replace(common.STEP, index=index, count=50) for index in range(50)]
    assert [edit.active(common.context_of(4, step=step)) for step in steps] == [True] * 15 + [False] * 35


def test_rows_of_a_batch_equal_rows_alone() -> None:
    options = [{"scale": 1.0}, {"scale": 1.5}, {"scale": 0.5}, {"scale": 2.0}]
    common.assert_rows_equal_rows_alone(common.four_rows("dense_diffusion", options))


def test_scale_zero_is_no_method() -> None:
    common.assert_no_method(common.four_rows("dense_diffusion", [{"scale": 0.0}]))


def test_splicing_puts_the_phrase_s_own_states_at_its_tokens() -> None:
    model = tiny.model()
    row = tiny.row(regions=(tiny.CAT, Region("ball")))
    states = model.encode_prompt([row.prompt], None)
    spliced = DenseDiffusion().condition(states, common.targets_of([row]), model).cond
    alone = model.encode_prompt(["red cat"], None).cond
    torch.testing.assert_close(spliced[0, 2:4], alone[0, 1:3])
    assert not torch.allclose(spliced[0, 2:4], states.cond[0, 2:4])
    others = [position for position in range(tiny.LENGTH) if position not in (2, 3)]
    assert torch.equal(spliced[0, others], states.cond[0, others])  # a region without a place keeps its states
    assert DenseDiffusion(splice=False).condition(states, common.targets_of([row]), model) is states


def test_a_word_s_space_is_no_matter_to_splicing() -> None:
    reader = TextReader(readers.qwen(), 90, before="<|im_start|>user\n", after="<|im_end|>", dropped=3)
    whole, alone = reader.read("a red cat"), reader.read("red cat")
    assert _pieces(whole, token_indices(whole, "red cat")) == _pieces(alone, alone.word_positions) == ["red", "cat"]
    assert whole.ids[1] != alone.ids[0]


def test_splicing_needs_the_phrase_s_own_tokens() -> None:
    row = tiny.row(regions=(Region("dog", box=(0, 0, 1, 1), token_indices=(3,)),))
    states = tiny.model().encode_prompt([row.prompt], None)
    with pytest.raises(ValueError, match=r"Region 'dog': the phrase alone must have the tokens .* use splice=False"):
        DenseDiffusion().condition(states, common.targets_of([row]), tiny.model())


def test_quirks_lose_small_regions_on_coarse_maps() -> None:
    row = tiny.row(regions=(Region("cat", box=(0.125, 0.125, 0.5, 0.5)),))
    coarse = Site("mid.attn1", "self", 2, 2, 2, "mid", 2)
    context = common.context_of(1, ("cond",))
    scores = common.random_scores(context, coarse)
    changed = {}
    for quirks in ("none", "reference"):
        edit = DenseDiffusion(quirks=quirks).edits(common.targets_of([row]))[0]
        changed[quirks] = edit.scores(scores, coarse, context) - scores
    assert (changed["none"][0, :, 0, 0] >= 0).all()  # the cell is three quarters covered each way
    assert (changed["reference"][0, :, 0, 0] <= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_scale": float("inf")}, "cross_scale must be finite; got inf"),
        ({"scale": float("nan")}, "scale must be finite; got nan"),
        ({"quirks": "some"}, "quirks must be one of none, reference; got 'some'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("dense_diffusion", options)


def test_switched_off_kinds_are_not_visited() -> None:
    edit = DenseDiffusion(self_scale=0.0).edits(common.targets_of(ROWS))[0]
    assert edit.sites.chosen([common.CROSS, common.SELF]) == {common.CROSS}
    nothing = DenseDiffusion(cross_scale=0.0, self_scale=0.0).edits(common.targets_of(ROWS))[0]
    first = common.context_of(4, step=replace(common.STEP, index=0))
    assert edit.active(first) and not nothing.active(first)


def _moved(site: Site, *regions: Region) -> torch.Tensor:
    """How much the scores of the first region's words change inside it, in the mean."""
    row = tiny.row(regions=regions)
    edit = DenseDiffusion(splice=False).edits(common.targets_of([row], [row.prompt]))[0]
    scores = torch.randn(1, 2, site.height * site.width, tiny.LENGTH, generator=torch.Generator().manual_seed(0))
    context = pass_context(Step.at_sigma(0, 10, 999.0, 14.6), "denoise", [0], ("cond",))
    change = edit.scores(scores, site, context) - scores  # type: ignore[attr-defined]
    inside = torch.from_numpy(common.masks_of(row, site)[0] > 0).flatten()
    return change[0, :, inside][..., common.token_positions(row, regions[0])].mean()


def test_words_are_drawn_into_regions_that_others_overlap() -> None:
    site = Site("up.attn2", "cross", 8, 8, 2, "up", 0)
    large, small = (0.125, 0.125, 0.875, 0.875), (0.25, 0.25, 0.625, 0.625)
    alone = _moved(site, Region("red cat", box=large))
    assert alone > 0
    torch.testing.assert_close(_moved(site, Region("red cat", box=large), Region("ball", box=large)), alone)
    assert _moved(site, Region("red cat", box=(0.0, 0.0, 1.0, 1.0)), Region("ball", box=small)) >= 0


def test_words_are_drawn_into_regions_that_fill_no_cell() -> None:
    site = Site("mid.attn2", "cross", 8, 8, 2, "mid", 2)
    assert _moved(site, Region("red cat", box=(0.42, 0.42, 0.58, 0.58))) > 0
