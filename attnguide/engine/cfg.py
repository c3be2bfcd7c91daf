"""Classifier-free guidance: the two halves of a pass and their combination."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnguide.types import Branch, PassContext, PassKind, Step


def pass_context(step: Step, kind: PassKind, rows: Sequence[int], branches: Sequence[Branch]) -> PassContext:
    """Lay a pass out branch by branch: all rows of the first, then all rows of the next (diffusers' order is uncond, cond)."""
    return PassContext(step, kind, tuple(rows) * len(branches), tuple(branch for branch in branches for _ in rows))


def combine(uncond: Tensor | None, cond: Tensor, scales: Sequence[float]) -> Tensor:
    """``uncond + s (cond - uncond)`` (https://arxiv.org/abs/2207.12598), each ``batch channels height width``.

    Rows with a scale of at most 1 take the conditional prediction as it is.

    Args:
        uncond: Prediction under the negative prompt; ``None`` where no row has one.
        cond: Prediction under the prompt.
        scales: One ``cfg_scale`` per row.
    """
    if uncond is None:
        return cond
    if len(set(scales)) == 1 and scales[0] > 1:
        return uncond + scales[0] * (cond - uncond)
    # Per-row scales are not rounded to half precision, as a Python number shared by all rows is not.
    wide = torch.promote_types(cond.dtype, torch.float32)
    factor = torch.tensor(scales, device=cond.device, dtype=wide).view(-1, 1, 1, 1)
    return torch.where(factor > 1, uncond + (factor * (cond - uncond)).to(cond.dtype), cond)
