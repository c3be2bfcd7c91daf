"""SynGen, with quirks="reference". Where a map is 0 somewhere, the published loss is no number: only gradients are compared."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, distributions

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.syngen import SynGen
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import CROSS_16, mean_map, random_maps, step, targets

PROMPT = "a big red cat and a blue ball on grass"
PAIRS = (
    "_get_outside_indices",
    "_flatten_indices",
    "split_indices",
    "_symmetric_kl",
    "calculate_positive_loss",
    "_calculate_outside_loss",
    "calculate_negative_loss",
)
PIPELINE = ("_get_attention_maps_list", "_attribution_loss", "_calculate_losses")


def _loss(theirs: dict[str, Any], maps: AttentionMaps, pairs: list[Any]) -> Tensor:
    """Their loss of words that belong together, each noun's position last."""
    pipeline = SimpleNamespace(subtrees_indices=pairs)
    pipeline._calculate_losses = functools.partial(theirs["_calculate_losses"], pipeline)
    words: Tensor = theirs["_attribution_loss"](
        pipeline, theirs["_get_attention_maps_list"](mean_map(maps)), PROMPT, dict(enumerate(PROMPT.split(), 1))
    )
    return words


def _emptied(maps: AttentionMaps, tokens: list[int]) -> AttentionMaps:
    """Maps of which each token's has some cells with exactly 0."""
    found = {}
    for site, probs in maps.probs.items():
        probs = probs.detach().clone()
        for token in tokens:
            probs[..., token : 9 * token : 3, token] = 0
        found[site] = probs.requires_grad_(True)
    return AttentionMaps(found)


def compare(clone: Path) -> Iterator[Comparison]:
    """Two nouns with modifiers, a modifier of two tokens, and nouns without modifiers."""
    pairs = load(clone / "compute_loss.py", PAIRS, {"dist": distributions})
    theirs = load(clone / "syngen_diffusion_pipeline.py", PIPELINE, pairs)
    for seed in range(3):
        maps = random_maps(CROSS_16, seed)
        loss = SynGen(quirks="reference").loss(maps, targets(prompt=PROMPT), step()).loss
        yield compared(f"loss, seed {seed}", _loss(theirs, maps, [[2, 3, 4], [7, 8]]), loss, maps.probs.values())
    maps = random_maps(CROSS_16, 3)
    aim = targets(groups=(("big", "red cat"), ("blue", "ball")), prompt=PROMPT)
    loss = SynGen(quirks="reference").loss(maps, aim, step()).loss
    yield compared("a word of two tokens", _loss(theirs, maps, [[2, [3, 4]], [7, 8]]), loss, maps.probs.values())
    for seed, empty in ((4, [3]), (5, [4, 8])):
        leaves = _emptied(random_maps(CROSS_16, seed), empty)
        theirs_now = _loss(theirs, leaves, [[2, [3, 4]], [7, 8]])
        loss = SynGen(quirks="reference").loss(leaves, aim, step()).loss
        found = compared(f"cells without attention to tokens {empty}", theirs_now, loss, leaves.probs.values())
        yield replace(found, value=math.nan if theirs_now.isfinite() or found.gradient is None else found.gradient)
    aim = targets(groups=(("cat",), ("ball",)), prompt=PROMPT)
    loss = SynGen(bare_nouns=True).loss(maps, aim, step()).loss
    yield compared("bare nouns", _loss(theirs, maps, [[4], [8]]), loss, maps.probs.values())


REFERENCE = Reference("syngen", "RoyiRa/Linguistic-Binding-in-Diffusion-Models", compare)
