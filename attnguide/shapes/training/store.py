"""Prepared training scenes on disk: latents, captions in both tokenizers' ids, and labels of image tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import IterableDataset

from attnguide.shapes.training.drawing import WORDINGS, Drawn, Tokenize, draw_scenes

CHUNK = 1000
"""Scenes per file."""

ENCODED_TOGETHER = {"cpu": 50, "cuda": 500}
"""Type of device -> pictures that the autoencoder encodes at once."""


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: np.ndarray) -> Tensor:
    """Latent means of uint8 pictures, ``count channels height width`` float16."""
    weight = next(vae.parameters())
    pictures = torch.from_numpy(pixels).to(weight.device).permute(0, 3, 1, 2).to(weight.dtype) / 127.5 - 1
    means = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
    return (means.float() * vae.config.scaling_factor).half().cpu().contiguous()


def prepare(
    folder: Path,
    scenes: int,
    vae: AutoencoderKL,
    tokenize: Mapping[str, Tokenize],
    draw: Callable[[Callable[[tuple[int, int]], Drawn], list[tuple[int, int]]], Iterable[Drawn]] = map,
) -> None:
    """Write the files of the first ``scenes`` training scenes that ``folder`` lacks, :data:`CHUNK` scenes each.

    Args:
        folder: Folder of safetensors files, one a chunk, with ``latents``, ``contents`` and the ids named in ``tokenize``.
        scenes: Number of scenes, rounded up to whole chunks.
        vae: Autoencoder that encodes the pictures, on its own device.
        tokenize: Name of the ids -> function from captions to ids.
        draw: Like ``map``; ``pool.imap`` draws on all cores while this process encodes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [chunk for chunk in range(-(-scenes // CHUNK)) if not _file(folder, chunk).exists()]
    stretches = [(chunk * CHUNK, (chunk + 1) * CHUNK) for chunk in missing]
    together = ENCODED_TOGETHER.get(vae.device.type, 50)
    for chunk, drawn in zip(missing, draw(partial(draw_scenes, tokenize=tokenize), stretches), strict=True):
        latents = [encode(vae, drawn.pixels[start : start + together]) for start in range(0, CHUNK, together)]
        others = {"contents": drawn.contents, **drawn.ids}
        part = _file(folder, chunk).with_suffix(".part")
        save_file({"latents": torch.cat(latents), **{name: torch.from_numpy(made) for name, made in others.items()}}, part)
        part.rename(_file(folder, chunk))


def _file(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:05d}.safetensors"


def load(folder: Path, scenes: int | None = None) -> dict[str, Tensor]:
    """Load the scenes that :func:`prepare` wrote: ``latents`` (scenes channels height width), ``contents``, and ids.

    Args:
        folder: Folder of the files.
        scenes: Most scenes to load; all when ``None``.

    Raises:
        ValueError: If the folder holds no scenes.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no prepared scenes.")
    parts = [load_file(file) for file in files[: None if scenes is None else -(-scenes // CHUNK)]]
    return {name: torch.cat([part[name] for part in parts])[:scenes] for name in parts[0]}


class Batches(IterableDataset[dict[str, Tensor]]):
    """Endless whole batches of prepared scenes, each with one of its captions; every scene once before any comes twice.

    Items: ``latents`` float32, ``contents`` int64, and each of the ids, int64. They are gathered where the scenes are kept,
    so that a graphics card with the scenes in its memory never waits.

    Args:
        scenes: Scenes of :func:`load`.
        size: Scenes per batch.
        empty: Name of the ids -> ids of the empty prompt, which replace dropped captions.
        drop_caption: Share of captions that are dropped.
        seed: Seed of order, wording and drops.
    """

    def __init__(
        self, scenes: Mapping[str, Tensor], size: int, empty: Mapping[str, Tensor], drop_caption: float = 0.1, seed: int = 0
    ) -> None:
        self.scenes, self.size, self.empty, self.drop_caption, self.seed = scenes, size, empty, drop_caption, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        latents = self.scenes["latents"]
        generator = torch.Generator(latents.device).manual_seed(self.seed)
        draw = {"generator": generator, "device": latents.device}
        order = torch.empty(0, dtype=torch.long, device=latents.device)
        while True:
            while len(order) < self.size:
                order = torch.cat([order, torch.randperm(len(latents), **draw)])  # type: ignore[call-overload]
            which, order = order[: self.size], order[self.size :]
            wording = torch.randint(WORDINGS, (self.size,), **draw)  # type: ignore[call-overload]
            dropped = torch.rand(self.size, **draw)[:, None] < self.drop_caption  # type: ignore[call-overload]
            batch = {"latents": latents[which].float(), "contents": self.scenes["contents"][which].long()}
            for name, nothing in self.empty.items():
                batch[name] = torch.where(dropped, nothing, self.scenes[name][which, wording]).long()
            yield batch
