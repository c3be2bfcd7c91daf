"""Inversion and noising, on tiny models whose answers can be worked out."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from attnguide.engine.inversion import invert, noised
from attnguide.models.unet import StableDiffusion
from attnguide.sampling.source_pictures import reconstruct
from attnguide.types import Sample
from tests import tiny

SIZE = (4, 8, 8)


def latents(rows: int = 2) -> Tensor:
    return torch.randn(rows, *SIZE, generator=torch.Generator().manual_seed(5))


def row(id: str, steps: int, **settings: object) -> Sample:
    return Sample(id, tiny.PROMPT, **{"height": 16, "width": 16, "steps": steps, "cfg_scale": 1.0, **settings})


def pictures(rows: int = 2) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), (40 * index, 100, 200)) for index in range(rows)]


def with_scheduler(**changes: object) -> StableDiffusion:
    pipeline = tiny.pipeline()
    config = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    pipeline.scheduler = DDIMScheduler(**{**config, **changes})
    return StableDiffusion(pipeline, "changed")


def error(model: StableDiffusion, *, steps: int = 10, cfg_scale: float = 1.0, iterations: int = 0) -> float:
    """Largest mean squared error of latents that came back."""
    path = invert(model, latents(), [tiny.PROMPT] * 2, steps=steps, cfg_scale=cfg_scale, iterations=iterations)
    rows = [row(str(index), steps, cfg_scale=cfg_scale) for index in range(2)]
    return max(one.latents_mse for one in reconstruct(model, path, rows, pictures()))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_exact_where_the_network_does_not_look(prediction: str, constant: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_scheduler(prediction_type=prediction)

    def predict(self, inputs, step, conditioning, *, until=None):  # type: ignore[no-untyped-def]
        return torch.full_like(inputs, constant)

    monkeypatch.setattr(StableDiffusion, "predict", predict)
    if prediction == "sample":  # what is predicted does not depend on where one is, hence the picture is forgotten
        path = invert(model, torch.full((2, *SIZE), constant), [tiny.PROMPT] * 2, steps=3)
        assert torch.isfinite(path.latents).all()
        return
    assert error(model, steps=5) < 1e-9


def test_a_silent_network_only_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StableDiffusion, "predict", lambda self, x, *rest, **options: torch.zeros_like(x))
    model = tiny.model()
    path = invert(model, latents(), [tiny.PROMPT] * 2, steps=4)
    clean = float(tiny.shared_pipeline().scheduler.final_alpha_cumprod)
    for step, found in zip(path.steps, path.latents, strict=True):
        assert torch.allclose(found, latents() * math.sqrt(step.alpha_bar / clean), rtol=1e-5, atol=1e-6)
    assert [step.index for step in path.steps] == [0, 1, 2, 3] and path.noise is not None
    assert path.latents.shape == (4, 2, *SIZE) and path.forwards == 4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_more_steps_and_a_fixed_point_bring_latents_back(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that answers half of what it reads: errors are of first order in the step, and the fixed point has none."""
    model = with_scheduler(prediction_type=prediction)
    monkeypatch.setattr(StableDiffusion, "predict", lambda self, x, *rest, **options: x / 2)
    few, many = error(model, steps=10), error(model, steps=100)
    assert 1e-6 < many < few / 20
    assert error(model, steps=10, iterations=20) < 1e-9


def test_a_fixed_point_does_not_run_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """So steep a network that the undamped iteration would multiply its error each time."""
    model = with_scheduler()
    monkeypatch.setattr(StableDiffusion, "predict", lambda self, x, *rest, **options: -3 * x)
    errors = [error(model, steps=4, iterations=count) for count in (1, 4, 30)]
    assert errors[2] < 1e-6 < errors[1] < errors[0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_fixed_point_undoes_a_network(prediction: str) -> None:
    model = with_scheduler(prediction_type=prediction)
    assert error(model, iterations=12) < error(model) / 100


def test_inversion_reads_the_cfg_scale() -> None:
    model = tiny.model()
    plain = invert(model, latents(), [tiny.PROMPT] * 2, steps=4)
    guided = invert(model, latents(), [tiny.PROMPT] * 2, steps=4, cfg_scale=4.0)
    assert guided.forwards == 2 * plain.forwards
    assert not torch.allclose(guided.noise, plain.noise)
    path = invert(model, latents(), [tiny.PROMPT] * 2, steps=10, cfg_scale=2.0, iterations=20)
    wrong = reconstruct(model, path, [row(str(i), 10, cfg_scale=1.0) for i in range(2)], pictures())
    right = reconstruct(model, path, [row(str(i), 10, cfg_scale=2.0) for i in range(2)], pictures())
    assert right[0].latents_mse < wrong[0].latents_mse / 10


def test_a_batch_equals_its_rows() -> None:
    model, prompts = tiny.model(), [tiny.PROMPT, "a red ball"]
    both = invert(model, latents(), prompts, steps=3, cfg_scale=3.0, iterations=1)
    for index, prompt in enumerate(prompts):
        alone = invert(model, latents()[index : index + 1], [prompt], steps=3, cfg_scale=3.0, iterations=1)
        assert torch.allclose(alone.latents[:, 0], both.latents[:, index], atol=1e-4)


def test_noising_mixes_one_noise_in() -> None:
    path = noised(tiny.model(), latents(), [3, 4], steps=5)
    assert path.forwards == 0 and len(path.latents) == 5
    first = path.steps[0]
    noise = (path.noise - math.sqrt(first.alpha_bar) * latents()) / math.sqrt(1 - first.alpha_bar)
    for step, found in zip(path.steps, path.latents, strict=True):
        mixed = math.sqrt(step.alpha_bar) * latents() + math.sqrt(1 - step.alpha_bar) * noise
        assert torch.allclose(found, mixed, atol=1e-4)
    assert abs(float(noise.mean())) < 0.2 and float(noise.std()) == pytest.approx(1, abs=0.1)
    again = noised(tiny.model(), latents(), [4, 3], steps=5)
    assert not torch.allclose(again.noise, path.noise)
    assert torch.equal(noised(tiny.model(), latents(1), [3], steps=5).noise[0], path.noise[0])


def test_refusals() -> None:
    model = tiny.model()
    with pytest.raises(ValueError, match="iterations must be at least 0; got -1"):
        invert(model, latents(), [tiny.PROMPT] * 2, steps=2, iterations=-1)
    with pytest.raises(ValueError, match="one per picture; got 1 "):
        invert(model, latents(), [tiny.PROMPT], steps=2)
    with pytest.raises(ValueError, match="clips its predictions"):
        invert(with_scheduler(clip_sample=True), latents(), [tiny.PROMPT] * 2, steps=2)
    with pytest.raises(ValueError, match="seeds must be one per picture"):
        noised(model, latents(), [1], steps=2)
