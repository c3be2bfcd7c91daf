"""Fused attention kernels that also return the logsumexp of every row of scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_Found = tuple[Tensor, Tensor]
_Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], _Found]

_HALVES = (torch.float16, torch.bfloat16)
_WIDEST = 256
"""Channels of a head that FlashAttention has code for."""


def output_and_logsumexp(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> _Found | None:
    """Attention ``batch heads query head_dim`` and the logarithm of the sum of ``exp(scores)``, ``batch heads query``.

    Args:
        query: ``batch heads query head_dim``; no gradient flows through the result.
        key: ``batch heads key head_dim``.
        value: ``batch heads key head_dim``.
        mask: Bool (true may attend) or additive, broadcast to the scores.
        scale: Factor on the products.

    Returns:
        Output and logsumexp; ``None`` where no kernel takes such tensors, or none is built for this device.
    """
    alike = query.shape[-1] == value.shape[-1] and query.dtype == key.dtype == value.dtype
    if not alike or 0 in (*query.shape, *key.shape):
        return None
    for kernel in kernels_for(query, mask):
        try:
            return kernel(query, key, value, mask, scale)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # not built for this device, or not for such strides: the next one
            continue
    return None


def kernels_for(query: Tensor, mask: Tensor | None) -> list[_Kernel]:
    """Kernels that may accept such queries and mask, fastest first."""
    if query.device.type == "cpu":
        return [_on_cpu]
    if query.device.type != "cuda" or mask is not None or query.shape[-1] % 8 or query.dtype == torch.float64:
        return []
    return [_flash, _efficient] if query.dtype in _HALVES and query.shape[-1] <= _WIDEST else [_efficient]


def _on_cpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> _Found:
    added = None if mask is None else additive(mask, query.dtype).expand(-1, -1, query.shape[2], key.shape[2])
    output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=added, scale=scale
    )
    if added is not None:  # the kernel returns 0 for a fully masked row
        logsumexp = logsumexp.masked_fill(added.isneginf().all(-1), float("-inf"))
    return output, logsumexp


def _flash(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> _Found:
    output, logsumexp, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
    return output, logsumexp[..., : query.shape[2]]


def _efficient(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> _Found:
    output, logsumexp, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, compute_log_sumexp=True, scale=scale
    )
    return output, logsumexp[..., : query.shape[2]]  # padded to whole tiles of 32 queries


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool or additive mask as an additive one with four axes."""
    mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else mask.to(dtype)
