"""Endless training pictures, and latents encoded once and kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers import CLIPTokenizer

from attnguide.shapes.captions import caption
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import random_scene

FIRST_TRAINING_SEED = 1_000_000
"""Scene seeds from here on belong to training; those below, to tests, layouts and examples."""


def picture_tensor(seed: int) -> Tensor:
    """Scene ``seed`` rendered as ``channels height width`` in [-1, 1]."""
    pixels = np.asarray(render(random_scene(seed)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


class Crops(IterableDataset[Tensor]):
    """Square crops of ``side`` pixels, four in five of them centred near an object, for ever."""

    def __init__(self, side: int = 64, seed: int = 0) -> None:
        self.side, self.seed = side, seed

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        rng = random.Random(f"crops-{self.seed}-{info.id if info else 0}")
        while True:
            seed = FIRST_TRAINING_SEED + rng.randrange(10_000_000)
            scene, picture = random_scene(seed), picture_tensor(seed)
            full = picture.shape[-1]
            for _ in range(2):
                centre = rng.choice(scene.objects)
                near = rng.random() < 0.8
                jitter = lambda: rng.uniform(-0.3, 0.3) * self.side  # noqa: E731
                x = centre.x * full + jitter() if near else rng.uniform(0, full)
                y = centre.y * full + jitter() if near else rng.uniform(0, full)
                left, top = (min(max(int(v - self.side / 2), 0), full - self.side) for v in (x, y))
                yield picture[:, top : top + self.side, left : left + self.side]


class CachedLatents(Dataset[dict[str, Tensor]]):
    """Latents of scenes encoded once, each with a caption of a fresh wording every epoch.

    Items: ``latents`` (channels height width) and ``token_ids`` (tokens).
    """

    def __init__(self, latents: Tensor, tokenizer: CLIPTokenizer, drop_caption: float = 0.1) -> None:
        self.latents, self.tokenizer, self.drop_caption = latents, tokenizer, drop_caption

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        wording = random.randrange(1 << 30)
        text = caption(random_scene(FIRST_TRAINING_SEED + index), wording)
        if random.random() < self.drop_caption:
            text = ""
        ids = self.tokenizer(text, padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True)
        return {"latents": self.latents[index].float(), "token_ids": torch.tensor(ids["input_ids"])}


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, count: int, path: Path, batch: int = 64) -> Tensor:
    """Latent means of the first ``count`` training scenes, ``count channels height width`` float16; kept at ``path``."""
    if path.exists():
        stored: Tensor = load_file(path)["latents"]
        if len(stored) >= count:
            return stored[:count]
    device = next(vae.parameters()).device
    parts = []
    for start in range(0, count, batch):
        seeds = range(FIRST_TRAINING_SEED + start, FIRST_TRAINING_SEED + min(start + batch, count))
        pictures = torch.stack([picture_tensor(seed) for seed in seeds]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            means = vae.encode(pictures).latent_dist.mode()
        parts.append((means.float() * vae.config.scaling_factor).half().cpu())
    latents = torch.cat(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"latents": latents}, path)
    return latents
