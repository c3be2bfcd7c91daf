"""Paint-with-words as reimplemented by cloneofsimo, with quirks="reference": painted attention.

Both interpolate masks in float32, hence about 1e-7.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.sites import Site
from attnguide.injection.paint_with_words import PaintWithWords
from attnguide.sampling.cfg import pass_context
from attnguide.types import Region, Step
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import HEADS, TOKENS, apart, targets, tokenized, unit_values

PROMPT = "a red cat and a blue ball and a cat"
REGIONS = (
    Region("red cat", box=(0.0, 0.125, 0.5, 0.875), weight=1.5),
    Region("ball", box=(0.25, 0.25, 1.0, 1.0), weight=0.4),
    Region("cat", box=(0.75, 0.0, 1.0, 0.25), occurrence=1),
)
SIDE, CHANNELS, SCALE = 128, 8 * HEADS, 0.5
"""Of the picture, of the states, and of the attention."""

STEP = Step(2, 30, 801.0, 5.13)
STRENGTH = 0.4
Weight = Callable[[Tensor, float, Tensor], Tensor]
FUNCTIONS: Mapping[Literal["max", "std", "std_squared"], Weight] = {
    "max": lambda painted, sigma, scores: STRENGTH * painted * math.log(sigma + 1) * scores.max(),
    "std": lambda painted, sigma, scores: STRENGTH * painted * math.log(sigma + 1) * scores.std(),
    "std_squared": lambda painted, sigma, scores: STRENGTH * painted * math.log(sigma**2 + 1) * scores.std(),
}
"""The published code takes these from its user."""


def compare(clone: Path) -> Iterator[Comparison]:
    """Three sizes; a word that occurs twice."""
    names = ("always_round", "_img_importance_flatten", "_tokens_img_attention_weight", "inj_forward")
    theirs = load(clone / "paint_with_words/paint_with_words.py", names)
    aim, source = targets(REGIONS, prompt=PROMPT), torch.Generator().manual_seed(0)
    drawn = [
        (list(tokenized(region.phrase).ids[1 : len(region.phrase.split()) + 1]), region.weight * mask)
        for region, mask in zip(REGIONS, aim.masks(SIDE, SIDE)[0], strict=True)
    ]
    prompt = {"input_ids": torch.tensor([tokenized(PROMPT).ids])}
    for level, (name, function), seed in itertools.product(range(3), FUNCTIONS.items(), range(2)):
        side = (SIDE // 8) >> level
        latents, text = (
            torch.randn(1, length, CHANNELS, generator=source).requires_grad_(True) for length in (side * side, TOKENS)
        )
        painted = theirs["_tokens_img_attention_weight"](drawn, prompt, ratio=8 << level).double()
        context = {"CONTEXT_TENSOR": text, "WEIGHT_FUNCTION": function, "SIGMA": STEP.sigma}
        published = theirs["inj_forward"](_attention(), latents, {**context, f"CROSS_ATTENTION_WEIGHT_{side * side}": painted})
        scores = (apart(latents) @ apart(text).transpose(1, 2) * SCALE)[None]
        ours = PaintWithWords(weight_function=name, scale=STRENGTH, quirks="reference").edits(aim)[0]
        site = Site("attn2", "cross", side, side, HEADS, "up", level)
        found = ours.scores(scores, site, pass_context(STEP, "denoise", [0], ("cond",)))
        yield compared(f"{name}, {side} x {side}, draw {seed}", published, found.softmax(-1), [latents, text])


def _attention() -> SimpleNamespace:
    """Stands for diffusers' attention module: no projections, and probabilities for an output."""

    def same(states: Tensor) -> Tensor:
        return states

    heads = {"reshape_heads_to_batch_dim": apart, "reshape_batch_dim_to_heads": same}
    return SimpleNamespace(scale=SCALE, to_q=same, to_k=same, to_v=unit_values, to_out=(same, same), **heads)


REFERENCE = Reference("paint_with_words", "cloneofsimo/paint-with-words-sd", compare)
