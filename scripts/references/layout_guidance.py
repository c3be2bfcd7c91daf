"""Backward layout guidance, with quirks="reference"."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attnguide.attention.sites import Site
from attnguide.guidance.layout_guidance import LayoutGuidance
from attnguide.types import Box, Region
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import HEADS, random_maps, step, targets

CAT: Box = (0.03, 0.1, 0.52, 0.97)
BALLS: tuple[Box, Box] = ((0.5, 0.25, 1, 0.875), (0.0, 0.0, 0.3, 0.2))
SITES = (Site("mid", "cross", 8, 8, HEADS, "mid", 3), *(Site(f"up.{i}", "cross", 16, 16, HEADS, "up", 2) for i in range(3)))


def compare(clone: Path) -> Iterator[Comparison]:
    """One object of two words, and one in two boxes."""
    theirs = load(clone / "utils.py", ["compute_ca_loss"])["compute_ca_loss"]
    aim = targets([Region("red cat", box=CAT), *(Region("ball", box=box) for box in BALLS)])
    for seed in range(4):
        maps = random_maps(SITES, seed)
        middle, *up = (probs[0] for probs in maps.probs.values())
        loss = LayoutGuidance(quirks="reference").loss(maps, aim, step()).loss
        yield compared(
            f"loss, seed {seed}", theirs([middle], [up], [[CAT], list(BALLS)], [[2, 3], [7]]), loss, maps.probs.values()
        )


REFERENCE = Reference("layout_guidance", "silent-chen/layout-guidance", compare)
