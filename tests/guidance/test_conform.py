import math
from typing import Any

import pytest
import torch

from attnguide.guidance.update import Refinement
from attnguide.types import MethodConfig
from tests import tiny
from tests.guidance import cases
from tests.reference import conform as reference
from tests.reference import words

SITES = cases.cross_sites(("down", 0, 4, 6), ("up", 0, 4, 6))
ROW: dict[str, Any] = {"prompt": "a red cat and a blue ball"}
TARGETS = cases.targets_of(ROW)
WORDS = ((2,), (3,), (6,), (7,))


def _embeddings(mean: words.Array, softmax: bool, std: float, heat: float = 100.0) -> list[words.Array]:
    read = words.token_softmax(mean, tiny.LENGTH - 1, heat) if softmax else mean
    return [words.word_map(read, positions, std) for positions in WORDS]


@pytest.mark.parametrize("quirks", ["none", "reference"])
@pytest.mark.parametrize("softmax", [False, True])
def test_against_reference_over_two_steps(softmax: bool, quirks: str) -> None:
    method = cases.guidance("conform", softmax=softmax, quirks=quirks, refinements=0)
    method.start(TARGETS)
    std = 0.5 * (math.sqrt(2) if quirks == "reference" else 1)
    passes = [cases.random_maps(SITES, 1, seed) for seed in range(4)]
    means = [words.mean_map(cases.layers_of(maps)) for maps in passes]
    found = [method.loss(maps, TARGETS, cases.at(index)).loss.item() for maps, index in zip(passes, (3, 3, 4, 4), strict=True)]
    for number in (0, 1):  # nothing stands before the first step
        now = _embeddings(means[number], softmax, std)
        assert found[number] == pytest.approx(reference.contrast(now, [0, 0, 1, 1], 0.5), rel=1e-6)
    for number in (2, 3):  # the last pass of the step before
        heat = 100.0 ** (number - 1) if quirks == "reference" else 100.0
        now = _embeddings(means[number], softmax, std) + _embeddings(means[1], softmax, std, heat)
        assert found[number] == pytest.approx(reference.contrast(now, [0, 0, 1, 1] * 2, 0.5), rel=1e-6)


def test_the_published_softmax_breaks_after_twenty_passes() -> None:
    for quirks in ("none", "reference"):
        method = cases.guidance("conform", softmax=True, quirks=quirks)
        method.start(TARGETS)
        maps = cases.random_maps(SITES, 1)
        single = type(maps)({site: probs.detach().float() for site, probs in maps.probs.items()})
        losses = [method.loss(single, TARGETS, cases.at(step)).loss.item() for step in (9, *[10] * 21)]
        assert all(map(math.isfinite, losses[:18]))
        assert math.isfinite(losses[-1]) == (quirks == "none")


def test_memory_is_per_row_and_forgotten_at_the_start() -> None:
    method = cases.guidance("conform")
    both = cases.targets_of(ROW, {"prompt": "a blue dog and a red ball"})
    maps = [cases.random_maps(SITES, 2, seed) for seed in range(3)]
    method.start(both)
    for step in range(3):
        together = method.loss(maps[step], both, cases.at(step)).loss
    method.start(both)
    for step in range(3):
        second = method.loss(maps[step].select([1]), both.select([1]), cases.at(step)).loss
    assert second.item() == pytest.approx(together[1].item(), rel=1e-12)
    method.start(both)
    fresh = method.loss(maps[2].select([1]), both.select([1]), cases.at(2)).loss
    assert fresh.item() != pytest.approx(second.item(), rel=1e-3)


def test_a_word_in_two_groups() -> None:
    """Shared by both, it is nobody's negative; the published code gives it to the last group."""
    targets = cases.targets_of({"prompt": "a red cat and a dog", "groups": (("red", "cat"), ("red", "dog"))})
    maps = cases.random_maps(SITES, 1)
    method = cases.guidance("conform", blur_std=0)
    mean = words.mean_map(cases.layers_of(maps))
    red, cat, dog = (mean[:, :, position] for position in (2, 3, 6))
    method.start(targets)
    got = method.loss(maps, targets, cases.FLAT).loss.item()

    def term(anchor: words.Array, positive: words.Array, negatives: list[words.Array]) -> float:
        def weight(a: words.Array, b: words.Array) -> float:
            return math.exp((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()) / 0.5)

        top = weight(anchor, positive)
        return -math.log(top / (top + sum(weight(anchor, negative) for negative in negatives)))

    terms = [term(red, cat, []), term(red, dog, []), term(cat, red, [dog]), term(dog, red, [cat])]
    assert got == pytest.approx(sum(terms) / 4, rel=1e-6)
    published = cases.guidance("conform", blur_std=0, quirks="reference")
    published.start(targets)
    expected = reference.contrast([red, cat, dog], [1, 0, 1], 0.5)
    assert published.loss(maps, targets, cases.FLAT).loss.item() == pytest.approx(expected, rel=1e-6)


def test_by_hand() -> None:
    """Words that attend alike in pairs, the pairs in different cells, temperature 1: log(1 + 2 e^(0 - 1))."""
    site = cases.cross_sites(("up", 0, 1, 2), heads=1)[0]
    probs = torch.zeros(1, 1, 2, tiny.LENGTH, dtype=torch.float64)
    probs[..., 0, [2, 3]], probs[..., 1, [6, 7]] = 0.5, 0.25
    method = cases.guidance("conform", blur_std=0, temperature=1.0)
    method.start(TARGETS)
    loss = method.loss(type(cases.random_maps([site], 1))({site: probs}), TARGETS, cases.FLAT).loss
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1)))


def test_gradcheck() -> None:
    assert cases.gradient_is_right(cases.guidance("conform"), SITES, TARGETS)


def test_twenty_updates_whatever_the_loss() -> None:
    assert cases.guidance("conform").update.refinements == (Refinement(-math.inf, 20, (0.0, 0.2, 0.4)),)
    _, events = cases.run([tiny.row(steps=2, methods=(MethodConfig("conform", {"refinements": 3}),))])
    assert [event.step.index for event in events] == [0, 0, 0, 0]
    assert all(event.moved == (True,) for event in events)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="needs two groups of words; found red \\+ cat in the prompt 'a red cat'"):
        cases.run([tiny.row(prompt="a red cat", regions=(), methods=(MethodConfig("conform"),))])
    with pytest.raises(ValueError, match="temperature must be above 0; got 0"):
        cases.guidance("conform", temperature=0)


def test_a_batch_equals_its_rows() -> None:
    rows: list[dict[str, Any]] = [
        ROW,
        {"prompt": "a dog and a cat"},
        {"prompt": "a red ball left of a red dog and a cat", "groups": (("red", "dog"), ("red", "cat"))},
        {"prompt": "a blue zebra and a red cat"},
    ]
    options = [{"scale": scale, "refinements": 1, "stop": 1.0} for scale in (1.0, 0.5, 2.0, 1.0)]
    cases.batch_equals_rows("conform", options, rows)
