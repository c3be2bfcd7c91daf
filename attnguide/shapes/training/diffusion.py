"""Lightning module for training text encoder and UNet together, on cached latents."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from attnguide.shapes.training.architecture import build_pipeline, build_scheduler, build_text_encoder, build_unet
from attnguide.shapes.training.muon import Muon, split_parameters
from attnguide.shapes.training.pace import Progress, paced
from attnguide.shapes.training.preview import plain_preview


def draw_timesteps(count: int, total: int, device: torch.device | None = None) -> Tensor:
    """``count`` timesteps below ``total``, of density like ``sin(pi t / total)``, stratified over ``count`` quantiles."""
    shares = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    return (torch.arccos(1 - 2 * shares) / math.pi * total).long().clamp(0, total - 1)


class DiffusionModule(L.LightningModule):
    """Trains text encoder and UNet by weighted squared error on the velocity.

    Near pure noise the places of objects cannot be predicted, so that the error is large and teaches little. Middle timesteps
    are therefore drawn more often (see :func:`draw_timesteps`), and each is weighted by ``sqrt(alpha_bar)``, which makes all
    noise levels contribute about equally.

    Args:
        tokenizer: Tokenizer, whose vocabulary the text encoder gets.
        progress: Share of the training that is done, for the learning-rate schedule.
        lr: Peak learning rate.
        compile_unet: Run the UNet through ``torch.compile``.
        vae: Autoencoder that decodes the preview pictures of validation; no previews when ``None``.
        previews: Folder for grids of preview pictures.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        progress: Progress,
        lr: float = 1e-3,
        compile_unet: bool = False,
        vae: AutoencoderKL | None = None,
        previews: Path | None = None,
    ) -> None:
        super().__init__()
        self.progress, self.lr, self.previews, self.tokenizer = progress, lr, previews, tokenizer
        object.__setattr__(self, "_vae", vae)  # not a submodule: neither trained nor saved here
        self.text_encoder: CLIPTextModel = build_text_encoder(tokenizer)
        self.unet: UNet2DConditionModel = build_unet()
        self.noise_schedule = DDPMScheduler.from_config(build_scheduler().config)
        self.register_buffer("signal", self.noise_schedule.alphas_cumprod.sqrt(), persistent=False)
        if compile_unet:
            self.unet.compile()

    signal: Tensor

    def load_weights(self, pipeline: Path) -> None:
        """Begin from the text encoder and UNet of a pipeline folder, whatever precision they were saved in."""
        for network, name in ((self.text_encoder, "text_encoder"), (self.unet, "unet")):
            saved = type(network).from_pretrained(pipeline / name)
            network.load_state_dict(saved.float().state_dict())

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":  # where the fused attention's backward costs more than all convolutions together
            self.unet.set_attn_processor(AttnProcessor())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        latents, token_ids = batch["latents"], batch["clip_ids"]
        noise = torch.randn_like(latents)
        timesteps = draw_timesteps(len(latents), self.noise_schedule.config.num_train_timesteps, latents.device)
        noisy = self.noise_schedule.add_noise(latents, noise, timesteps)
        target = self.noise_schedule.get_velocity(latents, noise, timesteps)
        states = self.text_encoder(token_ids).last_hidden_state
        velocity = self.unet(noisy, timesteps, states).sample
        weight = self.signal[timesteps]
        errors = F.mse_loss(velocity.float(), target.float(), reduction="none").flatten(1).mean(1)
        loss = (weight * errors).mean()
        self.log("diffusion/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[int], batch_idx: int) -> None:
        vae = self.__dict__["_vae"]
        if vae is None or self.previews is None or self.global_rank:
            return
        pipeline = build_pipeline(vae.to(self.device), self.text_encoder, self.tokenizer, self.unet)
        self.log_dict(plain_preview(pipeline, batch, self.previews / f"{self.global_step:06d}.png"), batch_size=len(batch))

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        return paced(Muon(*split_parameters(self), lr=self.lr), self.progress)
