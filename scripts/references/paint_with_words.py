"""Paint-with-words as reimplemented by cloneofsimo, with quirks="reference": painted attention.

Both interpolate masks in float32, hence about 1e-7.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.injection.paint_with_words import PaintWithWords
from attnguide.types import Box, Region, Step
from references.base import Comparison, Reference, compared
from references.boxes import painted as painted_box
from references.boxes import random_boxes
from references.foreign import load
from references.tensors import HEADS, TOKENS, apart, targets, tokenized, unit_values

FILE = "paint_with_words/paint_with_words.py"
PROMPT = "a red cat and a blue ball and a cat"
SIDE, CHANNELS, SCALE = 128, 8 * HEADS, 0.5
"""Of the picture, of the states, and of the attention."""

NAMES = ("always_round", "_img_importance_flatten", "_tokens_img_attention_weight", "inj_forward")

STEP = Step.at_sigma(2, 30, 801.0, 5.13)
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
    theirs, source = load(clone / FILE, NAMES), torch.Generator().manual_seed(0)
    for level, (name, function), seed in itertools.product(range(3), FUNCTIONS.items(), range(4)):
        side = (SIDE // 8) >> level
        latents, text = (
            torch.randn(1, length, CHANNELS, generator=source).requires_grad_(True) for length in (side * side, TOKENS)
        )
        regions = _regions(random_boxes(3, seed))
        aim = targets(regions, prompt=PROMPT)
        painted = _weights(theirs, regions, SIDE, 8 << level).double()
        context = {"CONTEXT_TENSOR": text, "WEIGHT_FUNCTION": function, "SIGMA": STEP.sigma}
        published = theirs["inj_forward"](_attention(), latents, {**context, f"CROSS_ATTENTION_WEIGHT_{side * side}": painted})
        scores = (apart(latents) @ apart(text).transpose(1, 2) * SCALE)[None]
        ours = PaintWithWords(weight_function=name, scale=STRENGTH, quirks="reference").edits(aim)[0]
        site = Site("attn2", "cross", side, side, HEADS, "up", level)
        found = ours.scores(scores, site, pass_context(STEP, "denoise", [0], ("cond",)))
        yield compared(f"{name}, {side} x {side}, draw {seed}", published, found.softmax(-1), [latents, text])


def _regions(boxes: Sequence[Box]) -> list[Region]:
    """One box each for the cat that is red, the ball, and the other cat."""
    red, ball, other = boxes
    return [
        Region("red cat", box=red, weight=1.5),
        Region("ball", box=ball, weight=0.4),
        Region("cat", box=other, occurrence=1),
    ]


def _weights(theirs: dict[str, Any], regions: Sequence[Region], side: int, ratio: int) -> Tensor:
    """Published weights of a map ``ratio`` times as small as the picture, ``cells tokens``."""
    drawn = []
    for region in regions:
        assert region.box is not None
        words = len(region.phrase.split())
        drawn.append((list(tokenized(region.phrase).ids[1 : words + 1]), region.weight * painted_box(region.box, side)))
    prompt = {"input_ids": torch.tensor([tokenized(PROMPT).ids])}
    weights: Tensor = theirs["_tokens_img_attention_weight"](drawn, prompt, ratio=ratio)
    return weights


def masks(clone: Path, boxes: Sequence[Box]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of one box each, painted on a picture of 512 x 512 pixels; on maps of 64 x 64 to 8 x 8 cells, one size a box."""
    theirs = load(clone / FILE, NAMES)
    for number, box in enumerate(boxes):
        level, regions = number % 4, [Region("ball", box=box)]
        side = 64 >> level
        ours = PaintWithWords(quirks="reference").edits(targets(regions, prompt=PROMPT))[0]
        site, flat = Site("attn2", "cross", side, side, 1, "up", level), torch.ones(1, 1, side * side, TOKENS)
        raised = ours.scores(flat, site, pass_context(STEP, "denoise", [0], ("cond",))) - flat
        weights = raised[0, 0] / (0.1 * math.log(STEP.sigma + 1))
        yield _weights(theirs, regions, 512, 8 << level), weights


def _attention() -> SimpleNamespace:
    """Stands for diffusers' attention module: no projections, and probabilities for an output."""

    def same(states: Tensor) -> Tensor:
        return states

    heads = {"reshape_heads_to_batch_dim": apart, "reshape_batch_dim_to_heads": same}
    return SimpleNamespace(scale=SCALE, to_q=same, to_k=same, to_v=unit_values, to_out=(same, same), **heads)


REFERENCE = Reference("paint_with_words", "cloneofsimo/paint-with-words-sd", compare, masks)
