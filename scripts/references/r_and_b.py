"""R&B, with quirks="reference". Its blur kernel is computed in float32, hence up to 1e-8."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from attnguide.attention.sites import Site
from attnguide.guidance.r_and_b import RegionAndBoundary
from attnguide.prompt.drawing import Rule, binary_mask
from attnguide.types import Box, Region
from references.base import Comparison, Reference, compared
from references.boxes import Watched, random_boxes
from references.foreign import load
from references.tensors import HEADS, random_maps, step, targets

NAMES = ("GaussianSmoothing", "smth_3", "sobel_x", "sobel_y", "sobel_conv_x", "sobel_conv_y", "edge_loss", "compute_rnb")
DOWN = [Site(f"down.{i}", "cross", 16, 16, HEADS, "down", 2) for i in range(2)]
MIDDLE = [Site("mid", "cross", 8, 8, HEADS, "mid", 3)]
UP_16 = [Site(f"up.1.{i}", "cross", 16, 16, HEADS, "up", 2) for i in range(3)]
UP_32 = [Site(f"up.2.{i}", "cross", 32, 32, HEADS, "up", 1) for i in range(3)]
SIDE = 64
"""Of the map that boxes are drawn on."""


def compare(clone: Path) -> Iterator[Comparison]:
    """Maps with blobs; once with the whole picture as a box. The published code fails where truncation leaves a box no cell."""
    theirs = load(clone / "RnB.py", NAMES)
    for name in ("sobel_conv_x", "sobel_conv_y"):
        theirs[name].double().requires_grad_(False)
    rule: Rule = RegionAndBoundary(quirks="reference").rule
    for seed in range(16):
        cat, ball = random_boxes(4, seed, lambda box: bool(binary_mask(Region("cat", box=box), SIDE, SIDE, rule).any()))[-2:]
        cat = (0, 0, 1, 1) if seed == 4 else cat
        aim = targets([Region("red cat", box=cat), Region("ball", box=ball)])
        maps = random_maps([*DOWN, *MIDDLE, *UP_16, *UP_32], seed, sharpness=2.0, coarse=4)
        middle, down, up, finer = ([maps.probs[site][0] for site in sites] for sites in (MIDDLE, DOWN, UP_16, UP_32))
        loss, _ = theirs["compute_rnb"](middle, [up, finer], [down], None, [[cat], [ball]], [[2, 3], [7]])
        found = RegionAndBoundary(quirks="reference").loss(maps, aim, step()).loss
        yield compared(f"loss, seed {seed}", loss, found, maps.probs.values())


def masks(clone: Path, boxes: Sequence[Box]) -> Iterator[tuple[Tensor, Tensor]]:
    """On the one map of 64 x 64 cells."""
    watched = Watched()
    theirs = load(clone / "RnB.py", ["compute_rnb"], {"torch": watched})["compute_rnb"]
    rule = RegionAndBoundary(quirks="reference").rule
    small, middle, large = (torch.rand(1, side * side, 8) for side in (8, 16, 32))
    for box in boxes:
        call = functools.partial(theirs, [small], [[middle], [large]], [[middle]], None, [[box]], [[3]])
        drawn, *_ = watched.during(call)
        yield drawn, targets([Region("cat", box=box)]).joined_binary_masks(SIDE, SIDE, rule)[0, 0]


REFERENCE = Reference("r_and_b", "StevenShaw1999/RnB", compare, masks)
