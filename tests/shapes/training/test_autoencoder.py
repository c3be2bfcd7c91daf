from __future__ import annotations

import torch

from attnguide.shapes.training.architecture import LATENT_CHANNELS, build_autoencoder
from attnguide.shapes.training.autoencoder import AutoencoderModule, standardise_latents
from attnguide.shapes.training.data import picture_tensor


def test_standardised_latents_decode_to_the_same_pictures() -> None:
    vae = build_autoencoder().eval()
    pictures = torch.stack([picture_tensor(seed) for seed in range(4)])
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist
        decoded = vae.decode(before.mode()).sample
        standardise_latents(vae, pictures)
        after = vae.encode(pictures).latent_dist
        latents = after.mode()
        torch.testing.assert_close(vae.decode(latents).sample, decoded, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(LATENT_CHANNELS), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(LATENT_CHANNELS), rtol=0, atol=1e-3)
    scale = before.mode().std((0, 2, 3)).view(1, -1, 1, 1)
    torch.testing.assert_close(after.std * scale, before.std, rtol=1e-3, atol=1e-4)  # the noise shrinks with the signal


def test_loss_falls_on_one_batch() -> None:
    module = AutoencoderModule(steps=10)
    batch = torch.stack([picture_tensor(seed)[:, 32:64, 32:64] for seed in range(4)])
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    losses = []
    for index in range(12):
        loss = module.training_step(batch, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
