"""Train a ControlNet for outlines of the shapes world: ``python scripts/train_controlnet.py --steps 2000 --out outlines``.

It is initialised from the embedded model's UNet and reads the edges of a scene's objects, white on black. Its training loss is
that of the UNet (squared error on velocity or noise) on noised pictures of the scene, with the UNet frozen.
``attnguide sample --control outlines=lines.png --controlnet outlines`` uses it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from torch import Tensor

from attnguide.models.load import load_model, resolve_device
from attnguide.shapes.captions import caption
from attnguide.shapes.renderer import outlines, render
from attnguide.shapes.scene import random_scene

_FIRST_SEED = 40_000_000
_UNTOLD = 0.1
"""Share of captions that are dropped, so that both halves of classifier-free guidance are controlled."""


def pixels(pictures: list[Any], device: torch.device) -> Tensor:
    """Pictures as ``batch 3 height width`` in [0, 1]."""
    values = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(values).permute(0, 3, 1, 2).float().to(device) / 255


class Trainer:
    """One ControlNet in training beside a frozen pipeline.

    Args:
        pipeline: Pipeline of the embedded model.
        side: Side of the pictures in pixels.
        rate: Learning rate.
        seed: Seed of caption dropping, timesteps and noise.
    """

    def __init__(self, pipeline: Any, side: int, rate: float, seed: int = 0) -> None:
        self.pipeline, self.side = pipeline, side
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        self.device = pipeline.unet.device
        widths = _embedding(2 ** (len(pipeline.vae.config.block_out_channels) - 1))
        self.net = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=widths).train()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=1e-2)
        self.random = torch.Generator().manual_seed(seed)
        self._seen = _FIRST_SEED

    def step(self, batch: int) -> float:
        """One optimizer step on new scenes; returns the loss."""
        scenes = [random_scene(self._seen + index) for index in range(batch)]
        texts = [caption(scene, self._seen + index) for index, scene in enumerate(scenes)]
        self._seen += batch
        left_out = (torch.rand(batch, generator=self.random) < _UNTOLD).tolist()
        texts = ["" if untold else text for text, untold in zip(texts, left_out, strict=True)]
        loss = self._loss(scenes, texts)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def _loss(self, scenes: list[Any], texts: list[str]) -> Tensor:
        pipe, scheduler = self.pipeline, self.pipeline.scheduler
        with torch.no_grad():
            shown = pixels([render(scene, self.side) for scene in scenes], self.device) * 2 - 1
            latents = pipe.vae.encode(shown).latent_dist.mode() * pipe.vae.config.scaling_factor
            states, _ = pipe.encode_prompt(texts, self.device, 1, False)
            noise = torch.randn(latents.shape, generator=self.random).to(latents)
            times = torch.randint(scheduler.config.num_train_timesteps, (len(scenes),), generator=self.random).to(self.device)
            noisy = scheduler.add_noise(latents, noise, times)
        lines = pixels([outlines(scene, self.side) for scene in scenes], self.device)
        down, mid = self.net(noisy, times, states, controlnet_cond=lines, return_dict=False)
        found = pipe.unet(noisy, times, states, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, times) if velocity else noise
        return torch.nn.functional.mse_loss(found, target)


def _embedding(factor: int) -> tuple[int, ...]:
    """Widths of the convolutions that bring a picture to the latents' size, each but the first halving it."""
    return (16, 32, 64, 128)[: factor.bit_length()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after this time, whatever the steps")
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    model = load_model("shapes", device=resolve_device(asked.device), dtype="fp32")
    trainer = Trainer(model.pipeline, model.default_size[0], asked.rate)
    begun, losses = time.perf_counter(), list[float]()
    while len(losses) < asked.steps and time.perf_counter() - begun < asked.seconds:
        losses.append(trainer.step(asked.batch))
        if len(losses) % 50 == 0:
            print(f"step {len(losses)}: loss {statistics.fmean(losses[-50:]):.4f}", flush=True)
    trainer.net.eval().save_pretrained(asked.out)
    print(f"{asked.out}: {len(losses)} steps in {time.perf_counter() - begun:.0f} s, loss {statistics.fmean(losses[-50:]):.4f}")


if __name__ == "__main__":
    main()
