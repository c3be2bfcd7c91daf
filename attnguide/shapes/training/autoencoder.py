"""Lightning module for training the autoencoder."""

from __future__ import annotations

import lightning as L
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from attnguide.shapes.training.architecture import build_autoencoder


class AutoencoderModule(L.LightningModule):
    """Trains the autoencoder by absolute plus squared error on pixels, and a small KL term that keeps latents smooth.

    Args:
        steps: Optimizer steps of the whole training, for the learning-rate schedule.
        lr: Peak learning rate.
        kl_weight: Weight of the mean KL divergence per latent value.
    """

    def __init__(self, steps: int, lr: float = 2e-3, kl_weight: float = 2e-4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.vae: AutoencoderKL = build_autoencoder()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        posterior = self.vae.encode(batch).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample.float()
        error = decoded - batch.float()
        pixel = error.abs().mean() + error.square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        self.log_dict({"autoencoder/pixel": pixel, "autoencoder/kl": kl}, prog_bar=True)
        return pixel + self.hparams["kl_weight"] * kl

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"], weight_decay=1e-4, betas=(0.9, 0.99))
        schedule = OneCycleLR(optimizer, self.hparams["lr"], total_steps=self.hparams["steps"] + 1, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Fold each latent channel's mean and standard deviation over ``pictures`` into the two 1x1 convolutions, in place.

    Afterwards latents have mean 0 and deviation 1 per channel, so that ``scaling_factor`` is 1 and no shift is needed.
    """
    means = vae.encode(pictures).latent_dist.mode()
    mean, std = means.mean((0, 2, 3)), means.std((0, 2, 3))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std.view(1, -1, 1, 1)
    quant.weight[:channels] /= std.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
