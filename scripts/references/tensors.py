"""Prompts, attention and steps that both sides of a comparison read."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteKind
from attnguide.prompt.targets import Targets
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Region, Sample, Step

TOKENS = 77
PROMPT = "a red cat and a blue ball"
"""Its words stand at 1 to 7."""

HEADS = 4
CROSS_16 = tuple(
    Site(name, "cross", 16, 16, HEADS, place, 2) for name, place in (("down.2", "down"), ("up.1.0", "up"), ("up.1.1", "up"))
)
"""The size of maps that most published code reads."""


def tokenized(prompt: str) -> TokenizedPrompt:
    """The prompt with one token a word; equal words have equal ids."""
    words = prompt.split()
    offsets: list[tuple[int, int] | None] = [None]
    for number, word in enumerate(words):
        start = len(" ".join([*words[:number], ""]))
        offsets.append((start, start + len(word)))
    padding = TOKENS - len(offsets)
    tokens = ("<|startoftext|>", *words, *["<|endoftext|>"] * padding)
    ids = tuple(zlib.crc32(token.encode()) for token in tokens)
    return TokenizedPrompt(prompt, tokens, (*offsets, *[None] * padding), ids)


def targets(regions: Sequence[Region] = (), groups: tuple[tuple[str, ...], ...] = (), prompt: str = PROMPT) -> Targets:
    """Of a batch with one row."""
    return Targets.build([Sample("0", prompt, regions=tuple(regions), groups=groups)], [tokenized(prompt)], "cpu")


def step(progress: float = 0.0) -> Step:
    """One of 50."""
    return Step.at_sigma(round(progress * 50), 50, 999.0 - progress * 1000, 5.0)


def random_maps(sites: Sequence[Site], seed: int, sharpness: float = 3.0, coarse: int | None = None) -> AttentionMaps:
    """Probabilities of one row, to be differentiated; softmax of normal numbers times ``sharpness``.

    Args:
        sites: Of cross- and self-attention.
        seed: Of the numbers.
        sharpness: See above.
        coarse: Draw as many numbers along each side and interpolate, so that maps have blobs.
    """
    source = torch.Generator().manual_seed(seed)
    found = {}
    for site in sites:
        keys = TOKENS if site.kind == "cross" else site.height * site.width
        size = (coarse, coarse) if coarse else (site.height, site.width)
        scores = torch.randn(site.heads, keys, *size, generator=source)
        scores = F.interpolate(scores, (site.height, site.width), mode="bicubic") if coarse else scores
        probs = (sharpness * scores.flatten(2).transpose(1, 2)).softmax(-1)
        found[site] = probs[None].detach().requires_grad_(True)
    return AttentionMaps(found)


def mean_map(maps: AttentionMaps, kind: SiteKind = "cross", size: int = 16) -> Tensor:
    """What published code calls the aggregated attention: mean over heads and sites of a size, ``size size keys``."""
    chosen = [probs[0] for site, probs in maps.probs.items() if (site.kind, site.height) == (kind, size)]
    return torch.cat(chosen).mean(0).unflatten(0, (size, size))


def apart(states: Tensor) -> Tensor:
    """Heads into the batch, as diffusers' attention does: ``batch n (heads d)`` to ``(batch heads) n d``."""
    return states.unflatten(-1, (HEADS, -1)).transpose(1, 2).flatten(0, 1)


def unit_values(states: Tensor) -> Tensor:
    """Values by which attention's output is its probabilities: one for each key, ``batch n (heads n)``."""
    return torch.eye(states.shape[1], dtype=states.dtype).repeat(1, HEADS).expand(len(states), -1, -1)
