"""A few key columns of a large attention, read and changed without forming ``batch heads query key``.

With the scores ``S`` of the chosen columns and ``r``, the logarithm of the sum of ``exp(scores)`` over all other keys of a row,

* ``total = log(exp(r) + sum exp(S))`` normalises the row, and ``P = exp(S - total)`` are the columns' probabilities,
* ``output = exp(r - total) O + P V``, where ``O`` is attention over the other keys alone, from the fused kernel.

Changed scores change ``S`` before ``total``; changed probabilities replace ``P``. No difference of large numbers is taken, so
that half precision is as exact as the fused kernel even where the columns held nearly all of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnguide.attention.kernels import output_and_logsumexp
from attnguide.attention.sums import attention_with_sums

CHUNK = 2**24
"""Most scores held in memory at once, counted over batch, heads, queries and keys."""


def wide(tensor: Tensor) -> Tensor:
    """Half precision to float32, so that softmax and losses keep their digits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def masked_scores(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Scaled scores ``batch heads query key`` in float32 or wider, minus infinity where a mask forbids.

    Args:
        query: ``batch heads query head_dim``.
        key: ``batch heads key head_dim``.
        mask: Bool (true may attend) or additive, broadcast to the scores.
        scale: Factor on the query-key products.
    """
    scores = wide(query) @ (wide(key) * scale).transpose(-1, -2)
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, float("-inf"))
    # Adding minus infinity would give NaN gradients in a row whose keys are all masked.
    return (scores + mask).masked_fill(mask.isneginf(), float("-inf"))


def mask_part(mask: Tensor | None, rows: range | None = None, keys: Tensor | None = None) -> Tensor | None:
    """A mask restricted to some queries and keys, as ``batch heads query key`` with axes of length 1 left as they are."""
    if mask is None:
        return None
    mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
    if rows is not None and mask.shape[2] > 1:
        mask = mask[:, :, rows.start : rows.stop]
    return mask.index_select(3, keys) if keys is not None and mask.shape[3] > 1 else mask


def row_logsumexp(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Logarithm of the sum of ``exp(scores)`` over all keys of every row, ``batch heads query``; arguments as above.

    Without gradient it comes from a fused kernel where one returns it; else it is summed in chunks of queries, which are
    computed again in the backward pass, so that no more than :data:`CHUNK` scores are ever held.
    """
    graph = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    found = None if graph else output_and_logsumexp(query, key, key, mask, scale)
    if found is not None:
        return found[1]
    batch, heads, queries, _ = query.shape
    size = max(1, CHUNK // (batch * heads * key.shape[2]))
    parts = []
    for start in range(0, queries, size):
        rows = range(start, min(start + size, queries))
        chunk = query[:, :, rows.start : rows.stop], key, mask_part(mask, rows), scale
        again = checkpoint(_logsumexp, *chunk, use_reentrant=False, preserve_rng_state=False) if graph else _logsumexp(*chunk)
        parts.append(again)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _logsumexp(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return masked_scores(query, key, mask, scale).logsumexp(-1)


def column_probs(scores: Tensor, total: Tensor) -> Tensor:
    """Probs of columns, ``batch heads query columns``, from their scores and the logsumexp of whole rows."""
    least = torch.finfo(total.dtype).min  # a row without any key has probabilities of 0
    return (scores - total.clamp_min(least).unsqueeze(-1)).exp()


def attention_and_logsumexp(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Fused attention ``batch heads query head_dim`` and its :func:`row_logsumexp`; output 0 in fully masked rows."""
    if key.shape[2] == 0:
        output = torch.zeros_like(query[..., :1]).expand(*query.shape[:3], value.shape[-1])
        return output, torch.full_like(wide(query[..., 0]), float("-inf"))
    found = fused_with_sums(query, key, value, mask, scale)
    if found is None:
        seeing = None if mask is None else _sighted(mask)  # a fully masked row gives NaN, forward and backward
        found = F.scaled_dot_product_attention(query, key, value, seeing, scale=scale), row_logsumexp(query, key, mask, scale)
    output, logsumexp = found
    return (output if mask is None else torch.where(logsumexp.isneginf().unsqueeze(-1), 0.0, output)), logsumexp


def fused_with_sums(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor] | None:
    """:func:`attention_and_logsumexp` by one kernel, differentiable; ``None`` where no kernel gives both."""
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))):
        return output_and_logsumexp(query, key, value, mask, scale)
    seeing = None if mask is None else _sighted(mask)
    found = attention_with_sums(query, key, value, seeing, scale)
    if found is None or mask is None:
        return found
    return found[0], found[1].masked_fill(_blind(mask), float("-inf"))


def _blind(mask: Tensor) -> Tensor:
    """Rows whose keys are all masked, bool ``batch heads query``, with the mask's axes of length 1."""
    closed = ~mask if mask.dtype == torch.bool else mask.isneginf()
    return closed.all(-1)


def _sighted(mask: Tensor) -> Tensor:
    """The mask with fully masked rows opened to every key, so that softmax stays finite."""
    return torch.where(_blind(mask).unsqueeze(-1), mask.new_ones(()) if mask.dtype == torch.bool else 0.0, mask)


def with_columns(output: Tensor, others: Tensor, total: Tensor, probs: Tensor, value: Tensor) -> Tensor:
    """Attention over all keys, ``batch heads query head_dim``.

    Args:
        output: Attention over the other keys alone.
        others: :func:`row_logsumexp` over the other keys, ``batch heads query``.
        total: :func:`row_logsumexp` over all keys, ``batch heads query``.
        probs: Probs of the columns, ``batch heads query columns``; they may have been edited after ``total`` was computed.
        value: Values of the columns, ``batch heads columns head_dim``.
    """
    least = torch.finfo(total.dtype).min
    share = (others - total.clamp_min(least)).exp().unsqueeze(-1)
    return (share * wide(output) + probs @ wide(value)).to(output.dtype)
