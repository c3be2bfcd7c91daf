"""Backward layout guidance, with quirks="reference"."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from attnguide.attention.sites import Site
from attnguide.guidance.layout_guidance import LayoutGuidance
from attnguide.types import Box, Region
from references.base import Comparison, Reference, compared
from references.boxes import Watched, random_boxes
from references.foreign import load
from references.tensors import HEADS, random_maps, step, targets

SITES = (Site("mid", "cross", 8, 8, HEADS, "mid", 3), *(Site(f"up.{i}", "cross", 16, 16, HEADS, "up", 2) for i in range(3)))


def compare(clone: Path) -> Iterator[Comparison]:
    """One object of two words, and one in two boxes; some boxes are truncated away."""
    theirs = load(clone / "utils.py", ["compute_ca_loss"])["compute_ca_loss"]
    for seed in range(20):
        cat, *balls = random_boxes(3, seed)
        aim = targets([Region("red cat", box=cat), *(Region("ball", box=box) for box in balls)])
        maps = random_maps(SITES, seed)
        middle, *up = (probs[0] for probs in maps.probs.values())
        loss = LayoutGuidance(quirks="reference").loss(maps, aim, step()).loss
        yield compared(f"loss, seed {seed}", theirs([middle], [up], [[cat], balls], [[2, 3], [7]]), loss, maps.probs.values())


def masks(clone: Path, boxes: Sequence[Box]) -> Iterator[tuple[Tensor, Tensor]]:
    """On maps of 8 x 8 and 16 x 16 cells."""
    watched = Watched()
    theirs = load(clone / "utils.py", ["compute_ca_loss"], {"torch": watched})["compute_ca_loss"]
    ours = LayoutGuidance(quirks="reference")
    middle, up = (torch.rand(1, side * side, 8) for side in (8, 16))
    for box in boxes:
        aim = targets([Region("cat", box=box)])
        for drawn in watched.during(functools.partial(theirs, [middle], [[up]], [[box]], [[3]])):
            yield drawn, ours.masks(aim, *drawn.shape)[0, 0]


REFERENCE = Reference("layout_guidance", "silent-chen/layout-guidance", compare, masks)
