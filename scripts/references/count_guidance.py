"""CountGen's layout loss; it has no quirks to ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

from attnguide.guidance.count_guidance import CountGuidance
from attnguide.types import Region
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import CROSS_16, mean_map, random_maps, step, targets

CONFIG = {
    "cross_loss_step_range": [0, 50],
    "cross_loss_weight": 1,
    "cross_attn_loss_type": "bce_logits",
    "cross_attn_bce_pos_wt": 10,
}
"""What of its configuration files the loss reads."""


def compare(clone: Path) -> Iterator[Comparison]:
    """Two places of one word."""
    theirs = load(clone / "utils/loss_utils.py", ["object_layout_loss"])["object_layout_loss"]
    aim = targets([Region("cat", box=(0.0625, 0.125, 0.375, 0.5)), Region("cat", box=(0.5, 0.5, 0.9375, 1.0))])
    places = torch.zeros(16, 16)
    places[2:8, 1:6], places[8:16, 8:15] = 1, 2
    for seed in range(4):
        maps = random_maps(CROSS_16, seed)
        published = theirs(mean_map(maps)[..., 3], CONFIG, places, SimpleNamespace(curr_step_index=0))
        yield compared(f"loss, seed {seed}", published, CountGuidance().loss(maps, aim, step()).loss, maps.probs.values())


REFERENCE = Reference("count_guidance", "Litalby1/make-it-count", compare)
