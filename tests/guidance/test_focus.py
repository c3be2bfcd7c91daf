import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.focus import Focus
from attnguide.schedules import MOST_SIGMA
from attnguide.types import MethodConfig, Region, Step
from tests import tiny
from tests.closeness import assert_close
from tests.guidance import cases
from tests.reference import focus as reference
from tests.reference import words

SITES = cases.cross_sites(("down", 0, 4, 6), ("up", 0, 4, 6))
ROW = {"prompt": tiny.PROMPT, "regions": (tiny.CAT, Region("blue ball"), Region("red cat"))}
TARGETS = cases.targets_of(ROW)


def _expected(maps: AttentionMaps, subjects: list[list[int]], row: int = 0) -> float:
    mean = words.mean_map(cases.layers_of(maps, row))
    every = {token: words.blurred(mean[:, :, token], 1.0) for subject in subjects for token in subject}
    return reference.cost(every, subjects)


@pytest.mark.parametrize("seed", range(4))
def test_against_reference(seed: int) -> None:
    maps = cases.random_maps(SITES, 1, seed)
    found = cases.guidance("focus").loss(maps, TARGETS, cases.FLAT)
    assert found.loss.item() == pytest.approx(_expected(maps, [[2, 3], [6, 7]]), rel=1e-9)
    assert found.indicator.item() == found.loss.item()


def test_rows_differ_in_subjects() -> None:
    """Two subjects of two tokens; one of two; one of a single token and one of two; a single one of one."""
    rows = (ROW, {**ROW, "regions": (tiny.CAT,)}, {**ROW, "regions": (Region("cat"), Region("blue ball"))})
    targets = cases.targets_of(*rows, {**ROW, "regions": (Region("cat"),)})
    maps = cases.random_maps(SITES, 4, 3)
    found = cases.guidance("focus").loss(maps, targets, cases.FLAT).loss
    subjects = [[[2, 3], [6, 7]], [[2, 3]], [[3], [6, 7]], [[3]]]
    assert found.tolist() == pytest.approx([_expected(maps, one, row) for row, one in enumerate(subjects)], rel=1e-9)
    assert found[3].item() == 0


def test_maps_by_hand() -> None:
    """Two words that share all cells cost a half, two that share none cost nothing."""
    site = cases.cross_sites(("up", 0, 2, 6), heads=1)[0]
    probs = torch.zeros(1, 1, 2, 6, tiny.LENGTH, dtype=torch.float64)
    probs[..., :3, 3], probs[..., :3, 7] = 0.5, 0.25
    targets = cases.targets_of({**ROW, "regions": (Region("cat"), Region("ball"))})
    method = cases.guidance("focus", blur_std=0.0)
    assert method.loss(AttentionMaps({site: probs.flatten(2, 3)}), targets, cases.FLAT).loss.item() == pytest.approx(0.5)
    probs[..., 7] = probs[..., 7].flip(-1)
    loss = method.loss(AttentionMaps({site: probs.flatten(2, 3)}), targets, cases.FLAT).loss.item()
    assert loss == pytest.approx(0, abs=1e-9)


def test_gradcheck() -> None:
    assert cases.gradient_is_right(cases.guidance("focus"), SITES, cases.targets_of(cases.ROWS[0]))


def test_flat_maps_give_finite_losses_and_gradients() -> None:
    maps = cases.random_maps(SITES, 1, sharpness=0.0)
    loss = cases.guidance("focus").loss(maps, TARGETS, cases.FLAT).loss
    gradients = torch.autograd.grad(loss.sum(), list(maps.probs.values()))
    assert torch.isfinite(loss).all() and all(torch.isfinite(gradient).all() for gradient in gradients)


def _euler(step_size: float, sigma: float, following: float) -> tuple[float, float]:
    """A quadratic cost before and after one step ``x + (sigma' - sigma) v`` of flow matching under the control alone."""
    position = np.array([3.0, -6.0, 1.0])
    step = Step(0, 10, 1000 * sigma, 1 - sigma, sigma)
    size = Focus(step_size=step_size).update.step_size(step)
    # Of the noise, as the update says; the velocity is data's negative plus noise, at the same latents.
    noise_shift = size * math.sqrt(1 - step.alpha_bar) * 2 * position
    velocity = noise_shift / (1 - sigma)
    return float((position**2).sum()), float(((position + (following - sigma) * velocity) ** 2).sum())


@pytest.mark.parametrize("sigma", [0.95, 0.7, 0.3])
def test_the_sign_descends(sigma: float) -> None:
    before, after = _euler(0.05, sigma, sigma - 0.05)
    assert after < before
    before, after = _euler(-0.05, sigma, sigma - 0.05)
    assert after > before


@pytest.mark.parametrize("sigma", [0.97, 0.5, 0.04])
def test_the_factor_is_the_published_one(sigma: float) -> None:
    step = Step(0, 10, 1000 * sigma, 1 - sigma, sigma)
    # What a flow scheduler makes of a move of the noise by 1: a move of the velocity by 1 / signal, bounded.
    shift = math.sqrt(1 - step.alpha_bar) / max(step.signal, 1 / MOST_SIGMA)
    found = Focus(most=1e9, step_size=3.0).update.step_size(step) * shift
    assert found == pytest.approx(3 * reference.factor(1 - sigma))
    assert Focus(step_size=3.0).update.step_size(step) * shift == pytest.approx(min(found, 300))


@pytest.mark.parametrize("time", [0.9, 0.4, 0.1])
def test_other_models_are_brought_to_the_same_time(time: float) -> None:
    """Latents of a variance-preserving model are those of flow matching, larger by signal + noise."""
    flow, other = Step(0, 10, 0.0, time, 1 - time), Step.at_sigma(0, 10, 0.0, (1 - time) / time)
    larger = other.signal + other.noise
    sizes = [Focus().update.step_size(step) * math.sqrt(1 - step.alpha_bar) for step in (flow, other)]
    assert sizes[1] == pytest.approx(sizes[0] * larger)


def test_the_first_step_does_not_outweigh_all_others() -> None:
    early = Step(0, 28, 999.0, 0.001, 0.999)
    limited, published = (Focus(quirks=quirks).update.step_size(early) for quirks in ("none", "reference"))  # type: ignore[arg-type]
    assert limited / published == pytest.approx(100 / reference.factor(1e-3))
    assert Focus().update.step_size(Step(0, 28, 1000.0, 0.0, 1.0)) > 0


def _costs(**options: float) -> list[float]:
    row = tiny.row(steps=6, scheduler="euler", methods=(MethodConfig("focus", options),))
    _, events = cases.run([row])
    assert [event.step.index for event in events] == list(range(6))
    return [event.losses[0] for event in events]


def test_control_lowers_the_cost_of_the_next_step() -> None:
    """Each event holds the cost of the latents before its step; the first latents are the same."""
    down, still, up = (_costs(step_size=size) for size in (20.0, 1e-9, -20.0))
    assert down[0] == still[0] == up[0]
    assert down[1] < still[1] < up[1]
    assert down[-1] < still[-1]


def test_it_acts_on_the_prediction_alone() -> None:
    method = cases.guidance("focus")
    assert method.update.space == "noise" and method.update.iterations == 1
    assert method.sites_at(2).levels == (2,)
    single = replace(SITES[0], name="single_transformer_blocks.3.attn", level=2)
    dual = replace(SITES[0], name="transformer_blocks.3.attn", level=2)
    assert method.sites_at(0).chosen([single, dual]) == {dual}


def test_the_denoising_pass_may_give_the_gradient() -> None:
    row = tiny.row(steps=2, scheduler="euler")
    apart, shared = (
        cases.run([replace(row, methods=(MethodConfig("focus", {"step_size": 20.0, "fused": fused}),))])[0][0]
        for fused in (False, True)
    )
    assert apart.latents is not None and shared.latents is not None
    assert_close(shared.latents, apart.latents)
    assert shared.cost.unet_forwards == apart.cost.unet_forwards - 2


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"most and power must be above 0; got 0.0 and 3.0"):
        Focus(most=0.0)
    with pytest.raises(ValueError, match="step size must be finite; got inf"):
        Focus(step_size=float("inf"))


def test_a_batch_equals_its_rows() -> None:
    cases.batch_equals_rows("focus", [{"step_size": 20.0, "scale": scale} for scale in (1.0, 0.5, 2.0, 1.0)])
