import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.mask_guidance import TERMS, MaskGuidance
from attnguide.prompt.targets import Targets
from attnguide.types import Region, Sample, Step
from tests import tiny
from tests.reference import containment as reference

STEP = Step.at_sigma(0, 4, 751.0, 4.0)
LARGE = [Site("down.attn2", "cross", 6, 5, 2, "down", 0), Site("up.attn2", "cross", 6, 5, 3, "up", 0)]
SMALL = Site("mid.attn2", "cross", 3, 4, 2, "mid", 1)
SLOW = {
    "mass": reference.mass_outside,
    "cross_entropy": reference.mask_cross_entropy,
    "iou": reference.soft_iou_distance,
    "inside": reference.inner_box,
    "outside": reference.outer_box,
}
CAT = Region("red cat", box=(0.0, 0.0, 0.45, 1.0))
BALL = Region("ball", blob=(0.7, 0.5, 0.2, 0.3))


def _targets(*rows: tuple[Region, ...]) -> Targets:
    samples = [Sample(str(index), tiny.PROMPT, regions=regions) for index, regions in enumerate(rows)]
    return Targets.build(samples, [tiny.model().tokenize(tiny.PROMPT)] * len(rows), "cpu")


def _maps(*sites: Site, batch: int = 1) -> AttentionMaps:
    random = torch.Generator().manual_seed(1)
    return AttentionMaps(
        {
            site: torch.randn(
                batch, site.heads, site.height * site.width, tiny.LENGTH, generator=random, dtype=torch.float64
            ).softmax(-1)
            for site in sites
        }
    )


def _slow(term: str, amap: Tensor, targets: Targets, region: int, size: tuple[int, int]) -> float:
    """One term on one word map ``height width``."""
    hard = term in ("inside", "outside")
    mask = targets.binary_masks(*size) if hard else targets.masks(*size)
    return SLOW[term](amap.numpy(), mask[0, region].double().numpy())


@pytest.mark.parametrize("term", TERMS)
def test_terms_against_the_slow_ones(term: str) -> None:
    targets, maps = _targets((CAT, BALL)), _maps(*LARGE)
    words = torch.cat([maps.probs[site] for site in LARGE], 1).mean(1).unflatten(1, (6, 5))[0]
    each = [
        _slow(term, words[..., list(indices)].mean(-1), targets, region, (6, 5))
        for region, indices in enumerate(targets.token_indices[0])
    ]
    output = MaskGuidance(losses={term: 2.0}).loss(maps, targets, STEP)
    assert float(output.loss) == pytest.approx(2 * np.mean(each), rel=1e-6)
    assert float(output.indicator) == pytest.approx(max(each), rel=1e-6)


def test_every_head_judged_by_itself() -> None:
    targets, maps = _targets((CAT, BALL)), _maps(*LARGE)
    heads = torch.cat([maps.probs[site] for site in LARGE], 1).unflatten(2, (6, 5))[0]
    each = [
        np.mean([_slow("mass", head[..., list(indices)].mean(-1), targets, region, (6, 5)) for head in heads])
        for region, indices in enumerate(targets.token_indices[0])
    ]
    assert float(MaskGuidance(per_head=True).loss(maps, targets, STEP).loss) == pytest.approx(np.mean(each), rel=1e-6)
    assert float(MaskGuidance().loss(maps, targets, STEP).loss) != pytest.approx(np.mean(each), rel=1e-6)


def test_terms_and_map_sizes_add_up() -> None:
    targets, maps = _targets((CAT, BALL)), _maps(*LARGE, SMALL)

    def loss(losses: dict[str, float], chosen: AttentionMaps) -> float:
        return float(MaskGuidance(losses=losses).loss(chosen, targets, STEP).loss)

    parts = [
        {term: loss({term: 1.0}, maps.choose(SiteSelector(levels=(level,)))) for term in ("mass", "iou")} for level in (0, 1)
    ]
    expected = np.mean([2 * part["mass"] + 0.5 * part["iou"] for part in parts])
    assert loss({"mass": 2.0, "iou": 0.5}, maps) == pytest.approx(expected, rel=1e-6)


def test_the_indicator_is_the_worst_region_whatever_the_weights() -> None:
    maps = _maps(*LARGE)
    one, ten = (MaskGuidance(losses={"mass": w, "iou": w}).loss(maps, _targets((CAT, BALL)), STEP) for w in (1.0, 10.0))
    torch.testing.assert_close(one.indicator, ten.indicator)
    torch.testing.assert_close(one.loss * 10, ten.loss)
    assert not ten.indicator.requires_grad


def test_a_region_s_weight_is_a_factor_on_its_loss() -> None:
    maps = _maps(*LARGE)

    def loss(*regions: Region) -> float:
        return float(MaskGuidance().loss(maps, _targets(regions), STEP).loss)

    heavy = Region("red cat", box=CAT.box, weight=3.0)
    assert loss(heavy, BALL) == pytest.approx((3 * loss(CAT) + loss(BALL)) / 2, rel=1e-6)


def test_places_of_the_same_words_are_one_goal() -> None:
    """A word spread over its two boxes is where it should be."""
    left, right = Region("ball", box=(0.0, 0.0, 0.4, 1.0)), Region("ball", box=(0.6, 0.0, 1.0, 1.0))
    site = LARGE[0]
    probs = torch.full((1, 2, 6, 5, tiny.LENGTH), 1e-6)
    probs[..., [0, 1, 3, 4], 7] = 0.5
    maps = AttentionMaps({site: probs.flatten(2, 3)})
    assert float(MaskGuidance().loss(maps, _targets((left, right)), STEP).loss) < 1e-3
    assert float(MaskGuidance().loss(maps, _targets((left,)), STEP).loss) > 0.2


def test_padding_and_words_without_a_place_do_not_count() -> None:
    maps = _maps(*LARGE, batch=3)
    output = MaskGuidance().loss(maps, _targets((CAT, BALL), (Region("ball"), CAT), (Region("ball"),)), STEP)
    alone = MaskGuidance().loss(maps.select([1]), _targets((CAT,)), STEP)
    torch.testing.assert_close(output.loss[1], alone.loss[0])
    torch.testing.assert_close(output.indicator[1], alone.indicator[0])
    assert output.loss[2] == 0 and output.indicator[2] == 0


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("term", ["mass", "cross_entropy", "iou"])
def test_gradient(term: str, per_head: bool) -> None:
    targets, guidance = _targets((CAT, BALL)), MaskGuidance(losses={term: 1.0}, per_head=per_head)
    site = Site("a", "cross", 3, 3, 2)
    start = torch.randn(1, 2, 9, tiny.LENGTH, dtype=torch.float64).softmax(-1).requires_grad_(True)

    def loss(probs: Tensor) -> Tensor:
        return guidance.loss(AttentionMaps({site: probs}), targets, STEP).loss

    assert torch.autograd.gradcheck(loss, (start,))


def test_half_precision_masks_and_maps() -> None:
    maps = AttentionMaps({site: probs.float() for site, probs in _maps(*LARGE).probs.items()})
    output = MaskGuidance(losses=dict.fromkeys(TERMS, 1.0)).loss(maps, _targets((CAT, BALL)), STEP)
    assert output.loss.dtype == output.indicator.dtype == torch.float32


# -------------------------------------------------------------------------------------------------------- its options


def test_defaults() -> None:
    guidance = MaskGuidance()
    assert guidance.losses == {"mass": 1.0} and guidance.needs_regions == "place"
    assert (guidance.update.iterations, guidance.update.refinements, guidance.update.max_norm) == (1, (), None)
    assert guidance.update.step_size(STEP) == pytest.approx(120 * (1 - STEP.alpha_bar))


def test_a_limit_makes_its_iterations_refinements() -> None:
    update = MaskGuidance(until=0.3, iterations=4).update
    assert update.iterations == 0 and update.refinements[0].at is None
    assert (update.refinements[0].until, update.refinements[0].iterations) == (0.3, 4)
    assert MaskGuidance(until=[0.1, None]).update.refinements[0].until == [0.1, -math.inf]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SiteSelector(kind="cross", levels=(2,))),
        ({"levels": [0, 1]}, SiteSelector(kind="cross", levels=(0, 1))),
        ({"places": ["up"]}, SiteSelector(kind="cross", levels=(2,), places=("up",))),
        ({"levels": (1,), "places": ("up", "mid")}, SiteSelector(kind="cross", levels=(1,), places=("up", "mid"))),
    ],
)
def test_sites(options: dict[str, Any], expected: SiteSelector) -> None:
    """The model's guidance level, here 2, where no levels are given."""
    assert MaskGuidance(**options).sites_at(2) == expected


@pytest.mark.parametrize(
    ("rule", "first", "last"),
    [("constant", 8.0, 8.0), ("sqrt_linear", 8.0, 8 * math.sqrt(0.5)), ("linear_to_zero", 8.0, 2.0)],
)
def test_step_rules(rule: Any, first: float, last: float) -> None:
    at = MaskGuidance(step_size=8.0, step_rule=rule).update.step_size
    assert at(Step.at_sigma(0, 4, 751.0, 4.0)) == pytest.approx(first)
    assert at(Step.at_sigma(3, 4, 1.0, 0.1)) == pytest.approx(last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": {}}, "losses must name terms among mass, cross_entropy, iou, inside, outside; got none"),
        ({"losses": {"mas": 1.0, "mass": 1.0}}, r"losses must name terms .*; got \['mas'\]"),
        ({"losses": {"mass": 0.0}}, r"weights of losses must be finite and above 0; got \{'mass': 0.0\}"),
        ({"losses": {"mass": math.nan}}, "weights of losses must be finite"),
        ({"step_rule": "cosine"}, "step_rule must be one of constant, sqrt_linear, .*; got 'cosine'"),
        ({"step_size": math.nan}, "step size must be finite; got nan"),
        ({"start": 0.6, "stop": 0.5}, "a progress window needs start <= stop <= 1; got 0.6 to 0.5"),
        ({"unit": "steps"}, "window unit must be one of progress, timestep, sigma; got 'steps'"),
        ({"until": math.nan}, "until must be a number; got nan"),
        ({"until": 0.5, "iterations": 0}, "iterations must be at least 1; got 0"),
        ({"iterations": -1}, "iterations must be at least 0; got -1"),
        ({"max_norm": -1.0}, "max_norm must be above 0; got -1.0"),
        ({"scale": math.inf}, "scale must be finite; got inf"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskGuidance(**options)


def test_a_region_smaller_than_a_cell() -> None:
    tiny_box = _targets((Region("ball", box=(0.40, 0.40, 0.45, 0.45)),))
    MaskGuidance(losses={"mass": 1.0, "iou": 1.0}).check(tiny_box, [*LARGE, SMALL])
    for term in ("inside", "outside"):
        with pytest.raises(ValueError, match="Region 'ball' covers no cell of the 3x4 map"):
            MaskGuidance(losses={"mass": 1.0, term: 1.0}).check(tiny_box, [SMALL])


def test_what_lies_in_another_region_of_the_word_is_not_outside() -> None:
    regions = (Region("ball", box=(0.0, 0.0, 0.4, 1.0)), Region("ball", box=(0.6, 0.0, 1.0, 1.0)))
    targets = _targets(regions)
    probs = torch.full((1, 2, 30, tiny.LENGTH), 1e-3, dtype=torch.float64)
    inside = targets.joined_binary_masks(6, 5)[0, 0].flatten()
    probs[:, :, inside] = 0.9
    output = MaskGuidance(losses={"outside": 1.0}).loss(AttentionMaps({LARGE[0]: probs}), targets, STEP)
    assert output.loss.item() == pytest.approx(1e-3)
