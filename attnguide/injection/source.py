"""What methods that read another picture's pass beside their own have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnguide.guidance.update import PerRow
from attnguide.injection.base import Source
from attnguide.types import Branch, PassContext

Readers = tuple[tuple[Branch, Branch], ...]
"""Branches that are edited, each with the branch it reads."""

CONDITIONAL: Readers = (("cond", "source"),)
HALVES: Readers = (("uncond", "source_uncond"), *CONDITIONAL)


def source_unless_idle(prompts: str | Sequence[str | None] | None, scale: PerRow) -> Source | None:
    """A source on a trajectory of its own; ``None`` if no row has a strength, so that nothing is denoised for nobody."""
    idle = scale == 0 if isinstance(scale, int | float) else not any(scale)
    return None if idle else Source(prompts)


def from_source(values: Tensor, share: Tensor, context: PassContext, readers: Readers = HALVES) -> Tensor:
    """Interpolate the readers' values towards those of the branches they read.

    Args:
        values: Of a whole pass, ``batch ...``.
        share: Of every batch element, in [0, 1] for an interpolation; broadcast against ``values``.
        context: The pass.
        readers: Who reads whom; branches that are not in the pass are left out.
    """
    edited = values.clone()
    for reader, read in readers:
        own, source = context.paired(reader, read)
        edited[own] = torch.lerp(values[own], values[source], share[own])
    return edited
