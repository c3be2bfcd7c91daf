"""Bounded Attention: loss, masks of both kinds of attention, and the assignment of clusters to subjects.

The clusters themselves are given to both sides, since k-means starts from random points.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site
from attnguide.guidance.bounded_attention import BoundedAttention
from attnguide.guidance.clusters import subject_masks
from attnguide.sampling.cfg import pass_context
from attnguide.types import Box, Branch, Region
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import HEADS, PROMPT, TOKENS, random_maps, step, targets

BOXES: tuple[Box, Box] = ((0.0, 0.125, 0.5, 0.875), (0.5, 0.25, 1.0, 1.0))
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


def _published(scope: dict[str, Any]) -> Any:
    """Their object for :data:`PROMPT`: words of the subjects, function words, the end token and the nouns by position."""
    words = {"filter_token_indices": [1, 4, 5], "eos_token_index": 8, "leading_token_indices": [3, 7]}
    return scope["BoundedAttention"](BOXES, [PROMPT], [[2, 3], [6, 7]], range(4), range(4), **words)


def compare(clone: Path) -> Iterator[Comparison]:
    """Two subjects of two words each."""
    known = {
        "injection_utils": SimpleNamespace(AttentionBase=_Base),
        "KMeans": lambda n_clusters, num_init: SimpleNamespace(n_clusters=n_clusters),
    }
    scope = load(clone / "bounded_attention.py", ["BoundedAttention"], known)
    aim = targets([Region("red cat", box=BOXES[0]), Region("blue ball", box=BOXES[1])])
    for seed in range(4):
        maps, theirs, ours = random_maps(SITES, seed), _published(scope), BoundedAttention()
        theirs.optimized = True
        for site, probs in maps.probs.items():
            theirs._save_loss_values(probs, site.kind == "cross")
        loss, normalised = theirs._compute_loss()
        found = ours.loss(maps, aim, step())
        yield compared(f"loss, seed {seed}", loss, found.loss, maps.probs.values())
        yield compared(f"indicator, seed {seed}", normalised, found.indicator)
        source = torch.Generator().manual_seed(seed)
        for site in SITES:
            yield from _masked(scope, ours.edits(aim, 2)[0], site, source)
        yield _assigned(scope, (aim.masks(8, 8) >= 0.5).flatten(2)[0], source)


def _masked(scope: dict[str, Any], edit: Edit, site: Site, source: torch.Generator) -> Iterator[Comparison]:
    """Attention under the masks of denoising passes, and of guide passes, which have a conditional half alone."""
    cells = site.height * site.width
    keys = TOKENS if site.kind == "cross" else cells
    for guiding in (False, True):
        branches: tuple[Branch, ...] = ("cond",) if guiding else ("uncond", "cond")
        scores = torch.randn(len(branches), HEADS, cells, keys, generator=source).requires_grad_(True)
        theirs = _published(scope)
        theirs.optimized = guiding
        if site.kind == "cross":
            mask: Tensor = theirs._hide_other_subjects_from_tokens(1, cells, keys, scores.dtype, "cpu")
        else:
            mask = theirs._hide_other_subjects_from_subjects(1, cells, scores.dtype, "cpu")
        context = pass_context(step(), "guide" if guiding else "denoise", [0], branches)
        expected = (scores + mask[-len(branches) :]).softmax(-1)
        found = edit.scores(scores, site, context).softmax(-1)
        yield compared(f"{context.kind} pass at {site.name}", expected, found, [scores])


def _assigned(scope: dict[str, Any], boxes: Tensor, source: torch.Generator) -> Comparison:
    """Masks of the subjects from random clusters of 8 x 8 cells; the difference is 0 or 1."""
    labels, words = torch.randint(0, CLUSTERS, (64,), generator=source), torch.rand(2, 64, generator=source)
    theirs = _published(scope)
    theirs.cur_step, theirs.mean_cross_map = theirs.min_clustering_step, words.T[None]
    theirs._cluster_self_maps = lambda: (CLUSTERS, labels[None])
    expected = theirs._fix_zero_masks(theirs._build_self_masks())[0]
    found = subject_masks(labels, words, boxes, boxes, threshold=0.2, clusters=CLUSTERS)
    return compared("masks from clusters", expected.double(), found.double())


REFERENCE = Reference("bounded_attention", "omer11a/bounded-attention", compare)
