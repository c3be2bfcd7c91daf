"""GrounDiT's global update, with quirks="reference": its loss.

It is R&B's, on one map, with a blur as wide as is meant. Its code adds 0.0001 to sums that it divides by; so that this does not
count it is given maps a million times as large, on whose scale ours does not depend. What remains is the sum of edges: 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from attnguide.attention.maps import gaussian_smooth
from attnguide.attention.sites import Site
from attnguide.guidance.r_and_b import RegionAndBoundary
from attnguide.method_table import METHODS
from attnguide.prompt.drawing import Rule, binary_mask
from attnguide.types import Region
from references.base import Comparison, Reference, compared
from references.boxes import random_boxes
from references.foreign import load
from references.tensors import HEADS, random_maps, step, targets

SIDE, LOUD = 32, 1e6
SITES = [Site(f"blocks.{number}", "cross", SIDE, SIDE, HEADS, "block", 0) for number in range(3)]


class _Global(RegionAndBoundary):
    """The method in reference mode, with the blur of this code."""

    def _smooth(self, maps: Tensor) -> Tensor:
        return gaussian_smooth(maps / maps.detach().amax((-2, -1), keepdim=True), 3.0)


def _sobel(weights: list[list[float]]) -> nn.Conv2d:
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    layer.weight = nn.Parameter(torch.tensor(weights)[None, None].double(), requires_grad=False)
    return layer


def _pipeline(smooth: nn.Module) -> SimpleNamespace:
    """Stands for theirs, which keeps the filters."""
    across = [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]
    down = [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]
    return SimpleNamespace(
        _execution_device="cpu", smth_3=smooth.double(), sobel_conv_x=_sobel(across), sobel_conv_y=_sobel(down)
    )


def compare(clone: Path) -> Iterator[Comparison]:
    """Maps with blobs; truncation must leave a box a cell."""
    names = ("GaussianSmoothing", "edge_loss", "aggregated_grounding_loss")
    theirs = load(clone / "groundit" / "global_update_functions.py", names)
    pipeline, rule = _pipeline(theirs["GaussianSmoothing"](sigma=3.0)), "truncated"
    for seed in range(12):
        cat, ball = random_boxes(4, seed, lambda box: _there(box, rule))[-2:]  # type: ignore[arg-type]
        aim = targets([Region("red cat", box=cat), Region("ball", box=ball)])
        maps = random_maps(SITES, seed, sharpness=2.0, coarse=4)
        mean = torch.cat([probs[0] for probs in maps.probs.values()]).mean(0)
        loss = theirs["aggregated_grounding_loss"]([None, mean * LOUD], [[cat], [ball]], [[2, 3], [7]], SIDE, SIDE, pipeline)
        preset = METHODS["groundit_global"].preset
        found = _Global(**{**preset, "quirks": "reference"}).loss(maps, aim, step()).loss
        yield compared(f"loss, seed {seed}", torch.as_tensor(loss), found, maps.probs.values())


def _there(box: tuple[float, float, float, float], rule: Rule) -> bool:
    return bool(binary_mask(Region("cat", box=box), SIDE, SIDE, rule).any())


REFERENCE = Reference("groundit_global", "KAIST-Visual-AI-Group/GrounDiT", compare)
