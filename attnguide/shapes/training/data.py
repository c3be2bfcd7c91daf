"""Endless crops of rendered scenes for training the autoencoder."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from attnguide.shapes.renderer import render
from attnguide.shapes.scene import random_scene
from attnguide.shapes.training.drawing import FIRST_TRAINING_SEED


def picture_tensor(seed: int) -> Tensor:
    """Scene ``seed`` rendered as ``channels height width`` in [-1, 1]."""
    pixels = np.asarray(render(random_scene(seed)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


class Crops(IterableDataset[Tensor]):
    """Endless square crops of ``side`` pixels, four in five of them centred near an object."""

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
