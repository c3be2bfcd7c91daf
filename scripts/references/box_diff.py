"""BoxDiff, with quirks="reference". Its blur kernel is computed in float32, hence up to 1e-7."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from attnguide.guidance.box_diff import BoxDiff
from attnguide.types import Box, Region
from references.base import Comparison, Reference, compared
from references.boxes import Watched, random_boxes
from references.foreign import load
from references.tensors import CROSS_16, mean_map, random_maps, step, targets

SIDE = 512
"""Of the picture in whose pixels the published code has its boxes."""

TERMS, LOSS = "_compute_max_attention_per_index", "_compute_loss"
PIPELINE = "pipeline/sd_pipeline_boxdiff.py"


def compare(clone: Path) -> Iterator[Comparison]:
    """The loss, and the one of refinements, for boxes of every size, also some that are rounded away."""
    blur = load(clone / "utils/gaussian_smoothing.py", ["GaussianSmoothing"])
    theirs = load(clone / PIPELINE, [TERMS, LOSS], blur)
    for seed in range(20):
        maps, boxes = random_maps(CROSS_16, seed), random_boxes(4, seed)[-2:]
        found = BoxDiff(quirks="reference").loss(
            maps, targets([Region("cat", box=boxes[0]), Region("ball", box=boxes[1])]), step()
        )
        measured = theirs[TERMS](
            None,
            mean_map(maps),
            [3, 7],
            smooth_attentions=True,
            bbox=[[SIDE * edge for edge in box] for box in boxes],
            config=SimpleNamespace(P=0.2, L=1),
        )
        unmoved = 0 * mean_map(maps).sum()  # of boxes without cells their term is the whole number 0
        refining, total = (value + unmoved for value in theirs[LOSS](*measured))
        assert found.refining is not None
        yield compared(f"loss, seed {seed}", total, found.loss, maps.probs.values())
        yield compared(f"loss of a refinement, seed {seed}", refining, found.refining, maps.probs.values())


def masks(clone: Path, boxes: Sequence[Box]) -> Iterator[tuple[Tensor, Tensor]]:
    """On maps of 16 x 16 cells."""
    watched = Watched()
    theirs = load(clone / PIPELINE, [TERMS], {"torch": watched})[TERMS]
    rule, config = BoxDiff(quirks="reference").rule, SimpleNamespace(P=0.2, L=1)
    for box in boxes:
        pixels = [SIDE * edge for edge in box]
        mask, *_ = watched.during(functools.partial(theirs, None, torch.rand(16, 16, 8), [3], bbox=[pixels], config=config))
        yield mask, targets([Region("cat", box=box)]).joined_binary_masks(16, 16, rule)[0, 0]


REFERENCE = Reference("box_diff", "showlab/BoxDiff", compare, masks)
