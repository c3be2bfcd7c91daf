"""Moving words' attention to their places so that nothing is added: no word gains mass and every row keeps its sum."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.update import PerRow
from attnguide.injection.base import WindowEdit
from attnguide.prompt.targets import Targets
from attnguide.schedules import Schedule, Window
from attnguide.types import PassContext

Surplus = Literal["first", "others"]
Later = Literal["end", "all", "keep"]

_TINY = 1e-12


def transport(
    probs: Float[Tensor, "batch heads query key"],
    goals: Float[Tensor, "batch query key"],
    strength: Float[Tensor, "batch key"],
    room: float = 1.0,
    surplus: Surplus = "first",
    columns: Int64[Tensor, "columns"] | None = None,
) -> Float[Tensor, "batch heads query key"]:
    """Interpolate the columns of some tokens towards goals; every row keeps its sum.

    With ``M_k = sum_q P_qk`` a token's mass over the map, ``g_k`` its goal, which sums to 1, and ``s_k`` its strength, it
    keeps ``(1 - s_k) P_qk`` in a cell, and ``s_k M_k g_qk`` wants to come in. What the tokens do not keep of a cell is free;
    at most the share ``room`` of that is given away, and where more wants to come in, all get less by one factor. So a token
    never gains mass, and loses some only where its region has no room for it.

    What is left of a cell belongs to the other tokens. Where they have to make room they shrink by one factor. Where they would
    grow, ``surplus`` says who does: with ``others`` all of them in proportion; with ``first`` the first alone, which opens
    every sentence and says nothing about it, whereas end and padding tokens know all of its words, and would draw the same
    objects where their words have just been taken away.

    Args:
        probs: At least 0; token 0 opens the sentence.
        goals: Where each token's mass should lie; columns sum to 1, or to 0 for tokens that stay.
        strength: In [0, 1]; 0 for tokens that stay, the first one among them.
        room: Largest share of what is free in a cell that tokens may take, in (0, 1].
        surplus: ``first`` or ``others``; also ``first`` where a cell held none of the others.
        columns: Positions of the tokens that are steered in any row, where they are known.

    Returns:
        Probabilities at least 0 with the row sums of ``probs``.
    """
    if columns is None:
        columns = (strength > 0).any(0).nonzero()[:, 0]
    steered = (strength > 0).any(-1)[:, None, None]
    moved = strength.index_select(-1, columns)[:, None, None]  # batch 1 1 columns
    found = probs.index_select(-1, columns)
    # A product of matrices would be slower: one of them had a single column.
    held = (probs * (strength <= 0)[:, None, None]).sum(-1)
    free = held + (moved * found).sum(-1)
    coming = moved * found.sum(2, keepdim=True) * goals.index_select(-1, columns)[:, None]
    wanted = coming.sum(-1)
    share = (room * free / wanted.clamp_min(_TINY)).clamp_max(1)
    left = (free - share * wanted).clamp_min(0)
    most = 1.0 if surplus == "first" else float("inf")
    factor = torch.where(held > _TINY, left / held.clamp_min(_TINY), 0.0).clamp_max(most)
    factor = torch.where(steered, factor, 1.0)
    result = probs * factor[..., None]
    kept = torch.where(moved > 0, 1 - moved, factor[..., None])
    result.index_copy_(-1, columns, kept * found + share[..., None] * coming)
    result[..., 0] += (left - factor * held).clamp_min(0) * steered
    return result


def hush_later(
    probs: Float[Tensor, "batch heads query key"],
    goals: Float[Tensor, "batch query key"],
    strength: Float[Tensor, "batch key"],
    ends: Int64[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch heads query key"]:
    """Outside of all goals, hand what later tokens hold to the first token.

    A causal text encoder lets the tokens after the steered words know them, most of all the end and padding tokens, and where
    those are attended to the words' objects may be drawn without the words. A token loses the share ``s`` of what it holds in a
    cell, the largest strength of the row; the first token gains it.

    Args:
        probs: At least 0; token 0 opens the sentence.
        goals: As for :func:`transport`; a cell lies outside if no token has a goal there.
        strength: Likewise.
        ends: Position of the end token: it and the padding hand over, words before it do not. All tokens after the last
            steered one do when ``None``; what they say of the picture, its background for one, is then lost outside.

    Returns:
        Probabilities at least 0 with the row sums of ``probs``.
    """
    steered, positions = strength > 0, torch.arange(strength.shape[-1], device=strength.device)
    last = (positions * steered).amax(-1) if ends is None else ends - 1
    later = (positions > last[:, None]) & steered.any(-1, keepdim=True)
    outside = (goals.sum(-1) == 0) * strength.amax(-1, keepdim=True)  # share taken, batch query
    handed = probs * (outside[..., None] * later[:, None])[:, None]
    hushed = probs - handed
    hushed[..., 0] += handed.sum(-1)
    return hushed


def even_goals(targets: Targets, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Goals that are even over each region, with equal shares for all regions of a word.

    A region's weight is a factor on its share and, as the mean over the word's regions, on the word's strength.

    Returns:
        Goals ``batch query key``, and factors on the strength in [0, 1], ``batch key``.
    """
    masks = targets.masks(height, width).flatten(2).cpu().double()  # not every device has float64
    even = masks / masks.sum(-1, keepdim=True).clamp_min(_TINY)
    owns = ((targets.tokens.cpu() > 0) & (targets.placed.cpu() & (masks.sum(-1) > 0))[..., None]).double()
    weights = owns * targets.weights.cpu().clamp_min(0).double()[..., None]
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
        room: Largest share of what is free in a cell that words may take, in (0, 1].
        surplus: Which tokens grow where words leave: ``first`` or ``others``.
        later: Which tokens hand what they hold outside of all regions to the first (:func:`hush_later`): the ``end`` token and
            padding, ``all`` after the last placed word, or none (``keep``).
    """

    def __init__(
        self,
        sites: SiteSelector,
        scale: PerRow,
        window: Window,
        fade: Schedule,
        targets: Targets,
        room: float = 1.0,
        surplus: Surplus = "first",
        later: Later = "end",
    ) -> None:
        super().__init__(sites, ("probs",), window, scale, len(targets.regions))
        self.fade, self.targets, self.room, self.surplus, self.later = fade, targets, room, surplus, later
        self._goals: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._drawn: dict[Hashable, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def touches(self, context: PassContext) -> Sequence[int]:
        return self.gated(context)

    def active(self, context: PassContext) -> bool:
        return super().active(context) and self.fade(context.step) > 0

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        key = (site.height, site.width, context.rows, probs.dtype, probs.device)
        if key not in self._drawn:
            self._drawn[key] = self._fitted(site, context, probs)
        goals, factors, columns, ends = self._drawn[key]
        strength = self.gate(probs, context).view(-1, 1) * self.fade(context.step) * factors
        moved = transport(probs, goals, strength, self.room, self.surplus, columns)
        return moved if self.later == "keep" else hush_later(moved, goals, strength, ends if self.later == "end" else None)

    def _fitted(self, site: Site, context: PassContext, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Goals and strength factors of a pass's batch elements, the columns of all rows' words, and the end tokens."""
        size, rows = (site.height, site.width), list(context.rows)
        if size not in self._goals:
            self._goals[size] = even_goals(self.targets, *size)
        goals, factors = self._goals[size]
        columns = (factors > 0).any(0).nonzero()[:, 0].to(like.device)
        return goals[rows].to(like), factors[rows].to(like), columns, self.targets.end[rows]
