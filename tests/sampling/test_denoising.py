"""Denoising error of finished pictures: by hand, its levels, its cost, and in every kind of family."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from attnguide.methods import MethodConfig
from attnguide.models.base import Conditioning
from attnguide.models.load import adapt
from attnguide.sampling.denoising import LEVELS, Denoising, denoising_errors, nearest_steps
from attnguide.sampling.table import sample_batch
from attnguide.types import Region, Step
from tests import tiny
from tests.models import families


def _step(index: int, signal: float, noise: float) -> Step:
    return Step(index, 5, 1000 * noise, signal, noise)


def test_the_nearest_evaluations_by_hand() -> None:
    pure, middle, low, clean = _step(0, 0.0, 1.0), _step(1, 0.8, 0.6), _step(2, 0.8, 0.3), _step(3, 1.0, 0.0)
    assert [step.index for step in nearest_steps([pure, middle, low, clean])] == [2, 1]  # 0.375 for two levels, 0.75 for 0.7
    assert [step.index for step in nearest_steps([pure, _step(1, 0.1, 0.9)])] == [1], "each at most once"
    with pytest.raises(ValueError, match="needs an evaluation between noise and picture; got 1 of pure noise"):
        nearest_steps([pure])


def test_rows_do_not_depend_on_their_methods_neighbours_or_guidance() -> None:
    model = tiny.model()
    plain = tiny.row("0", seed=3, steps=6)
    steered = tiny.row(
        "1", seed=4, steps=6, regions=(Region("red cat", box=(0, 0, 0.5, 1)),), methods=(MethodConfig("stable"),)
    )
    made = [*sample_batch(model, [plain]), *sample_batch(model, [steered])]
    together, _ = denoising_errors(model, made)
    alone = [denoising_errors(model, [one])[0][0] for one in made]
    assert together == pytest.approx(alone, abs=1e-3)
    other = replace(made[0], sample=replace(made[0].sample, cfg_scale=9.0, negative_prompt="a dog"))
    assert denoising_errors(model, [other])[0] == pytest.approx(alone[:1], abs=1e-6)


def test_a_row_without_a_picture_has_no_score() -> None:
    model, watch = tiny.model(), Denoising()
    results = sample_batch(model, [tiny.row("0", steps=3), tiny.row("1", seed=1, steps=3)], watch)
    scores, costed = watch.scored([replace(results[0], image=None, latents=None), results[1]])
    assert scores[0] is None and scores[1] is not None and math.isfinite(scores[1])
    assert costed[0].cost == results[0].cost
    levels = len(nearest_steps(model.make_scheduler(None, 3).steps))
    assert costed[1].cost.unet_forwards == results[1].cost.unet_forwards + levels
    assert watch.scored([replace(results[0], image=None, latents=None)])[0] == [None]


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux_dev", "sd3", "qwen_image", "pixart_alpha", "lumina2"])
def test_the_error_by_hand_in_every_family(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is wrong by 0.5 about every value of the noise, in whatever it predicts: the mean square is 0.25."""
    model = tiny.model() if family == "sd" else adapt(families.shared(family))
    height, width = (32, 32) if family not in ("sd", "sdxl") else model.default_size
    (result,) = sample_batch(model, [tiny.row(steps=30, height=height, width=width)])
    assert result.image is not None
    clean = model.encode_image([result.image])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    kind = model.make_scheduler(None, 30).prediction_type
    levels: list[float] = []

    def wrong(latents: torch.Tensor, step: Step, conditioning: Conditioning, **_: object) -> torch.Tensor:
        levels.append(step.noise / step.signal)
        assert conditioning.uncond is None and torch.allclose(latents, step.signal * clean + step.noise * noise, atol=1e-4)
        guessed = noise + 0.5
        found = (latents - step.noise * guessed) / step.signal
        return {
            "epsilon": guessed,
            "v_prediction": step.signal * guessed - step.noise * found,
            "flow_prediction": guessed - found,
        }[kind]

    monkeypatch.setattr(model, "predict", wrong)
    ((error,), (cost,)) = denoising_errors(model, [result])
    assert error == pytest.approx(math.log(0.25), abs=1e-3)
    assert levels == pytest.approx(
        LEVELS if len(levels) == 3 else LEVELS[1:], rel=0.25
    )  # strongly shifted schedules are coarse
    assert (cost.unet_forwards, cost.unet_backwards) == (len(levels), 0)
