from typing import Any

import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.losses.separation import overlap
from attnguide.types import MethodConfig, Region
from tests import tiny
from tests.guidance import cases
from tests.reference import a_star as reference
from tests.reference import words

SITES = cases.cross_sites(("down", 0, 4, 6), ("up", 0, 4, 6))
TARGETS = cases.targets_of({"prompt": tiny.PROMPT, "regions": (Region("cat"), Region("ball"), Region("red cat"))})


def _words(maps: AttentionMaps) -> list[words.Array]:
    probs = words.token_softmax(words.mean_map(cases.layers_of(maps)), tiny.LENGTH - 1)
    return [words.word_map(probs, positions, 0.5) for positions in ((3,), (7,), (2, 3))]


def test_overlap_by_hand() -> None:
    first, second = torch.tensor([[0.5, 0.0], [0.25, 0.25]]), torch.tensor([[0.25, 0.5], [0.25, 0.0]])
    assert overlap(first, second).item() == pytest.approx(0.5 / 2)
    assert overlap(first, first).item() == 0.5
    assert overlap(torch.zeros(2, 2), torch.zeros(2, 2)).item() == 0


def test_against_reference_over_three_steps() -> None:
    method = cases.guidance("a_star")
    method.start(TARGETS)
    passes = [cases.random_maps(SITES, 1, seed) for seed in range(4)]
    read = [_words(maps) for maps in passes]
    found = [method.loss(maps, TARGETS, cases.at(step)).loss.item() for maps, step in zip(passes, (0, 1, 1, 2), strict=True)]
    expected = [reference.loss(now, before) for now, before in zip(read, (None, read[0], read[0], read[2]), strict=True)]
    assert found == pytest.approx(expected, rel=1e-6)


def test_places_instead_of_the_previous_step() -> None:
    targets = cases.targets_of({"prompt": tiny.PROMPT, "regions": (tiny.CAT, Region("ball"))})
    method = cases.guidance("a_star", retain="places")
    method.start(targets)
    maps = cases.random_maps(SITES, 1)
    probs = words.token_softmax(words.mean_map(cases.layers_of(maps)), tiny.LENGTH - 1)
    cat, ball = (words.word_map(probs, positions, 0.5) for positions in ((2, 3), (7,)))
    mask = targets.masks(4, 6)[0, 0].double().numpy()
    expected = reference.overlap(cat, ball) + 1 - reference.overlap(cat, mask)
    assert method.loss(maps, targets, cases.FLAT).loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_word_with_three_places_counts_once() -> None:
    maps = cases.random_maps(SITES, 1)

    def loss(*regions: Region) -> float:
        method = cases.guidance("a_star")
        targets = cases.targets_of({"prompt": tiny.PROMPT, "regions": regions})
        method.start(targets)
        return sum(method.loss(maps, targets, cases.at(step)).loss.item() for step in range(2))

    twice = Region("cat", box=(0, 0, 0.5, 0.5)), Region("cat", box=(0.5, 0.5, 1, 1))
    assert loss(*twice, Region("ball")) == pytest.approx(loss(Region("cat"), Region("ball")), rel=1e-9)


def test_gradcheck() -> None:
    assert cases.gradient_is_right(cases.guidance("a_star", retain="places"), SITES, cases.targets_of(cases.ROWS[0]))


def test_flat_maps_give_finite_losses_and_gradients() -> None:
    method = cases.guidance("a_star")
    method.start(TARGETS)
    maps = cases.random_maps(SITES, 1, sharpness=0.0)
    for step in range(2):
        loss = method.loss(maps, TARGETS, cases.at(step)).loss
        gradients = torch.autograd.grad(loss.sum(), list(maps.probs.values()))
        assert torch.isfinite(loss).all() and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_it_acts_at_every_step() -> None:
    _, events = cases.run([tiny.row(steps=3, methods=(MethodConfig("a_star"),))])
    assert [event.step.index for event in events] == [0, 1, 2]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\); got 1"):
        cases.guidance("a_star", threshold=1)


def test_a_batch_equals_its_rows() -> None:
    options: list[dict[str, Any]] = [{"scale": scale} for scale in (1.0, 0.5, 2.0, 1.0)]
    cases.batch_equals_rows("a_star", options)
