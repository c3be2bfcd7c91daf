from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from attnguide.shapes.training.architecture import LATENT_CHANNELS, MAX_TOKENS, build_autoencoder, build_tokenizer
from attnguide.shapes.training.diffusion import DiffusionModule, draw_timesteps


def test_one_step_reaches_text_encoder_and_unet_alone() -> None:
    vae = build_autoencoder()
    module = DiffusionModule(build_tokenizer(300), lambda step: 0.0, vae=vae)
    names = {name.split(".")[0] for name in module.state_dict()}
    assert names == {"text_encoder", "unet"}  # the autoencoder is neither trained nor saved
    logged: dict[str, torch.Tensor] = {}
    module.log = lambda name, value, **kwargs: logged.update({name: value})  # type: ignore[method-assign, assignment]
    batch = {"latents": torch.randn(2, LATENT_CHANNELS, 16, 16), "clip_ids": torch.randint(0, 600, (2, MAX_TOKENS))}
    loss = module.training_step(batch, 0)
    loss.backward()
    assert logged["diffusion/loss"] is loss and 0.2 < loss.item() < 2  # an untrained velocity misses unit variance
    assert module.unet.conv_in.weight.grad.abs().max() > 0
    assert module.text_encoder.get_input_embeddings().weight.grad.abs().max() > 0
    assert all(weight.grad is None for weight in vae.parameters())


def test_timesteps_are_one_from_each_equal_share_of_a_sine() -> None:
    """The shares of ``(1 - cos(pi t)) / 2`` end at t = arccos(1 - 2 share) / pi: 1/3, 1/2 and 2/3 for four of them."""
    for _ in range(50):
        first, second, third, fourth = draw_timesteps(4, 900).tolist()
        assert 0 <= first <= 300 <= second <= 450 <= third <= 600 <= fourth < 900
    many = draw_timesteps(9000, 900)
    near_middle = ((many >= 300) & (many < 600)).float().mean().item()
    assert near_middle == pytest.approx(0.5, abs=0.01) and many.min() >= 0 and many.max() < 900


def test_loss_weighs_errors_by_the_signal_s_share(monkeypatch: pytest.MonkeyPatch) -> None:
    module = DiffusionModule(build_tokenizer(300), lambda step: 0.0)
    timesteps = torch.tensor([100, 700])
    monkeypatch.setattr("attnguide.shapes.training.diffusion.draw_timesteps", lambda count, total, device: timesteps)
    monkeypatch.setattr(module.noise_schedule, "get_velocity", lambda latents, noise, t: torch.full_like(latents, 2.0))
    monkeypatch.setattr(module.unet, "forward", lambda noisy, t, states: SimpleNamespace(sample=torch.zeros_like(noisy)))
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]
    batch = {"latents": torch.zeros(2, LATENT_CHANNELS, 8, 8), "clip_ids": torch.zeros(2, MAX_TOKENS, dtype=torch.long)}
    first, second = module.noise_schedule.alphas_cumprod[timesteps].tolist()
    assert module.training_step(batch, 0).item() == pytest.approx((4 * first**0.5 + 4 * second**0.5) / 2)
