"""R&B, with quirks="reference". Its blur kernel is computed in float32, hence up to 1e-8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attnguide.attention.sites import Site
from attnguide.guidance.r_and_b import RegionAndBoundary
from attnguide.types import Box, Region
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import HEADS, random_maps, step, targets

NAMES = ("GaussianSmoothing", "smth_3", "sobel_x", "sobel_y", "sobel_conv_x", "sobel_conv_y", "edge_loss", "compute_rnb")
DOWN = [Site(f"down.{i}", "cross", 16, 16, HEADS, "down", 2) for i in range(2)]
MIDDLE = [Site("mid", "cross", 8, 8, HEADS, "mid", 3)]
UP_16 = [Site(f"up.1.{i}", "cross", 16, 16, HEADS, "up", 2) for i in range(3)]
UP_32 = [Site(f"up.2.{i}", "cross", 32, 32, HEADS, "up", 1) for i in range(3)]
BALL: Box = (0.5, 0.25, 1, 0.875)


def compare(clone: Path) -> Iterator[Comparison]:
    """Maps with blobs; once with the whole picture as a box."""
    theirs = load(clone / "RnB.py", NAMES)
    for name in ("sobel_conv_x", "sobel_conv_y"):
        theirs[name].double().requires_grad_(False)
    for seed in range(5):
        cat: Box = (0, 0, 1, 1) if seed == 4 else (0.03, 0.1, 0.52, 0.97)
        aim = targets([Region("red cat", box=cat), Region("ball", box=BALL)])
        maps = random_maps([*DOWN, *MIDDLE, *UP_16, *UP_32], seed, sharpness=2.0, coarse=4)
        middle, down, up, finer = ([maps.probs[site][0] for site in sites] for sites in (MIDDLE, DOWN, UP_16, UP_32))
        loss, _ = theirs["compute_rnb"](middle, [up, finer], [down], None, [[cat], [BALL]], [[2, 3], [7]])
        found = RegionAndBoundary(quirks="reference").loss(maps, aim, step()).loss
        yield compared(f"loss, seed {seed}", loss, found, maps.probs.values())


REFERENCE = Reference("r_and_b", "StevenShaw1999/RnB", compare)
