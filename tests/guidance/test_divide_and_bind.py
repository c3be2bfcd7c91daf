import math
from typing import Any

import pytest
import torch

from attnguide.guidance.divide_and_bind import _strength
from attnguide.guidance.update import Refinement
from attnguide.losses.presence import total_variation
from attnguide.types import MethodConfig
from tests import tiny
from tests.guidance import cases
from tests.reference import divide_and_bind as reference
from tests.reference import words

SITES = cases.cross_sites(("up", 2, 4, 6), ("up", 1, 8, 12), ("up", 0, 16, 24))
TARGETS = cases.targets_of({"prompt": tiny.PROMPT})


def test_variation_by_hand() -> None:
    """Rows 0 1 / 0 3: across (1 + 3) / 2, down (0 + 2) / 2; the published slice compares row 1 with itself."""
    amap = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    assert total_variation(amap).item() == 3
    assert total_variation(amap, last_row=True).item() == 2


@pytest.mark.parametrize("quirks", ["none", "reference"])
@pytest.mark.parametrize(("index", "strength"), [(0, 1.0), (10, 5.0), (25, 10.0)])
def test_against_reference(quirks: str, index: int, strength: float) -> None:
    maps = cases.random_maps(SITES, 1, index, sharpness=4.0)
    output = cases.guidance("divide_and_bind", quirks=quirks).loss(maps, TARGETS, cases.at(index))
    layers = cases.layers_of(maps)
    std = 0.5 * (math.sqrt(2) if quirks == "reference" else 1)
    coarse = words.token_softmax(words.mean_map(layers[:1]), tiny.LENGTH - 1)
    # The nearest cell of a map of twice the side is every second one, from the first.
    fine = words.token_softmax(words.mean_map([layers[1][:, ::2, ::2], layers[2][:, ::4, ::4]]), tiny.LENGTH - 1)
    nouns = [words.word_map(coarse, (position,), std) for position in (3, 7)]
    attributes = [[words.word_map(fine, (position,), std)] for position in (2, 6)]
    loss, least = reference.loss(nouns, attributes, strength, quirks == "reference")
    assert output.loss.item() == pytest.approx(loss, rel=1e-6)
    assert output.indicator.item() == pytest.approx(-least, rel=1e-6)
    alone = cases.guidance("divide_and_bind", quirks=quirks, bind=False).loss(maps, TARGETS, cases.at(index))
    assert alone.loss.item() == pytest.approx(-least, rel=1e-6)


def test_gradcheck() -> None:
    assert cases.gradient_is_right(cases.guidance("divide_and_bind"), SITES[:2], TARGETS)


def test_a_flat_map_gives_finite_losses_and_gradients() -> None:
    maps = cases.random_maps(SITES, 1, sharpness=0.0)
    loss = cases.guidance("divide_and_bind").loss(maps, TARGETS, cases.FLAT).loss
    gradients = torch.autograd.grad(loss.sum(), list(maps.probs.values()))
    assert torch.isfinite(loss).all() and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_levels_that_are_read() -> None:
    selector = cases.guidance("divide_and_bind").sites_at(2)
    assert selector.levels == (0, 1, 2)
    assert cases.guidance("divide_and_bind", bind=False).sites_at(2).levels == (2,)
    assert cases.guidance("divide_and_bind", levels=(1,)).sites_at(2).levels == (1,)


def test_refinements() -> None:
    assert cases.guidance("divide_and_bind").update.refinements == (
        Refinement(-0.05, 100, (0.0,)),
        Refinement(-0.2, 50, (0.2,)),
        Refinement(-0.3, 50, (0.4,)),
    )


def test_a_prompt_without_a_noun() -> None:
    row = tiny.row(prompt="and the of", regions=(), methods=(MethodConfig("divide_and_bind"),))
    with pytest.raises(ValueError, match="'divide_and_bind' needs a noun; found nothing in the prompt 'and the of'"):
        cases.run([row])


def test_a_batch_equals_its_rows() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a red cat and a blue ball"},
        {"prompt": "a dog"},
        {"prompt": "a red ball left of a red dog and a cat", "groups": (("red", "dog"), ("red", "cat"))},
        {"prompt": "a blue zebra and a red cat"},
    ]
    tables = [{0.0: 0.9}, {0.0: 0.0}, {}, {0.0: 0.5}]
    options = [{"thresholds": table, "first_refinements": 2} for table in tables]
    cases.batch_equals_rows("divide_and_bind", options, rows)


@pytest.mark.parametrize("count", [30, 50, 51])
def test_the_binding_term_weighs_more_from_the_refined_steps_on(count: int) -> None:
    for refinement, weight in zip(cases.guidance("divide_and_bind").update.refinements, (1.0, 5.0, 10.0), strict=True):
        (step,) = [step for step in (cases.at(index, count) for index in range(count)) if refinement.applies(step)]
        assert _strength(step) == weight
