"""DenseDiffusion, with quirks="reference": modulated attention, and text states with the phrases' own.

Its masks, and with them its strengths, are float32, hence about 1e-7.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from attnguide.attention.sites import Site, SiteKind
from attnguide.engine.cfg import pass_context
from attnguide.injection.dense_diffusion import DenseDiffusion
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.prompt.regions import rasterise
from attnguide.prompt.targets import Targets
from attnguide.types import Box, Region, Step
from references.base import Comparison, Reference, compared
from references.boxes import random_boxes
from references.foreign import load
from references.tensors import HEADS, PROMPT, TOKENS, apart, targets, tokenized, unit_values

SIDE = 16
"""Of the latent."""

CHANNELS, SCALE = 8 * HEADS, 0.5
PHRASES = ("red cat", "blue ball")
TIMESTEPS = (901.0, 801.0, 701.0)
CALLS = 32
"""Attention calls a step, by which the published code knows its step."""


class _Tokens(dict[str, Any]):
    """What a tokenizer of transformers returns, as far as it is read."""

    @property
    def input_ids(self) -> Tensor:
        return cast(Tensor, self["input_ids"])


class _Tokenizer:
    model_max_length = TOKENS

    def __call__(self, texts: Sequence[str], **_: object) -> _Tokens:
        read = [tokenized(text) for text in texts]
        return _Tokens(input_ids=torch.tensor([one.ids for one in read]), length=[one.ends[0] + 1 for one in read])


class _Pipeline:
    """Stands for theirs, which draws no picture, and for attnguide's model; random text states."""

    def __init__(self) -> None:
        self.tokenizer, self.tokenize = _Tokenizer(), tokenized
        source = torch.Generator().manual_seed(0)
        texts = (PROMPT, *PHRASES, "")
        self.states = {tokenized(text).ids: torch.randn(TOKENS, CHANNELS, generator=source) for text in texts}

    def __call__(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(images=[])

    def text_encoder(self, ids: Tensor) -> list[Tensor]:
        return [torch.stack([self.states[tuple(row)] for row in ids.tolist()])]

    def encode_prompt(self, prompts: Sequence[str], negative: None) -> Conditioning:
        return Conditioning(self.text_encoder(self.tokenizer(prompts).input_ids)[0])


def _apart(seed: int) -> tuple[Box, Box]:
    """Two boxes that do not meet, on either side of the middle; the published code expects segments that are apart."""
    (a, b, c, d), (e, f, g, h) = random_boxes(2, seed)
    return (a / 2, b, c / 2, d), (0.5 + e / 2, f, 0.5 + g / 2, h)


def _prepared(clone: Path, pipeline: _Pipeline, aim: Targets, strength: float) -> dict[str, Any]:
    """The scope of their attention, after their own preparation of its masks and text states."""
    known = {
        **load(clone / "utils.py", ["preprocess_mask"]),
        "pipe": pipeline,
        "timesteps": torch.tensor(TIMESTEPS),
        "sp_sz": SIDE,
        "device": "cpu",
    }
    scope = load(clone / "gradio_app.py", ["mod_forward", "process_generation"], known)
    drawn = [np.asarray(rasterise(region, SIDE, SIDE)) for region in aim.regions[0]]
    scope["process_generation"](drawn, 0, strength, 0.3 * strength, 1.0, 1, PROMPT, *PHRASES)
    return scope


def _attention() -> SimpleNamespace:
    """Stands for diffusers' attention module: no projections, and probabilities for an output."""

    def same(states: Tensor) -> Tensor:
        return states

    absent = dict.fromkeys(("spatial_norm", "group_norm"))
    switches = dict.fromkeys(("norm_cross", "upcast_attention", "residual_connection"), False)
    numbers = {"heads": HEADS, "scale": SCALE, "rescale_output_factor": 1.0}
    parts = {"to_q": same, "to_k": same, "to_v": unit_values, "to_out": (same, same), "batch_to_head_dim": same}
    hooks = {"head_to_batch_dim": apart, "prepare_attention_mask": lambda *_: None}
    return SimpleNamespace(**absent, **switches, **numbers, **parts, **hooks)


def compare(clone: Path) -> Iterator[Comparison]:
    """Three sizes of both kinds of attention, at the published strength and where it is large enough to overshoot."""
    pipeline, source = _Pipeline(), torch.Generator().manual_seed(0)
    model = cast(ModelAdapter, pipeline)
    kinds: tuple[SiteKind, ...] = ("cross", "self")
    for strength, seed in itertools.product((1.0, 3.0), range(3)):
        aim = targets([Region(phrase, box=box) for phrase, box in zip(PHRASES, _apart(seed), strict=True)])
        scope, ours = _prepared(clone, pipeline, aim, strength), DenseDiffusion(scale=strength, quirks="reference")
        text = scope["text_cond"]
        states = ours.condition(model.encode_prompt([PROMPT], None), aim, model).cond
        yield compared(f"text states, strength {strength:g}, boxes {seed}", text[1:], states)
        for level, kind, index in itertools.product(range(3), kinds, range(len(TIMESTEPS))):
            side = SIDE >> level
            latents = torch.randn(2, side * side, CHANNELS, generator=source).requires_grad_(True)
            scope["COUNT"] = CALLS * index
            theirs = scope["mod_forward"](_attention(), latents, text if kind == "cross" else None)
            scores = apart(latents) @ apart(text if kind == "cross" else latents).transpose(1, 2) * SCALE
            context = pass_context(Step.at_sigma(index, 50, TIMESTEPS[index], 5.0), "denoise", [0], ("uncond", "cond"))
            site = Site("attn", kind, side, side, HEADS, "up", level)
            found = ours.edits(aim)[0].scores(scores.unflatten(0, (2, HEADS)), site, context).softmax(-1)
            case = f"{kind}, {side} x {side}, step {index}, strength {strength:g}, boxes {seed}"
            yield compared(case, theirs, found, [latents])


REFERENCE = Reference("dense_diffusion", "naver-ai/DenseDiffusion", compare)
