"""Bounded Attention: loss, masks of both kinds of attention, and the assignment of clusters to subjects.

The clusters themselves are given to both sides, since k-means starts from random points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.guidance.bounded_attention import BoundedAttention
from attnguide.guidance.clusters import subject_masks
from attnguide.prompt.drawing import binary_mask
from attnguide.types import Box, Branch, Region
from references.base import Comparison, Reference, compared
from references.boxes import random_boxes
from references.foreign import load
from references.tensors import HEADS, PROMPT, TOKENS, random_maps, step, targets

SITES = [
    Site("mid.attn2", "cross", 8, 8, HEADS, "mid", 3),
    Site("up.attn2", "cross", 16, 16, HEADS, "up", 2),
    Site("mid.attn1", "self", 8, 8, HEADS, "mid", 3),
    Site("up.attn1", "self", 16, 16, HEADS, "up", 2),
]
CLUSTERS = 6


class _Base:
    """Stands for the hook that the published class inherits from; it counts steps and layers."""

    def __init__(self) -> None:
        self.cur_step = self.cur_att_layer = 0


def _published(scope: dict[str, Any], boxes: Sequence[Box]) -> Any:
    """Their object for :data:`PROMPT`: words of the subjects, function words, the end token and the nouns by position."""
    words = {"filter_token_indices": [1, 4, 5], "eos_token_index": 8, "leading_token_indices": [3, 7]}
    return scope["BoundedAttention"](boxes, [PROMPT], [[2, 3], [6, 7]], range(4), range(4), **words)


def _scope(clone: Path) -> dict[str, Any]:
    known = {
        "injection_utils": SimpleNamespace(AttentionBase=_Base),
        "KMeans": lambda n_clusters, num_init: SimpleNamespace(n_clusters=n_clusters),
    }
    return load(clone / "bounded_attention.py", ["BoundedAttention"], known)


def masks(clone: Path, boxes: Sequence[Box]) -> Iterator[tuple[Tensor, Tensor]]:
    """On maps of every size that Stable Diffusion has."""
    scope, rule = _scope(clone), BoundedAttention(quirks="reference").rule
    for box in boxes:
        theirs, aim = _published(scope, [box]), targets([Region("red cat", box=box)])
        for side in (8, 16, 32, 64):
            yield theirs._convert_boxes_to_masks(side)[0], aim.binary_masks(side, side, rule)[0, 0].flatten()


def compare(clone: Path) -> Iterator[Comparison]:
    """Two subjects of two words each. The published loss is NaN where rounding leaves a box no cell."""
    scope, rule = _scope(clone), BoundedAttention(quirks="reference").rule
    for seed in range(4):
        maps, ours = random_maps(SITES, seed), BoundedAttention(quirks="reference")
        boxes = random_boxes(2, seed, lambda box: bool(binary_mask(Region("cat", box=box), 8, 8, rule).any()))
        aim = targets([Region("red cat", box=boxes[0]), Region("blue ball", box=boxes[1])])
        theirs = _published(scope, boxes)
        theirs.optimized = True
        for site, probs in maps.probs.items():
            theirs._save_loss_values(probs, site.kind == "cross")
        loss, normalised = theirs._compute_loss()
        found = ours.loss(maps, aim, step())
        yield compared(f"loss, seed {seed}", loss, found.loss, maps.probs.values())
        yield compared(f"indicator, seed {seed}", normalised, found.indicator)
        source = torch.Generator().manual_seed(seed)
        for site in SITES:
            yield from _masked(_published(scope, boxes), ours.edits(aim, 2)[0], site, source)
        yield _assigned(_published(scope, boxes), aim.binary_masks(8, 8, rule).flatten(2)[0], source)


def _masked(theirs: Any, edit: Edit, site: Site, source: torch.Generator) -> Iterator[Comparison]:
    """Attention under the masks of denoising passes, and of guide passes, which have a conditional half alone."""
    cells = site.height * site.width
    keys = TOKENS if site.kind == "cross" else cells
    for guiding in (False, True):
        branches: tuple[Branch, ...] = ("cond",) if guiding else ("uncond", "cond")
        scores = torch.randn(len(branches), HEADS, cells, keys, generator=source).requires_grad_(True)
        theirs.optimized = guiding
        if site.kind == "cross":
            mask: Tensor = theirs._hide_other_subjects_from_tokens(1, cells, keys, scores.dtype, "cpu")
        else:
            mask = theirs._hide_other_subjects_from_subjects(1, cells, scores.dtype, "cpu")
        context = pass_context(step(), "guide" if guiding else "denoise", [0], branches)
        expected = (scores + mask[-len(branches) :]).softmax(-1)
        found = edit.scores(scores, site, context).softmax(-1)
        yield compared(f"{context.kind} pass at {site.name}", expected, found, [scores])


def _assigned(theirs: Any, boxes: Tensor, source: torch.Generator) -> Comparison:
    """Masks of the subjects from random clusters of 8 x 8 cells; the difference is 0 or 1."""
    labels, words = torch.randint(0, CLUSTERS, (64,), generator=source), torch.rand(2, 64, generator=source)
    theirs.cur_step, theirs.mean_cross_map = theirs.min_clustering_step, words.T[None]
    theirs._cluster_self_maps = lambda: (CLUSTERS, labels[None])
    expected = theirs._fix_zero_masks(theirs._build_self_masks())[0]
    found = subject_masks(labels, words, boxes, boxes, threshold=0.2, clusters=CLUSTERS)
    return compared("masks from clusters", expected.double(), found.double())


REFERENCE = Reference("bounded_attention", "omer11a/bounded-attention", compare, masks)
