from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.types import MethodConfig, Region
from tests import tiny
from tests.guidance import cases
from tests.reference import saga as reference
from tests.reference import words

SITES = cases.cross_sites(("down", 0, 8, 12), ("up", 0, 8, 12))
ROW = {"prompt": "a red cat and a blue ball", "regions": (Region("cat"), Region("blue ball"), Region("cat"))}
TARGETS = cases.targets_of(ROW)


@pytest.mark.parametrize("seed", [0, 1])
def test_against_reference(seed: int) -> None:
    maps = cases.random_maps(SITES, 1, seed)
    output = cases.guidance("saga").loss(maps, TARGETS, cases.FLAT)
    probs = words.token_softmax(words.mean_map(cases.layers_of(maps)), tiny.LENGTH - 1)
    read = [words.word_map(probs, positions, 0.5) for positions in ((3,), (6, 7))]
    assert output.loss.item() == pytest.approx(reference.loss(read), rel=1e-6)


def test_gradcheck() -> None:
    assert cases.gradient_is_right(cases.guidance("saga"), SITES, TARGETS)


class _Scripted:
    """Trials with gradients and clean latents told in advance, and a noise that counts its draws."""

    def __init__(self, clean: Tensor, gradients: list[Tensor]) -> None:
        self.clean, self.gradients, self.draws = clean, gradients, 0
        self.step, self.targets = cases.at(10), TARGETS

    def denoised(self, latents: Tensor, rows: Any) -> Tensor:
        return self.clean

    def gradient(self, latents: Tensor, rows: Any, judge: Any) -> Tensor:
        return self.gradients.pop(0)

    def noise(self, row: int, like: Tensor) -> Tensor:
        self.draws += 1
        return torch.full_like(like, float(self.draws))


def test_the_mean_moves_as_in_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=generator)
    gradients = [torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=generator) * size for size in (0.001, 0.1, 3.0)]
    trials = _Scripted(clean, list(gradients))
    found = cases.guidance("saga", iterations=3).optimise(torch.zeros_like(clean), trials)
    share = trials.step.alpha_bar
    expected = reference.learned(clean[0].numpy(), [gradient[0].numpy() for gradient in gradients], share**0.5, 20.0)
    assert trials.draws == 4
    np.testing.assert_allclose(found[0].numpy(), share**0.5 * expected + (1 - share) ** 0.5 * 4, rtol=1e-6)


def test_when_it_acts_and_what_it_costs() -> None:
    def costs(**options: Any) -> tuple[int, int, list[int]]:
        (result,), events = cases.run([tiny.row(steps=4, methods=(MethodConfig("saga", {"iterations": 3, **options}),))])
        (plain,), _ = cases.run([tiny.row(steps=4)])
        assert result.latents is not None and plain.latents is not None
        assert (result.latents - plain.latents).abs().max() > 1e-3
        extra = result.cost.unet_forwards - plain.cost.unet_forwards
        return extra, result.cost.unet_backwards, [event.step.index for event in events]

    assert costs() == (4, 3, [])  # one pass more for the clean latents
    assert costs(at=0.25, stop=0.75) == (6, 5, [1, 2])


def test_no_iterations_and_no_scale_change_nothing() -> None:
    plain = cases.run([tiny.row(steps=2)])[0][0].latents
    for options in ({"iterations": 0}, {"scale": 0.0}):
        latents = cases.run([tiny.row(steps=2, methods=(MethodConfig("saga", options),))])[0][0].latents
        assert latents is not None and plain is not None and torch.equal(latents, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": 1.0}, r"at must lie in \[0, 1\); got 1.0"),
        ({"iterations": -1}, "iterations must be at least 0; got -1"),
        ({"learning_rate": float("inf")}, "learning_rate must be at least 0; got inf"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cases.guidance("saga", **options)


def test_a_batch_equals_its_rows() -> None:
    options = {"iterations": 2, "learning_rate": 2.0, "at": 0.0, "stop": 0.5, "step_size": 5.0}
    cases.batch_equals_rows("saga", [{**options, "scale": scale} for scale in (1.0, 0.5, 2.0, 1.0)])


def test_a_window_that_is_over_before_it_begins() -> None:
    with pytest.raises(ValueError, match=r"stop must be 0, for no updates afterwards, or above at; got 0.1 with at 0.2"):
        cases.guidance("saga", at=0.2, stop=0.1)
