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
from attnguide.guidance.bounds import SubjectBounds, SubjectMaps, end_token, subject_words
from attnguide.guidance.clusters import SubjectMasks
from attnguide.guidance.per_row import EachRow
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Refinement, Update
from attnguide.prompt.drawing import Rule
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, linear
from attnguide.types import Step

_TINY = 1e-12


class BoundedAttention(Guidance):
    """Masks both kinds of attention by subject and guides them into the boxes (https://arxiv.org/abs/2403.16990).

    Every placed region is a subject. With ``mask``, in every pass, subjects are bounded as
    :class:`~attnguide.guidance.bounds.SubjectBounds` says.

    The loss of a subject is ``cross_weight (1 - u_cross)^2 + self_weight (1 - u_self)^2``, ``u = F / (F + k B)`` with ``F`` the
    attention from its box to its words and the end token (to its box), ``B`` that of the background to them, and ``k`` the
    number of subjects; both are summed over heads and averaged over the sites: middle, and decoder at the guidance level. A
    region's ``weight`` scales its loss.

    With ``refine``, masks stop being boxes at ``refine_start``: self-attention maps of the guidance level, averaged over all
    steps so far, are clustered, and clusters go to subjects (:func:`~attnguide.guidance.clusters.subject_masks`).

    Args:
        step_size: Step size at the first step.
        step_end: Step size at ``stop``, to which it falls linearly.
        stop: Progress at which guidance ends (the first 15 of 50 steps).
        iterations: Most updates a step.
        until: A row whose loss, divided by its subjects, is at or below this makes no update; one number, or one per row.
        cross_weight: Weight of the cross-attention term.
        self_weight: Weight of the self-attention term.
        mask: Whether attention is masked by subject.
        refine: Whether the subjects' masks are refined by clusters of self-attention.
        refine_start: Progress at which refinement of the masks begins.
        refine_every: Progress between one refinement of the masks and the next.
        clusters: Clusters per subject.
        threshold: Smallest overlap of a cluster and a subject, as a share of the smaller area, at which the cluster is the
            subject's.
        levels: Map levels to read and to refine on, decoder and middle; the guidance level and the middle when ``None``.
        scale: Factor on the step size, one number or one per row; 0 also leaves a row's attention unmasked.
        quirks: ``"reference"`` decides to stop on the loss from before the newest update, and rounds the edges of boxes to
            cells, as the published code does; a box that this leaves without a cell of the maps that are read is refused (there
            its loss is NaN).

    Raises:
        ValueError: If an option is out of range; while running, if a place is too small for the maps that are read.
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
        reference = repeats_slips(quirks)
        refinement = Refinement(until, iterations, lagging=reference)
        super().__init__(
            sites=None if levels is None else SiteSelector(levels=tuple(levels), places=("mid", "up")),
            window=Window(0.0, stop),
            update=Update(linear(step_size, step_end, max(stop, _TINY)), scale, iterations=0, refinements=(refinement,)),
        )
        self.cross_weight, self.self_weight = cross_weight, self_weight
        self.remembers = mask  # the subjects' masks follow the maps of earlier passes
        self.mask, self.refine, self.refine_start, self.refine_every = mask, refine, refine_start, refine_every
        self.clusters, self.threshold = clusters, threshold
        self.rule: Rule = "rounded" if reference else "half"

    def usual_sites(self, level: int) -> SiteSelector:
        return SiteSelector(levels=(level,), places=("up",), also=(SiteSelector(places=("mid",)),))

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        require_cells(targets, sites, self.rule)
        sizes = list(dict.fromkeys((site.height, site.width) for site in sites))
        if self.rule == "half" and all(bool(targets.binary_masks(*size).any(1).all()) for size in sizes):
            maps = ", ".join(f"{height}x{width}" for height, width in sizes)
            raise ValueError(
                f"Method {self.name!r} has no background left: the regions take every cell of the maps ({maps}), where its "
                "loss is 0 whatever words look at; leave room beside them, or use another method."
            )

    def edits(self, targets: Targets, level: int) -> Sequence[Edit]:
        if not self.mask:
            return []
        scale, levels = self.update.scale, (level,) if self.sites is None else self.sites.levels
        scales = EachRow(scale, "scale").over(len(targets.regions))
        masks = SubjectMasks(targets, self.clusters, self.threshold, self.rule)
        on = [number != 0 for number in scales]
        bounds = SubjectBounds(targets, on, masks, self.refine_start, self.refine_every)
        finest = SiteSelector(levels=levels and (min(levels),), places=("up",))
        return [bounds, SubjectMaps(masks, on, finest)] if self.refine else [bounds]

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        words = subject_words(targets) | end_token(targets)[:, None]
        terms = [
            _sums(site, maps.rows(site), targets.binary_masks(site.height, site.width, self.rule).flatten(2), words)
            for site in maps.probs
        ]
        losses = []
        for kind in ("cross", "self"):
            found = [term for site, term in zip(maps.probs, terms, strict=True) if site.kind == kind]
            inside, beside = torch.stack(found).mean(0).unbind(-1)
            count = targets.placed.sum(1, keepdim=True)
            losses.append((1 - inside / (inside + count * beside).clamp_min(_TINY)).square())
        value = (self.cross_weight * losses[0] + self.self_weight * losses[1]) * targets.weights * targets.placed
        total = value.sum(1)
        return LossOutput(total, (total / targets.placed.sum(1).clamp_min(1)).detach())


def _sums(site: Site, probs: Tensor, masks: Tensor, words: Tensor) -> Tensor:
    """Attention of each subject's cells, and of the background, to the subject's context: ``batch regions 2``.

    Args:
        site: The site.
        probs: Probs of the site, ``batch heads query key``.
        masks: Cells of each subject, bool, ``batch regions query``; also the subject's context in self-attention.
        words: The subject's context in cross-attention, bool, ``batch regions tokens``.
    """
    background = (~masks.any(1)).to(probs)
    context = (words if site.kind == "cross" else masks).to(probs)
    total = probs.sum(1)
    inside = torch.einsum("bqk,brq,brk->br", total, masks.to(probs), context)
    return torch.stack([inside, torch.einsum("bqk,bq,brk->br", total, background, context)], -1)
