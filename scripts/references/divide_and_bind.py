"""Divide & Bind, with quirks="reference". Its blur kernel is computed in float32, hence about 1e-7."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.guidance.divide_and_bind import DivideAndBind
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import CROSS_16, HEADS, mean_map, random_maps, step, targets

FINER = (Site("up.2", "cross", 32, 32, HEADS, "up", 1), Site("up.3", "cross", 64, 64, HEADS, "up", 0))
LOSS = "_compute_loss_geiven_attn_map"  # as published


def _shrunk(maps: AttentionMaps) -> Tensor:
    """Mean of the finer maps at 16 cells, ``16 16 tokens``, as its attention store hands them out."""
    whole = [maps.probs[site][0].transpose(1, 2).unflatten(-1, (site.height, site.width)) for site in FINER]
    return torch.cat([F.interpolate(one, (16, 16), mode="nearest") for one in whole]).mean(0).permute(1, 2, 0)


def compare(clone: Path) -> Iterator[Comparison]:
    """With and without binding, at the steps where its strength grows; the loss, and what decides refinements."""
    path = clone / "divide_and_bind/pipeline_divide_and_bind_latest.py"
    theirs = load(path, ["GaussianSmoothing", "jenson_shannon_divergence", LOSS])[LOSS]
    for bind, (seed, progress) in itertools.product((False, True), enumerate((0.0, 0.3, 0.5))):
        mode, at = "tv_bind" if bind else "tv", step(progress)
        maps = random_maps((*CROSS_16, *FINER) if bind else CROSS_16, seed, sharpness=4.0)
        pipeline = SimpleNamespace(color_index_list=[2, 6], cur_i=at.index, threshold_indicator="tv_loss")
        published = theirs(pipeline, mean_map(maps), [3, 7], True, mode, True, _shrunk(maps) if bind else None)
        found = DivideAndBind(quirks="reference", bind=bind).loss(maps, targets(), at)
        case = f"{mode}, step {at.index}"
        yield compared(f"loss, {case}", published["loss"], found.loss, maps.probs.values())
        yield compared(f"indicator, {case}", published["threshold"], -found.indicator)


REFERENCE = Reference("divide_and_bind", "boschresearch/Divide-and-Bind", compare)
