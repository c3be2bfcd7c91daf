"""Common parts of injections that read a source's pass beside the row's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from attnguide.guidance.per_row import EachRow, PerRow
from attnguide.injection.base import Source, phrase_positions
from attnguide.prompt.masks import open_picture
from attnguide.prompt.targets import Targets
from attnguide.types import Branch, PassContext

Readers = tuple[tuple[Branch, Branch], ...]
"""Pairs of an edited branch and the branch that it reads."""

CONDITIONAL: Readers = (("cond", "source"),)
HALVES: Readers = (("uncond", "source_uncond"), *CONDITIONAL)

Words = str | None
"""Phrases separated by commas."""

Positions = tuple[list[tuple[int, ...]], list[tuple[int, ...]]]
"""Token positions of words in every row's prompt, and in every row's source prompt."""


def source_unless_idle(
    prompts: str | Sequence[str | None] | None,
    scale: PerRow,
    pictures: str | Sequence[str | None] | None = None,
    iterations: int = 0,
) -> Source | None:
    """A source on a trajectory of its own; ``None`` if the strength of every row is 0, so that no source is denoised.

    Raises:
        ValueError: If a file is not a picture, or ``iterations`` is below 0.
    """
    if iterations < 0:
        raise ValueError(f"source_iterations must be at least 0; got {iterations}.")
    for picture in {pictures} if isinstance(pictures, str) else set(pictures or ()):
        if picture is not None:
            open_picture(Path(picture).expanduser(), "source_image")
    strengths = EachRow(scale, "scale")
    if not any(strengths.values):
        return None
    if strengths.common:
        return Source(prompts, "own", pictures, iterations)
    given = EachRow[str | None](pictures, "source_image").over(len(strengths.values))
    active = [picture if strength != 0 else None for picture, strength in zip(given, strengths.values, strict=True)]
    return Source(prompts, "own", active if any(active) else None, iterations)


def from_source(values: Tensor, share: Tensor, context: PassContext, readers: Readers = HALVES) -> Tensor:
    """Interpolate the readers' values towards those of the branches they read.

    Args:
        values: Values of a whole pass, ``batch ...``.
        share: Weight of the read branch for every batch element, in [0, 1]; broadcast against ``values``.
        context: Context of the pass.
        readers: Edited and read branches; pairs that are not in the pass are skipped.
    """
    edited = values.clone()
    for reader, read in readers:
        own, source = context.paired(reader, read)
        edited[own] = torch.lerp(values[own], values[source], share[own])
    return edited


def word_positions(
    targets: Targets,
    words: Words | Sequence[Words],
    source_words: Words | Sequence[Words],
    names: tuple[str, str] = ("words", "source_words"),
) -> Positions:
    """Token positions of words in the rows' prompts and in their source prompts.

    Args:
        targets: All rows.
        words: Comma-separated phrases of the prompt, one text, or one per row.
        source_words: Comma-separated phrases of the source prompt, one text, or one per row; ``words`` where ``None``.
        names: Names of the two options in errors.

    Raises:
        ValueError: If a phrase does not occur, or there is neither one text nor one per row.
    """
    own, others = (
        EachRow[str | None](named, name).over(len(targets.tokenized))
        for name, named in zip(names, (words, source_words), strict=True)
    )
    others = [other or named for other, named in zip(others, own, strict=True)]
    pairs = ((own, targets.tokenized), (others, targets.source_prompts))
    found = [[phrase_positions(one, prompt) for one, prompt in zip(named, read, strict=True)] for named, read in pairs]
    return found[0], found[1]


def word_attention(probs: Tensor, words: Positions, context: PassContext) -> Tensor:
    """Attention to words of the rows and of their sources, mean over heads and sum over words.

    Args:
        probs: Probs of a whole pass, ``batch heads query key``.
        words: Token positions from :func:`word_positions`.
        context: Context of the pass.

    Returns:
        ``2 rows query``, the rows first.
    """
    pair = context.paired("cond", "source")
    rows = [context.rows[position] for position in pair[0]]
    return torch.stack(
        [
            torch.stack([probs[at].mean(0)[:, list(positions[row])].sum(-1) for at, row in zip(places, rows, strict=True)])
            for places, positions in zip(pair, words, strict=True)
        ]
    )
