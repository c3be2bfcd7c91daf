"""Attention output and row logsumexp, both differentiable, by one fused kernel.

Fused attention kernels return the logsumexp ``r`` of rows without a gradient. Their backward pass turns the gradient ``G`` of
the output ``O`` into that of the scores, ``P (G V' - d)``, with ``d`` the sum of ``G O`` over channels, computed from the ``G``
and ``O`` that it is handed. A gradient ``g`` of ``r`` adds ``P g``. So one channel is appended to ``O`` and ``G``, holding
``-g`` and 1, and zeros to queries, keys and values: scores and ``G V'`` stay as they are, and ``d`` becomes ``d - g``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnguide.attention.kernels import additive

_HALVES = (torch.float16, torch.bfloat16)
_WIDEST = 248
"""Largest head_dim that FlashAttention takes with the appended channels."""


def attention_with_sums(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor] | None:
    """Attention output ``batch heads query head_dim`` and logsumexp ``batch heads query``, differentiable once.

    Args:
        query: ``batch heads query head_dim``.
        key: ``batch heads key head_dim``.
        value: ``batch heads key head_dim``.
        mask: Bool or additive, in four axes, broadcast to the scores; every row must have a key.
        scale: Factor on the products.

    Returns:
        Output and logsumexp; ``None`` where no kernel gives both for such tensors.
    """
    alike = query.shape[-1] == value.shape[-1] and query.dtype == key.dtype == value.dtype
    if not alike or 0 in (*query.shape, *key.shape):
        return None
    if query.is_meta:  # counted as the products that it stands for
        scores = (query @ key.transpose(-1, -2)) * scale
        return scores.softmax(-1) @ value, scores.logsumexp(-1)
    if query.device.type == "cuda" and (mask is not None or not _trusted(query.device, query.dtype, query.shape[-1])):
        return None
    if query.device.type not in ("cpu", "cuda"):
        return None
    found: tuple[Tensor, Tensor] = _WithSums.apply(query, key, value, mask, scale)  # type: ignore[no-untyped-call]
    return found


class _WithSums(torch.autograd.Function):
    """One fused attention call with gradients of output and logsumexp."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        ctx.scale, ctx.further = scale, ()
        if query.device.type == "cpu":
            mask = None if mask is None else additive(mask, query.dtype).expand(-1, -1, query.shape[2], key.shape[2])
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            output, sums = kernel(query, key, value, attn_mask=mask, scale=scale)
        else:
            output, sums, *further = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
            ctx.further = tuple(further[:6])
        ctx.save_for_backward(query, key, value, mask, output, sums)
        return output, sums

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor, grad_sums: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, mask, output, sums = ctx.saved_tensors
        behind, ones = _channels(grad_sums, query.dtype)
        padded = [F.pad(tensor, (0, behind.shape[-1])) for tensor in (query, key, value)]
        given = torch.cat([grad_output, ones.expand_as(behind)], -1)
        shown = torch.cat([output, -behind], -1)
        if query.device.type == "cpu":
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
            found = kernel(given, *padded, shown, sums, 0.0, False, attn_mask=mask, scale=ctx.scale)
        else:
            first, second, most, most_keys, state, unused = ctx.further
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_backward
            lengths = (first, second, most, most_keys)
            found = kernel(given, *padded, shown, sums, *lengths, 0.0, False, state, unused, scale=ctx.scale)
        channels = query.shape[-1]
        return *(gradient[..., :channels] for gradient in found), None, None


def _channels(gradient: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Channels and a factor whose products sum to a gradient of the logsumexp.

    In half precision it is split into a rounded part and its rounding error, both scaled to near 1. Eight channels, as kernels
    ask.

    Args:
        gradient: Gradient of the logsumexp, ``batch heads query``, in float32 or wider.
        dtype: Dtype of the channels.
    """
    if dtype not in _HALVES:
        wide = F.pad(gradient.to(dtype).unsqueeze(-1), (0, 7))
        return wide, torch.ones((), dtype=dtype, device=gradient.device)
    size = torch.exp2(gradient.abs().amax().clamp_min(2.0**-20).log2().floor()).clamp_max(2.0**15)
    near = gradient / size
    high = near.to(dtype)
    low = (near - high).to(dtype)
    return F.pad(torch.stack([high, low], -1), (0, 6)), size.to(dtype)


@cache
def _trusted(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether a GPU's kernel gives right gradients: compared once with explicit attention on small random tensors."""
    if dtype not in _HALVES or channels % 8 or channels > _WIDEST:
        return False
    source = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, 2, 16, channels, generator=source).to(device, dtype) for _ in range(3)]
    try:
        with torch.enable_grad():
            found = _tried(parts, lambda query, key, value: _WithSums.apply(query, key, value, None, 0.1))  # type: ignore[no-untyped-call]
            wanted = _tried([part.double() for part in parts], _explicit)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # not built for this device
        return False
    return all(
        float((one.double() - other).abs().max()) <= 0.05 * float(other.abs().max())
        for one, other in zip(found, wanted, strict=True)
    )


def _explicit(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    scores = 0.1 * (query @ key.transpose(-1, -2))
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def _tried(parts: list[Tensor], attention: Any) -> tuple[Tensor, ...]:
    """Gradients of a loss that weighs output and logsumexp alike."""
    leaves = [part.detach().requires_grad_(True) for part in parts]
    output, sums = attention(*leaves)
    weights = torch.linspace(-1, 1, sums.numel(), device=sums.device).view_as(sums)
    loss = (output.double() * weights.double().unsqueeze(-1)).sum() + (sums.double() * weights.double()).sum()
    return torch.autograd.grad(loss, leaves)
