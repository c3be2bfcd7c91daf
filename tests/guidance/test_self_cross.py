import math

import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.self_cross import SelfCross
from attnguide.types import MethodConfig, Region
from tests import tiny
from tests.guidance import cases
from tests.reference import initno, words
from tests.reference import self_cross as reference

SITES = cases.cross_sites(("down", 0, 4, 6), ("up", 0, 4, 6)) + cases.self_sites(("down", 0, 4, 6), ("up", 0, 4, 6))
TARGETS = cases.targets_of({"prompt": tiny.PROMPT, "regions": (Region("cat"), Region("ball"), Region("cat"))})
STRONGEST = 3


def _read(maps: AttentionMaps, published: bool, row: int = 0) -> tuple[list[words.Array], list[words.Array]]:
    """Maps of the two words, and what their cells look at."""
    std, layers = 0.5 * (math.sqrt(2) if published else 1), cases.layers_of(maps, row)
    probs = words.token_softmax(words.mean_map(layers[:2]), tiny.LENGTH - 1)
    found = [words.word_map(probs, positions, std) for positions in ((3,), (7,))]
    own = words.mean_map(layers[2:]).reshape(24, 24)
    return found, [words.blurred(reference.aggregated(word, own, published), std) for word in found]


def _peaked(seed: int, strength: float = 0.3) -> AttentionMaps:
    """Random maps in which each of the two words has cells of its own, so that neither is absent."""
    maps = cases.random_maps(SITES, 1, seed)
    probs = {}
    for site, found in maps.probs.items():
        raised = found.detach().clone()
        if site.kind == "cross":
            raised[:, :, 4 * seed : 4 * seed + 4, 3] += strength
            raised[:, :, 12 : 16 + seed, 7] += strength
        probs[site] = raised
    return AttentionMaps(probs)


def _expected(read: list[words.Array], seen: list[words.Array], published: bool) -> tuple[float, float, float]:
    cross = max(reference.absence(word, STRONGEST) for word in read)
    own = 0.0 if cross > 0.5 else reference.conflict(read, seen, published)
    return cross, own, sum(initno.clean(word, published) for word in read)


@pytest.mark.parametrize("quirks", ["none", "reference"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_against_reference_over_two_steps(quirks: str, seed: int, strength: float) -> None:
    published = quirks == "reference"
    method = cases.guidance("self_cross", quirks=quirks, strongest=STRONGEST)
    method.start(TARGETS)
    before: tuple[list[words.Array], list[words.Array]] | None = None
    counted = 0
    for index in range(2):
        maps = _peaked(seed + index, strength)
        now = _read(maps, published)
        cross, own, clean = _expected(*now, published)
        earlier = 0.0
        if before is not None and cross <= 0.5:
            crossed = ((now[0], before[1]), (before[0], now[1]))
            earlier = sum(reference.conflict(*pair, published) for pair in crossed)
        output = method.loss(maps, TARGETS, cases.at(index))
        assert output.loss.item() == pytest.approx(cross + own + earlier + 0.1 * clean, rel=1e-6)
        assert output.indicator.item() == pytest.approx(max(cross - 0.2, own - 0.3), rel=1e-6)
        counted += own > 0
        before = now
    assert counted == (2 if strength else 0)


def test_a_pass_of_fewer_rows_remembers_its_own() -> None:
    """Two rows that differ in the number of regions; the shorter one passes alone in the second step."""
    rows = (cases.ROWS[2], cases.ROWS[0])
    both, maps, later = cases.targets_of(*rows), cases.random_maps(SITES, 2, 1), cases.random_maps(SITES, 2, 2)
    together, alone = (cases.guidance("self_cross", strongest=STRONGEST) for _ in range(2))
    for method in (together, alone):
        method.start(both)
        method.loss(maps, both, cases.at(0))
    whole = together.loss(later, both, cases.at(1)).loss[1]
    part = alone.loss(later.select([1]), both.select([1]), cases.at(1)).loss[0]
    torch.testing.assert_close(whole, part)


def test_gradcheck() -> None:
    assert cases.gradient_is_right(cases.guidance("self_cross", strongest=STRONGEST), SITES, TARGETS)
    maps = _peaked(0)
    method, leaves = SelfCross(strongest=STRONGEST), [probs.requires_grad_(True) for probs in maps.probs.values()]

    def conflict(*probs: torch.Tensor) -> torch.Tensor:
        return method.terms(AttentionMaps(dict(zip(maps.probs, probs, strict=True))), TARGETS, None).own

    assert conflict(*leaves).item() > 0
    assert torch.autograd.gradcheck(conflict, tuple(leaves), fast_mode=True)


def test_flat_maps_give_finite_losses_and_gradients() -> None:
    maps = cases.random_maps(SITES, 1, sharpness=0.0)
    loss = cases.guidance("self_cross").loss(maps, TARGETS, cases.FLAT).loss
    gradients = torch.autograd.grad(loss.sum(), list(maps.probs.values()))
    assert torch.isfinite(loss).all() and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_when_it_acts() -> None:
    method = cases.guidance("self_cross")
    steps = [cases.at(index, 28) for index in range(28)]
    assert [step.index for step in steps if method.update.refinement(step)] == [4, 10]
    assert sum(method.acts(step) for step in steps) == 14
    assert method.optimise_at is None
    assert not cases.guidance("self_cross", max_refinements=0).update.refinements


def test_the_search_for_noise_is_an_option() -> None:
    options = {"rounds": 2, "iterations": 2, "max_refinements": 0, "strongest": STRONGEST}
    row = tiny.row(steps=2, regions=(Region("cat"), Region("ball")))
    plain, searched = (
        cases.run([tiny.row(steps=2, regions=row.regions, methods=(MethodConfig("self_cross", one),))])[0][0]
        for one in ({**options, "rounds": 0}, options)
    )
    assert plain.status == searched.status == "ok"
    assert searched.cost.unet_backwards == plain.cost.unet_backwards + 6  # two rounds, and the best once more
    assert cases.guidance("self_cross", **options).trials_cost(2, 2).most == 6


def test_refusals() -> None:
    for options, message in (
        ({"strongest": 0}, "strongest must be at least 1; got 0"),
        ({"rounds": -1}, "rounds and iterations must be at least 0; got -1 and 10"),
        ({"levels": (0, 1)}, r"levels must hold one level; got \(0, 1\)"),
        ({"depths": (0.5, 0.2)}, r"depths must be two numbers, 0 <= first <= last <= 1; got \(0.5, 0.2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            cases.guidance("self_cross", **options)


def test_a_batch_equals_its_rows() -> None:
    options = [{"scale": scale, "max_refinements": 2, "step_size": 5.0} for scale in (1.0, 0.5, 2.0, 1.0)]
    cases.batch_equals_rows("self_cross", options)
