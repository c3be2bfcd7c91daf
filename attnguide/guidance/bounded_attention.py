"""Bounded Attention: subjects may not see one another, and attention gathers in their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.base import Guidance, LossOutput, require_cells
from attnguide.guidance.clusters import SubjectMasks
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Refinement, Update
from attnguide.prompt.function_words import function_word_positions
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, linear
from attnguide.types import PassContext, Step

_TINY = 1e-12


class BoundedAttention(Guidance):
    """Masks both kinds of attention by subject and guides them into the boxes (https://arxiv.org/abs/2403.16990).

    Every placed region is a subject. With ``mask``, in every pass: in cross-attention, conditional half, a cell of a subject
    sees of the subjects' words only its own, a background cell sees none and no end token (in guide passes it sees them all),
    and function words are hidden from all; in self-attention, both halves, a cell of one subject does not see the others.

    The loss of a subject is ``cross_weight (1 - u_cross)^2 + self_weight (1 - u_self)^2``, ``u = F / (F + k B)`` with ``F`` the
    attention from its box to its words and the end token (to its box), ``B`` that of the background to them, and ``k`` the
    number of subjects; both are summed over heads and averaged over the sites: middle, and decoder at the guidance level. A
    region's ``weight`` scales its loss.

    With ``refine``, masks stop being boxes at ``refine_start``: self-attention maps of the guidance level, averaged over all
    steps so far, are clustered, and clusters go to subjects (:func:`~attnguide.guidance.clusters.subject_masks`).

    Args:
        step_size: First step size.
        step_end: What it falls to, linearly, at ``stop``.
        stop: Progress at which guidance ends (the first 15 of 50 steps).
        iterations: Most updates a step.
        until: A row whose loss, divided by its subjects, is at or below this makes no update; one number, or one per row.
        cross_weight: See above.
        self_weight: See above.
        mask: Whether attention is masked.
        refine: Whether masks are refined.
        refine_start: Progress at which that begins.
        refine_every: Progress between one refinement and the next.
        clusters: For each subject.
        threshold: Share of its smaller area that a cluster must have in common with a subject.
        levels: Map levels to read and to refine on, decoder and middle; the guidance level and the middle when ``None``.
        scale: Factor on the step size, one number or one per row; 0 also leaves a row's attention unmasked.
        quirks: ``"reference"`` decides to stop on the loss from before the newest update, as the published code does.

    Raises:
        ValueError: If an option is out of range; while running, if a place covers no cell of the maps that are read.
    """

    name = "bounded_attention"
    needs_regions = "place"

    def __init__(
        self,
        *,
        step_size: float = 8.0,
        step_end: float = 2.0,
        stop: float = 0.3,
        iterations: int = 5,
        until: PerRow = 0.2,
        cross_weight: float = 1.5,
        self_weight: float = 0.5,
        mask: bool = True,
        refine: bool = True,
        refine_start: float = 0.3,
        refine_every: float = 0.1,
        clusters: int = 3,
        threshold: float = 0.2,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        if clusters < 1:
            raise ValueError(f"clusters must be at least 1; got {clusters}.")
        if not refine_every > 0:
            raise ValueError(f"refine_every must be above 0; got {refine_every}.")
        refinement = Refinement(until, iterations, lagging=repeats_slips(quirks))
        super().__init__(
            sites=None if levels is None else SiteSelector(levels=tuple(levels), places=("mid", "up")),
            window=Window(0.0, stop),
            update=Update(linear(step_size, step_end, max(stop, _TINY)), scale, iterations=0, refinements=(refinement,)),
        )
        self.cross_weight, self.self_weight = cross_weight, self_weight
        self.mask, self.refine, self.refine_start, self.refine_every = mask, refine, refine_start, refine_every
        self.clusters, self.threshold = clusters, threshold

    def usual_sites(self, level: int) -> SiteSelector:
        return SiteSelector(where=lambda site: site.place == "mid" or (site.place == "up" and site.level == level))

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        require_cells(targets, sites)

    def edits(self, targets: Targets, level: int) -> Sequence[Edit]:
        return [_Bounds(self, targets, level)] if self.mask else []

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        words = _own_words(targets) | _end_token(targets)[:, None]
        terms = [_sums(site, probs, targets, words) for site, probs in maps.probs.items()]
        losses = []
        for kind in ("cross", "self"):
            found = [term for site, term in zip(maps.probs, terms, strict=True) if site.kind == kind]
            inside, beside = torch.stack(found).mean(0).unbind(-1)
            count = targets.placed.sum(1, keepdim=True)
            losses.append((1 - inside / (inside + count * beside).clamp_min(_TINY)).square())
        value = (self.cross_weight * losses[0] + self.self_weight * losses[1]) * targets.weights * targets.placed
        total = value.sum(1)
        return LossOutput(total, (total / targets.placed.sum(1).clamp_min(1)).detach())


def _own_words(targets: Targets) -> Tensor:
    """True at the words of each placed region, ``batch regions tokens``."""
    return (targets.tokens > 0) & targets.placed[..., None]


def _end_token(targets: Targets) -> Tensor:
    """True at the first end token, ``batch tokens``."""
    return torch.arange(targets.tokens.shape[-1], device=targets.device) == targets.end[:, None]


def _sums(site: Site, probs: Tensor, targets: Targets, words: Tensor) -> Tensor:
    """Attention of each subject's cells, and of the background, to the subject's context: ``batch regions 2``."""
    masks = targets.binary_masks(site.height, site.width).flatten(2)
    background = (~masks.any(1)).to(probs)
    context = (words if site.kind == "cross" else masks).to(probs)
    total = probs.sum(1)
    inside = torch.einsum("bqk,brq,brk->br", total, masks.to(probs), context)
    return torch.stack([inside, torch.einsum("bqk,bq,brk->br", total, background, context)], -1)


class _Bounds(Edit):
    """Who may see whom, in one batch of rows; remembers maps of the denoising passes to refine its masks."""

    stages = frozenset({"scores", "probs"})
    sites = SiteSelector(where=lambda site: site.kind in ("cross", "self"))

    def __init__(self, method: BoundedAttention, targets: Targets, level: int) -> None:
        scale, rows = method.update.scale, len(targets.regions)
        self.on = [number != 0 for number in ([scale] * rows if isinstance(scale, int | float) else scale)]
        self.method, self.targets = method, targets
        levels = (level,) if method.sites is None else method.sites.levels
        self.remembered = SiteSelector(levels=levels and (min(levels),), places=("up",))
        self.masks = SubjectMasks(targets, method.clusters, method.threshold)
        self.words, self.end = _own_words(targets), _end_token(targets)
        self.silent = torch.zeros_like(self.end)
        for row, prompt in enumerate(targets.tokenized):
            self.silent[row, list(function_word_positions(prompt))] = True
        self._context: PassContext | None = None

    def active(self, context: PassContext) -> bool:
        return context.kind in ("denoise", "guide") and any(self.on[row] for row in context.rows)

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        if context is not self._context and context.kind == "denoise":
            self._context = context
            if self._due(context.step):
                self.masks.refine()
        rows = list(context.rows)
        masks = self.masks.at(site.height, site.width)[rows]
        hidden = self._hidden_words(masks, rows, context) if site.kind == "cross" else _hidden_cells(masks)
        halves = ("cond",) if site.kind == "cross" else ("cond", "uncond")
        touched = [self.on[row] and branch in halves for row, branch in zip(rows, context.branches, strict=True)]
        hidden = hidden & torch.tensor(touched, device=hidden.device)[:, None, None]
        return scores.masked_fill(hidden[:, None].to(scores.device), torch.finfo(scores.dtype).min)

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        if self.method.refine and context.kind == "denoise" and self.remembered.matches(site):
            self.masks.see(site, probs[context.positions("cond")].detach().mean(1))
        return probs

    def _due(self, step: Step) -> bool:
        """Whether masks are refined before this step."""
        method, interval = self.method, max(1, round(self.method.refine_every * step.count))
        late = step.begins and step.progress >= method.refine_start
        return late and (not self.masks.refined or step.index % interval == 0)

    def _hidden_words(self, masks: Tensor, rows: list[int], context: PassContext) -> Tensor:
        """True where a query may not see a token, ``batch query token``."""
        words, background = self.words[rows], ~masks.any(1)
        guiding = context.kind == "guide"
        seeing = masks | background[:, None] if guiding else masks
        visible = torch.einsum("brq,brk->bqk", seeing.float(), words.float()) > 0
        hidden = (words.any(1) | self.silent[rows])[:, None] & ~visible
        return hidden if guiding else hidden | (background[:, :, None] & self.end[rows][:, None])


def _hidden_cells(masks: Tensor) -> Tensor:
    """True where a cell may not see another, ``batch query key``."""
    background = ~masks.any(1)
    together = torch.einsum("brq,brk->bqk", masks.float(), masks.float()) > 0
    return ~(together | background[:, :, None] | background[:, None, :])
