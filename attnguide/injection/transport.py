"""Moving words' attention to their places so that nothing is added and nothing lost: neither to a word nor to a row."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.update import PerRow
from attnguide.injection.base import WindowEdit
from attnguide.prompt.targets import Targets
from attnguide.schedules import Schedule, Window
from attnguide.types import PassContext

_TINY = 1e-12


def transport(
    probs: Float[Tensor, "batch heads query key"],
    goals: Float[Tensor, "batch query key"],
    strength: Float[Tensor, "batch key"],
) -> Float[Tensor, "batch heads query key"]:
    """Interpolate the columns of some tokens towards goals; rows and columns keep their sums.

    With ``M_k = sum_q P_qk`` a token's mass over the map, ``g_k`` its goal, which sums to 1, and ``s_k`` its strength, the move
    is ``D_qk = s_k (M_k g_qk - P_qk)``: its sum over the map is 0, so the token keeps its mass. The other tokens of a cell make
    room, all by one factor: with ``F_q`` what they hold and ``D_q`` the sum of ``D_qk``, they become
    ``P_qj (F_q - lambda D_q) / F_q``. ``lambda`` in [0, 1] is 1 wherever there is room, and otherwise the largest value at
    which no cell needs more than it has, ``min_q F_q / D_q`` where ``D_q > F_q``: one number for each map and head.

    Args:
        probs: At least 0.
        goals: Where each token's mass should lie; columns sum to 1, or to 0 for tokens that stay.
        strength: In [0, 1]; 0 for tokens that stay.

    Returns:
        Probabilities at least 0 with the row sums of ``probs``, and with its column sums for tokens of some strength.
    """
    steered = (strength > 0).unsqueeze(1)[:, None]  # batch 1 1 key
    mass = probs.sum(2, keepdim=True)
    move = strength[:, None, None] * (mass * goals[:, None] - probs) * steered
    wanted = move.sum(-1, keepdim=True)
    free = probs.masked_fill(steered, 0).sum(-1, keepdim=True)
    share = torch.where(wanted > free, free / wanted.clamp_min(_TINY), torch.ones_like(free)).amin(2, keepdim=True)
    left = (free - share * wanted).clamp_min(0)
    # Where a word held a cell alone there is no proportion to keep: what it leaves goes to the others alike.
    others = (~steered).to(probs) / (~steered).sum(-1, keepdim=True).clamp_min(1)
    rest = torch.where(free > _TINY, probs * (left / free.clamp_min(_TINY)), left * others)
    return torch.where(steered, probs + share * move, rest)


def even_goals(targets: Targets, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Goals that are even over each region, with equal shares for all regions of a word.

    A region's weight is a factor on its share and, as the mean over the word's regions, on the word's strength.

    Returns:
        Goals ``batch query key``, and factors on the strength in [0, 1], ``batch key``.
    """
    masks = targets.masks(height, width).flatten(2).double()
    even = masks / masks.sum(-1, keepdim=True).clamp_min(_TINY)
    owns = ((targets.tokens > 0) & (targets.placed & (masks.sum(-1) > 0))[..., None]).double()
    weights = owns * targets.weights.clamp_min(0).double()[..., None]
    shares = weights / weights.sum(1, keepdim=True).clamp_min(_TINY)
    factors = weights.sum(1) / owns.sum(1).clamp_min(1)
    return torch.einsum("brq,brk->bqk", even, shares), factors.clamp_max(1)


class Transport(WindowEdit):
    """:func:`transport` of every placed word's cross-attention towards its regions, conditional half, while sampling.

    Args:
        sites: Where it acts.
        scale: Strength in [0, 1], one number or one per row.
        window: When it acts.
        fade: Factor on the strength, in [0, 1].
        targets: Of the batch.
    """

    def __init__(self, sites: SiteSelector, scale: PerRow, window: Window, fade: Schedule, targets: Targets) -> None:
        super().__init__(sites, ("probs",), window, scale, len(targets.regions))
        self.fade, self.targets = fade, targets
        self._goals: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def active(self, context: PassContext) -> bool:
        return super().active(context) and self.fade(context.step) > 0

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        rows, size = list(context.rows), (site.height, site.width)
        if size not in self._goals:
            self._goals[size] = even_goals(self.targets, *size)
        goals, factors = (part[rows].to(probs) for part in self._goals[size])
        strength = self.gate(probs, context).view(-1, 1) * self.fade(context.step) * factors
        return transport(probs, goals, strength)
