"""Do words that belong together attend to the same place, and others elsewhere?"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12


def pairwise_symmetric_kl(maps: Tensor, strict: bool = False) -> Tensor:
    """Symmetric Kullback-Leibler divergence of every pair of maps, each scaled to sum 1; at least 0, and 0 for equal maps.

    ``(KL(a|b) + KL(b|a)) / 2``, the distance of SynGen (https://arxiv.org/abs/2306.08877).

    Args:
        maps: ``... words height width``, at least 0.
        strict: Leave out cells where one of the two maps is exactly 0, at which the divergence is infinite and the gradient
            undefined. Otherwise such cells count, with logarithms clamped at the dtype's precision.

    Returns:
        ``... words words``.
    """
    flat = maps.flatten(-2)
    probs = flat / flat.sum(-1, keepdim=True).clamp_min(_TINY)
    logs = probs.clamp_min(torch.finfo(probs.dtype).eps).log()
    if strict:
        filled = (probs > 0).to(probs.dtype)
        used = probs * filled
        one_way = (used * logs) @ filled.transpose(-1, -2) - used @ (logs * filled).transpose(-1, -2)
    else:
        cross = probs @ logs.transpose(-1, -2)
        one_way = cross.diagonal(dim1=-2, dim2=-1)[..., None] - cross
    return (one_way + one_way.transpose(-1, -2)) / 2


def infinite_kl(maps: Tensor) -> Tensor:
    """Which pairs of maps have an infinite symmetric divergence: one of the two is exactly 0 where the other is not.

    Args:
        maps: ``... words height width``, at least 0.

    Returns:
        bool, ``... words words``.
    """
    empty = (maps.flatten(-2) == 0).float()
    missed = (1 - empty) @ empty.transpose(-1, -2) > 0
    return missed | missed.transpose(-1, -2)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence ``(sum p log(p / m) + sum q log(q / m)) / 2`` with ``m = (p + q) / 2``.

    Between 0 and ``log 2`` if both sum to 1.

    Args:
        first: Map with values above 0, ``... height width``.
        second: Map of the same shape, with values above 0.

    Returns:
        One value per map, of the leading axes.
    """
    middle = ((first + second) / 2).log()
    return ((first * (first.log() - middle)).sum((-2, -1)) + (second * (second.log() - middle)).sum((-2, -1))) / 2


def attribute_divergence(nouns: Tensor, attributes: Tensor, quantile: Tensor, normalise: bool = True) -> Tensor:
    """Divergence between the maps of a noun and its attribute; 0 is best.

    The binding term of Divide & Bind (https://arxiv.org/abs/2307.10864): the attribute's map is scaled to the noun's peak, both
    become distributions by a softmax over cells, ``quantile`` times the noun's largest cell is subtracted from both (at least
    0), and the results are compared by :func:`jensen_shannon`.

    Args:
        nouns: Maps of the nouns, ``... height width`` in [0, 1].
        attributes: Maps of the attributes, same shape.
        quantile: Share of the noun's largest cell to subtract, of the leading axes.
        normalise: Scale the results to sum 1 again; the published code does not.
    """
    scaled = attributes / attributes.amax((-2, -1), keepdim=True).clamp_min(_TINY) * nouns.amax((-2, -1), keepdim=True)
    first, second = (maps.flatten(-2).softmax(-1).view_as(maps) for maps in (nouns, scaled))
    floor = quantile[..., None, None] * first.amax((-2, -1), keepdim=True)
    first, second = ((maps - floor).clamp_min(0) + 1e-5 for maps in (first, second))
    if normalise:
        first, second = (maps / maps.sum((-2, -1), keepdim=True) for maps in (first, second))
    return jensen_shannon(first, second)


def nt_xent(embeddings: Tensor, related: Tensor, temperature: float = 0.5) -> Tensor:
    """Contrastive loss over all ordered pairs of related items; at least 0.

    ``-mean over pairs (a, p) of log(e^(s_ap / T) / (e^(s_ap / T) + sum over n not related to a of e^(s_an / T)))`` with ``s``
    the cosine similarity: the loss of CONFORM (https://arxiv.org/abs/2312.06059).

    Args:
        embeddings: ``items features``.
        related: ``items items``, True where two items belong together; the diagonal does not matter.
        temperature: Divisor ``T`` of the similarities, above 0.

    Returns:
        A scalar; 0 if no two items are related or all are.
    """
    unit = embeddings / embeddings.norm(dim=-1, keepdim=True).clamp_min(_TINY)
    logits = unit @ unit.T / temperature
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    positive = related & ~itself
    if not positive.any() or not (~related & ~itself).any():
        return logits.sum() * 0
    others = logits.masked_fill(related | itself, float("-inf")).logsumexp(-1, keepdim=True)
    return (torch.logaddexp(logits, others) - logits)[positive].mean()
