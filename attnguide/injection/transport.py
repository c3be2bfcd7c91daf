"""Transport of words' attention into their regions: no word gains mass, and every row keeps its sum."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.update import PerRow
from attnguide.injection.base import WindowEdit
from attnguide.prompt.pairs import find_groups, group_tokens
from attnguide.prompt.targets import Targets
from attnguide.schedules import Schedule, Window
from attnguide.types import PassContext

Surplus = Literal["first", "others"]
Later = Literal["end", "auto", "all", "keep"]

_TINY = 1e-12

Sinks = Sequence[tuple[int, Tensor]]
"""Positions of sink tokens, which take left-over mass, each with its share for every batch element, ``batch`` in [0, 1]."""


def _hand(probs: Tensor, surplus: Tensor, sinks: Sinks | None) -> None:
    """Add left-over mass ``batch heads query`` to the sinks, in place; to token 0 (CLIP's start token) when ``None``."""
    for position, share in sinks or ():
        probs[..., position] += surplus * share.to(probs)[:, None, None]
    if sinks is None:
        probs[..., 0] += surplus


def transport(
    probs: Float[Tensor, "batch heads query key"],
    goals: Float[Tensor, "batch query key"],
    strength: Float[Tensor, "batch key"],
    room: float = 1.0,
    surplus: Surplus = "first",
    columns: Int64[Tensor, "columns"] | None = None,
    sinks: Sinks | None = None,
) -> Float[Tensor, "batch heads query key"]:
    """Interpolate the columns of some tokens towards goals; every row keeps its sum.

    With ``M_k = sum_q P_qk`` a token's mass over the map, ``g_k`` its goal, which sums to 1, and ``s_k`` its strength, the
    token keeps ``(1 - s_k) P_qk`` in a cell and should receive ``s_k M_k g_qk`` there. A cell's mass that steered tokens do not
    keep is free; they may receive at most the share ``room`` of it, and are scaled down by one factor where they should receive
    more. So a token never gains mass, and loses some only where its region has no room for it.

    The rest of a cell's mass belongs to the other tokens. Where they lose mass they shrink by one factor. Where they would
    gain, ``surplus`` decides: with ``others`` all of them gain in proportion; with ``first`` the sinks alone, for CLIP the
    start token, whose state is the same for every prompt, whereas end and padding tokens know all words, and would draw the
    same objects where their words' attention was removed.

    Args:
        probs: Probs, at least 0.
        goals: Distribution of each token over the map; columns sum to 1, or to 0 for tokens that are not steered.
        strength: Strength ``s`` in [0, 1]; 0 for tokens that are not steered, such as the sinks.
        room: Largest share of a cell's free mass that steered tokens may receive, in (0, 1].
        surplus: ``first`` or ``others``; the sinks also gain where a cell has no mass of other tokens.
        columns: Positions of the tokens that are steered in any row; computed when ``None``.
        sinks: Tokens that take left-over mass; token 0 when ``None``.

    Returns:
        Probs, at least 0, with the row sums of ``probs``.
    """
    if columns is None:
        columns = (strength > 0).any(0).nonzero()[:, 0]
    steered = (strength > 0).any(-1)[:, None, None]
    moved = strength.index_select(-1, columns)[:, None, None]  # batch 1 1 columns
    found = probs.index_select(-1, columns)
    # A matrix product with a single column would be slower.
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
    _hand(result, (left - factor * held).clamp_min(0) * steered, sinks)
    return result


def hush_later(
    probs: Float[Tensor, "batch heads query key"],
    goals: Float[Tensor, "batch query key"],
    strength: Float[Tensor, "batch key"],
    later: Bool[Tensor, "batch key"] | None = None,
    sinks: Sinks | None = None,
) -> Float[Tensor, "batch heads query key"]:
    """Outside of all goals, move the mass of later tokens to the sinks.

    In a causal text encoder the tokens after the steered words know them, most of all end and padding tokens, and where those
    are attended to, the words' objects may be drawn without the words. Outside, a later token loses the share ``s`` of its
    probs, the largest strength of the row; the sinks gain it.

    Args:
        probs: Probs, at least 0.
        goals: Goals as for :func:`transport`; a cell lies outside if no token has a goal there.
        strength: Strength as for :func:`transport`.
        later: Mask of later tokens; all after the last steered one when ``None``, in which case their content (such as the
            background) is lost outside.
        sinks: Tokens that take the mass; token 0 when ``None``.

    Returns:
        Probs, at least 0, with the row sums of ``probs``.
    """
    steered, positions = strength > 0, torch.arange(strength.shape[-1], device=strength.device)
    if later is None:
        later = positions > (positions * steered).amax(-1, keepdim=True)
    later = later & steered.any(-1, keepdim=True)
    outside = (goals.sum(-1) == 0) * strength.amax(-1, keepdim=True)  # share taken, batch query
    handed = probs * (outside[..., None] * later[:, None])[:, None]
    hushed = probs - handed
    _hand(hushed, handed.sum(-1), sinks)
    return hushed


def even_goals(targets: Targets, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Goals for :func:`transport` that are uniform over each region, with equal shares for all regions of a word.

    A region's weight is a factor on its share and, averaged over the word's regions, on the word's strength.

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
    """Edit that applies :func:`transport` to placed words' cross-attention, in the conditional half of denoising passes.

    Args:
        sites: Sites to edit.
        scale: Strength in [0, 1], one number or one per row.
        window: The part of the schedule in which the edit acts.
        fade: Schedule of a factor on the strength, in [0, 1].
        targets: Words and places of the batch.
        room: Largest share of a cell's free mass that words may receive, in (0, 1].
        surplus: Tokens that gain mass where words lose it: ``first`` (the sinks) or ``others``.
        later: Tokens whose mass outside of all regions goes to the sinks (:func:`hush_later`): the ``end`` token and padding,
            these where every noun of the prompt has a place and else none (``auto``), ``all`` after the last placed word, or
            none (``keep``).
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
        self._drawn: dict[Hashable, _Fitted] = {}

    def touches(self, context: PassContext) -> Sequence[int]:
        return self.gated(context)

    def active(self, context: PassContext) -> bool:
        return super().active(context) and self.fade(context.step) > 0

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        key = (site.height, site.width, context.rows, probs.dtype, probs.device)
        if key not in self._drawn:
            self._drawn[key] = self._fitted(site, context, probs)
        drawn = self._drawn[key]
        strength = self.gate(probs, context).view(-1, 1) * self.fade(context.step) * drawn.factors
        own = probs if drawn.own is None else probs * drawn.own  # columns of other rows' longer texts are padding
        moved = transport(own, drawn.goals, strength, self.room, self.surplus, drawn.columns, drawn.sinks)
        if self.later != "keep":
            moved = hush_later(moved, drawn.goals, strength, drawn.later, drawn.sinks)
        return moved if drawn.own is None else torch.where(drawn.own > 0, moved, probs)

    def _fitted(self, site: Site, context: PassContext, like: Tensor) -> _Fitted:
        size, rows = (site.height, site.width), list(context.rows)
        if size not in self._goals:
            self._goals[size] = even_goals(self.targets, *size)
        goals, factors = self._goals[size]
        columns = (factors > 0).any(0).nonzero()[:, 0].to(like.device)
        later = self._later(factors) & ~self.targets.sinks
        shares = self.targets.sinks / self.targets.sinks.sum(-1, keepdim=True)
        takers = self.targets.sinks.any(0).nonzero()[:, 0].tolist()
        sinks = [(position, shares[rows, position].to(like)) for position in takers]
        shown = self.targets.own_keys(rows)
        own = None if shown is None or bool(shown.all()) else shown[:, None, None].to(like)
        return _Fitted(goals[rows].to(like), factors[rows].to(like), columns, later[rows], sinks, own)

    def _later(self, factors: Tensor) -> Tensor:
        """Mask of the tokens that give their mass outside of all regions, ``batch tokens``."""
        if self.later == "all":
            return after_words(self.targets, factors > 0)
        whole = placed_nouns(self.targets) if self.later == "auto" else torch.ones(len(factors), dtype=torch.bool)
        return self.targets.later & whole.to(self.targets.later.device)[:, None]


class _Fitted(NamedTuple):
    """Arguments of :func:`transport` and :func:`hush_later` for a pass's batch elements.

    ``own`` is 1 at tokens of the element's own text, ``batch 1 1 key``; ``None`` where all tokens are.
    """

    goals: Tensor
    factors: Tensor
    columns: Tensor
    later: Tensor
    sinks: Sinks
    own: Tensor | None


def placed_nouns(targets: Targets) -> Bool[Tensor, " batch"]:
    """Whether every noun that the rule finds in a row's prompt has a place, or is part of a phrase that has one."""
    found = []
    for row, prompt in enumerate(targets.tokenized):
        groups = group_tokens(prompt, find_groups(prompt.text))
        positions = zip(targets.token_indices[row], targets.placed[row].tolist(), strict=False)
        placed = {position for tokens, has_place in positions if has_place for position in tokens}
        found.append(all(placed.issuperset(group.noun) for group in groups))
    return torch.tensor(found)


def after_words(targets: Targets, steered: Bool[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
    """Mask of tokens after the last steered one in each segment, bool."""
    later = torch.zeros_like(steered)
    for row, prompt in enumerate(targets.tokenized):
        for room in prompt.rooms():
            placed = [position for position in room if steered[row, position]]
            later[row, range(placed[-1] + 1, room.stop) if placed else []] = True
    return later.to(targets.device)
