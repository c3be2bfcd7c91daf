import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from attnguide.attention.maps import AttentionMaps
from attnguide.types import MethodConfig
from tests import tiny
from tests.guidance import cases
from tests.reference import syngen as reference
from tests.reference import words

SITES = cases.cross_sites(("down", 0, 4, 6), ("up", 0, 4, 6))
CASES: list[tuple[dict[str, Any], list[reference.Group], int]] = [
    ({"prompt": "a red cat and a blue ball"}, [([(2,)], (3,)), ([(6,)], (7,))], 7),
    ({"prompt": "a red blue cat"}, [([(2,), (3,)], (4,))], 4),
    # zebra is five pieces
    ({"prompt": "a red zebra and a cat", "groups": (("red", "zebra"),)}, [([(2,)], (3, 4, 5, 6, 7))], 10),
]


@pytest.mark.parametrize(("row", "groups", "tokens"), CASES)
def test_against_reference(row: dict[str, Any], groups: list[reference.Group], tokens: int) -> None:
    maps = cases.random_maps(SITES, 1)
    output = cases.guidance("syngen").loss(maps, cases.targets_of(row), cases.FLAT)
    expected = reference.loss(words.mean_map(cases.layers_of(maps)), groups, tokens)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_bare_nouns() -> None:
    maps = cases.random_maps(SITES, 1)
    targets = cases.targets_of({"prompt": "a red cat and a ball"})
    mean = words.mean_map(cases.layers_of(maps))
    pair: reference.Group = ([(2,)], (3,))
    assert cases.guidance("syngen").loss(maps, targets, cases.FLAT).loss.item() == pytest.approx(
        reference.loss(mean, [pair], 6)
    )
    both = cases.guidance("syngen", bare_nouns=True).loss(maps, targets, cases.FLAT)
    assert both.loss.item() == pytest.approx(reference.loss(mean, [pair, ([], (6,))], 6), rel=1e-6)


def test_by_hand() -> None:
    """Words a, red, cat on two cells: red and cat 3:1 apart from a's 1:1; D(red, cat) = 0, D(., a) = log(3) / 8."""
    site = cases.cross_sites(("up", 0, 1, 2), heads=1)[0]
    probs = torch.full((1, 1, 2, tiny.LENGTH), 0.01, dtype=torch.float64)
    probs[0, 0, :, 2] = torch.tensor([0.3, 0.1])
    probs[0, 0, :, 3] = torch.tensor([0.6, 0.2])
    loss = (
        cases.guidance("syngen").loss(AttentionMaps({site: probs}), cases.targets_of({"prompt": "a red cat"}), cases.FLAT).loss
    )
    assert loss.item() == pytest.approx(-math.log(3) / 8)


def test_gradcheck() -> None:
    targets = cases.targets_of(CASES[0][0], CASES[2][0])
    assert cases.gradient_is_right(cases.guidance("syngen"), SITES, targets)


def test_a_cell_without_attention_has_a_finite_loss_and_the_published_gradient() -> None:
    """The published loss is infinite, and its gradient that of the cells where no map is 0."""
    maps = cases.random_maps(SITES[:1], 1)
    probs = maps.probs[SITES[0]].detach().clone()
    probs[..., 5, 2] = 0
    probs.requires_grad_(True)
    emptied = AttentionMaps({SITES[0]: probs})
    targets = cases.targets_of(CASES[0][0])
    fine = cases.guidance("syngen").loss(emptied, targets, cases.FLAT).loss
    (gradient,) = torch.autograd.grad(fine.sum(), probs)
    assert torch.isfinite(fine).all() and torch.isfinite(gradient).all()
    published = cases.guidance("syngen", quirks="reference").loss(emptied, targets, cases.FLAT).loss
    (moved,) = torch.autograd.grad(published.sum(), probs)
    (expected,) = torch.autograd.grad(_published(probs, targets.tokenized[0].ends[0]), probs)
    assert torch.isfinite(published).all() and not torch.equal(moved, gradient)
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-12)
    same = [cases.guidance("syngen", quirks=q).loss(maps, targets, cases.FLAT).loss.item() for q in ("none", "reference")]
    assert same[0] == same[1]


def _published(probs: Tensor, end: int) -> Tensor:
    """The loss of the first case with the divergences of torch, which are infinite where one map alone is 0."""
    words = {position: Categorical(probs=probs[0].mean(0)[:, position]) for position in range(1, end)}

    def distance(first: int, second: int) -> Tensor:
        one, other = words[first], words[second]
        return (kl_divergence(one, other) + kl_divergence(other, one)) / 2

    total = probs.new_zeros(())
    for modifier, noun in ((2, 3), (6, 7)):
        others = [position for position in words if position not in (modifier, noun)]
        total = total + distance(modifier, noun)
        total = total - sum(distance(word, other) for word in (noun, modifier) for other in others) / (2 * len(others))
    assert not total.isfinite()
    return total


def test_refusals_say_what_was_found() -> None:
    row = tiny.row(prompt="a cat and a dog", regions=(), methods=(MethodConfig("syngen"),))
    with pytest.raises(ValueError, match="needs a noun with a modifier; found cat, dog in the prompt 'a cat and a dog'"):
        cases.run([row])
    with pytest.raises(ValueError, match="needs a noun; found nothing in the prompt 'and the of'"):
        cases.run([tiny.row(prompt="and the of", regions=(), methods=(MethodConfig("syngen", {"bare_nouns": True}),))])


def test_a_batch_equals_its_rows() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a red cat and a blue ball"},
        {"prompt": "a blue dog"},
        {"prompt": "a red ball left of a red dog and a cat", "groups": (("red", "dog"), ("red", "cat"))},
        {"prompt": "a blue zebra and a red cat"},
    ]
    cases.batch_equals_rows("syngen", [{"scale": scale} for scale in (1.0, 0.5, 2.0, 1.0)], rows)
