import math

import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.update import Refinement
from attnguide.types import Box, MethodConfig, Region
from tests import tiny
from tests.guidance import cases
from tests.reference import box_diff as reference
from tests.reference import words

SITES = cases.cross_sites(("down", 0, 8, 12), ("up", 0, 8, 12))
TARGETS = cases.targets_of({"prompt": tiny.PROMPT, "regions": (tiny.CAT, tiny.BALL)})
BOXES = [(0, 0, 6, 8), (6, 2, 12, 8)]  # of the two regions, in cells of an 8x12 map


@pytest.mark.parametrize("quirks", ["none", "reference"])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_reference(quirks: str, seed: int) -> None:
    maps = cases.random_maps(SITES, 1, seed)
    output = cases.guidance("box_diff", quirks=quirks).loss(maps, TARGETS, cases.FLAT)
    probs = words.token_softmax(words.mean_map(cases.layers_of(maps)), tiny.LENGTH - 1)
    std = 0.5 * (math.sqrt(2) if quirks == "reference" else 1)
    read = [words.word_map(probs, positions, std) for positions in ((2, 3), (6, 7))]
    loss, worst = reference.loss(read, BOXES)
    assert output.loss.item() == pytest.approx(loss, rel=1e-6)
    assert output.indicator.item() == pytest.approx(worst, rel=1e-6)


def test_until_end_lets_only_words_compete() -> None:
    maps = cases.random_maps(SITES, 1)
    output = cases.guidance("box_diff", until_end=True).loss(maps, TARGETS, cases.FLAT)
    probs = words.token_softmax(words.mean_map(cases.layers_of(maps)), 8)
    read = [words.word_map(probs, positions, 0.5) for positions in ((2, 3), (6, 7))]
    assert output.loss.item() == pytest.approx(reference.loss(read, BOXES)[0], rel=1e-6)


@pytest.mark.parametrize("field", ["loss", "refining"])
def test_gradcheck(field: str) -> None:
    assert cases.gradient_is_right(cases.guidance("box_diff"), SITES[:1], TARGETS, field=field)


def test_attention_in_the_box_costs_less_than_beside_it() -> None:
    """A map that is 1 exactly on its box has no loss; moved to the other half it pays all three terms."""
    targets = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0, 0, 0.5, 1)),)})
    method = cases.guidance("box_diff", blur_std=0)

    def loss(columns: slice) -> float:
        probs = torch.zeros(1, 1, 8, 8, tiny.LENGTH, dtype=torch.float64)
        probs[..., 1] = 1
        probs[..., columns, 1], probs[..., columns, 2] = 0, 1
        site = cases.cross_sites(("up", 0, 8, 8), heads=1)[0]
        return method.loss(AttentionMaps({site: probs.flatten(2, 3)}), targets, cases.FLAT).loss.item()

    assert loss(slice(0, 4)) == pytest.approx(0, abs=1e-6)
    # Inner 1, outer 1, and the outline differs in each of the 5 columns near an edge (0, 1 and 3, 4, 5) out of 8.
    assert loss(slice(4, 8)) == pytest.approx(2 + 5 / 8, abs=1e-6)


def test_a_small_box_loses_its_inner_term_in_the_published_code_only() -> None:
    targets = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0, 0, 0.25, 0.25)),)})
    maps = cases.random_maps(SITES, 1)
    assert cases.guidance("box_diff").loss(maps, targets, cases.FLAT).indicator.item() > 0.1  # 2 x 3 cells hold one fifth
    tight = cases.targets_of({"prompt": "a cat", "regions": (Region("cat", box=(0, 0, 1 / 6, 0.25)),)})  # 2 x 2 cells do not
    assert cases.guidance("box_diff").loss(maps, tight, cases.FLAT).indicator.item() > 0.1
    assert cases.guidance("box_diff", quirks="reference").loss(maps, tight, cases.FLAT).indicator.item() == 0


def test_after_a_refinement_the_published_code_forgets_the_outside() -> None:
    maps = cases.random_maps(SITES, 1)
    assert cases.guidance("box_diff").loss(maps, TARGETS, cases.FLAT).refined is None
    output = cases.guidance("box_diff", quirks="reference").loss(maps, TARGETS, cases.FLAT)
    assert output.refined is not None and output.refining is not None
    assert output.refining.item() < output.refined.item() < output.loss.item()


def test_regions_of_one_phrase_are_their_union_and_weights_count() -> None:
    maps = cases.random_maps(SITES, 1)
    method = cases.guidance("box_diff")

    def loss(*regions: Region) -> float:
        return method.loss(maps, cases.targets_of({"prompt": "a cat", "regions": regions}), cases.FLAT).loss.item()

    halves = Region("cat", box=(0, 0, 0.5, 0.5)), Region("cat", box=(0, 0.5, 0.5, 1))
    assert loss(*halves) == pytest.approx(loss(Region("cat", box=(0, 0, 0.5, 1))), rel=1e-9)
    assert loss(Region("cat", box=(0, 0, 0.5, 1), weight=3.0)) == pytest.approx(3 * loss(*halves), rel=1e-9)


def test_thresholds_per_row() -> None:
    both = cases.guidance("box_diff", thresholds=[{0.0: 0.1}, {0.0: 0.2, 0.5: 0.6}], max_refinements=3)
    assert both.update.refinements == (
        Refinement([0.9, 0.8], 3, (0.0,)),
        Refinement([math.inf, 0.4], 3, (0.5,)),
    )


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\]; got 0"):
        cases.guidance("box_diff", fraction=0)
    with pytest.raises(ValueError, match="reach must be at least 0; got -1"):
        cases.guidance("box_diff", reach=-1)
    dot = tiny.row(regions=(Region("cat", box=(0, 0, 0.01, 0.01)),), methods=(MethodConfig("box_diff"),))
    with pytest.raises(ValueError, match="Row '0': Region 'cat' covers no cell of the 16x16 map"):
        cases.run([dot])


def test_a_batch_equals_its_rows() -> None:
    tables = [{0.0: 0.9}, {0.0: 0.001}, {}, {0.0: 0.95}]
    cases.batch_equals_rows("box_diff", [{"thresholds": table, "max_refinements": 2} for table in tables])


def test_published_boxes_are_rounded_also_away() -> None:
    """Edges 1.4 and 4.6 of 8 rows, 3.6 and 8.4 of 12 columns; the other box has no cell left, but outlines near its edges."""
    boxes: tuple[Box, Box] = ((0.3, 0.175, 0.7, 0.575), (0.03, 0.52, 0.04, 0.9))
    regions = tuple(Region(word, box=box) for word, box in zip(("cat", "ball"), boxes, strict=True))
    targets = cases.targets_of({"prompt": tiny.PROMPT, "regions": regions})
    maps = cases.random_maps(SITES, 1)
    output = cases.guidance("box_diff", quirks="reference").loss(maps, targets, cases.FLAT)
    probs = words.token_softmax(words.mean_map(cases.layers_of(maps)), tiny.LENGTH - 1)
    cat, ball = (words.word_map(probs, (position,), 0.5 * math.sqrt(2)) for position in (3, 7))
    lost = reference.outside(ball, (0, 4, 0, 7)) + reference.corners(ball, (0, 4, 0, 7), drawn=False)
    expected = reference.loss([cat], [(4, 1, 8, 5)])[0] + lost
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
