"""Masks of subjects from clusters of self-attention (Bounded Attention)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.sites import Site
from attnguide.prompt.drawing import Rule
from attnguide.prompt.targets import Targets

_TINY = 1e-5


def k_means(points: Tensor, count: int, centres: Tensor | None = None, restarts: int = 10, iterations: int = 50) -> Tensor:
    """Centres of clusters by k-means, deterministic for the same points.

    Args:
        points: ``points features``.
        count: Number of clusters, at most that of points.
        centres: Initial centres; seeded k-means++ when ``None``, of whose restarts the tightest is kept.
        restarts: Number of k-means++ restarts.
        iterations: Most iterations of each.

    Returns:
        ``clusters features``.
    """
    source = torch.Generator().manual_seed(0)
    starts = [_spread(points, min(count, len(points)), source) for _ in range(restarts)] if centres is None else [centres]
    found = [_settled(points, start, iterations) for start in starts]
    spreads = [float(torch.cdist(points, centre).amin(1).square().sum()) for centre in found]
    return found[min(range(len(found)), key=spreads.__getitem__)]


def _spread(points: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Initial centres by k-means++: points drawn with probability proportional to the squared distance to earlier ones."""
    chosen = [int(torch.randint(len(points), (), generator=source))]
    for _ in range(count - 1):
        far = torch.cdist(points, points[chosen]).amin(1).square().cumsum(0)
        drawn = torch.rand((), generator=source).to(far) * far[-1]
        chosen.append(int((far <= drawn).sum().clamp_max(len(points) - 1)))
    return points[chosen]


def _settled(points: Tensor, centres: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        member = F.one_hot(torch.cdist(points, centres).argmin(1), len(centres)).to(points)
        size = member.sum(0)[:, None]
        moved = torch.where(size > 0, member.T @ points / size.clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def subject_masks(labels: Tensor, words: Tensor, boxes: Tensor, before: Tensor, threshold: float, clusters: int) -> Tensor:
    """Masks of subjects as unions of clusters (Bounded Attention, https://arxiv.org/abs/2403.16990).

    Each cluster goes to the subject whose soft mask it overlaps most, relative to the smaller of the two areas, and to none
    below ``threshold``. The soft mask is ``sigmoid(10 (a - 0.2))`` of the word's map over its largest value, scaled to [0, 1]
    and cut by the mask so far. A subject without a cluster gets its box back, which the other subjects lose.

    Args:
        labels: Cluster of every cell, ``cells``.
        words: Mean map of each subject's word, ``subjects cells``.
        boxes: Masks of the subjects' places, bool, ``subjects cells``.
        before: Masks so far, bool, ``subjects cells``.
        threshold: Smallest relative overlap at which a cluster goes to a subject.
        clusters: Number of clusters.

    Returns:
        bool, ``subjects cells``.
    """
    soft = torch.sigmoid(10 * (words / (words.amax(1, keepdim=True) + _TINY) - 0.2))
    low, high = soft.amin(1, keepdim=True), soft.amax(1, keepdim=True)
    soft = (soft - low) / (high - low + _TINY) * before
    member = F.one_hot(labels, clusters).to(soft)  # cells clusters
    smaller = torch.minimum(soft.sum(1, keepdim=True), member.sum(0)[None])
    score, subject = (soft @ member / smaller.clamp_min(1e-12)).max(0)
    owner = torch.where(score >= threshold, subject, -1)[labels]
    masks = owner == torch.arange(len(words), device=labels.device)[:, None]
    for subject_index in range(len(words)):
        if not bool(masks[subject_index].any()):
            masks = masks & ~boxes[subject_index]
            masks[subject_index] = boxes[subject_index]
    return masks


class SubjectMasks:
    """Masks of a batch's subjects: their places at first, later clusters of the mean self-attention maps.

    Args:
        targets: All rows; every placed region is a subject.
        clusters: Clusters per subject.
        threshold: See :func:`subject_masks`.
        rule: Rule by which places are drawn.

    Attributes:
        refined: Whether masks are clusters by now.
    """

    def __init__(self, targets: Targets, clusters: int, threshold: float, rule: Rule = "half") -> None:
        self.targets, self.clusters, self.threshold, self.rule = targets, clusters, threshold, rule
        self._means: dict[str, tuple[int, Tensor]] = {}
        self._size = (0, 0)
        self._centres: dict[int, Tensor] = {}
        self._masks: Tensor | None = None

    @property
    def refined(self) -> bool:
        return self._masks is not None

    def see(self, site: Site, probs: Tensor) -> None:
        """Add a site's probs to the running means; all sites must have one map size.

        Args:
            site: A cross- or self-attention site.
            probs: Probs of all rows averaged over heads, ``batch query key``.
        """
        if site.kind == "cross":
            probs = torch.einsum("bqk,brk->bqr", probs, self.targets.last_tokens.to(probs))
        count, mean = self._means.get(site.kind, (0, torch.zeros_like(probs)))
        self._means[site.kind] = count + 1, mean + (probs - mean) / (count + 1)
        self._size = site.height, site.width

    def at(self, height: int, width: int) -> Tensor:
        """Masks of all rows at a map's size, bool, ``batch regions cells``."""
        if self._masks is None:
            return self.targets.binary_masks(height, width, self.rule).flatten(2)
        return F.interpolate(self._masks.float(), (height, width), mode="nearest-exact").flatten(2) > 0

    def refine(self) -> None:
        """Recompute clusters of the mean maps, starting from the last centres; a no-op before both kinds were recorded."""
        if len(self._means) < 2:
            return
        boxes = self.targets.binary_masks(*self._size, self.rule).flatten(2)
        before, refined = self.at(*self._size), torch.zeros_like(boxes)
        for row in range(len(boxes)):
            chosen = self.targets.placed[row] & boxes[row].any(1)
            if bool(chosen.any()):
                refined[row, chosen] = self._clustered(row, chosen, boxes[row, chosen], before[row, chosen])
        self._masks = refined.unflatten(-1, self._size)

    def _clustered(self, row: int, chosen: Tensor, boxes: Tensor, before: Tensor) -> Tensor:
        """Masks of one row's subjects from its mean maps, ``subjects cells``."""
        points = self._means["self"][1][row].double()
        points = points / (points.amax(0) + _TINY)
        centres = k_means(points, self.clusters * len(boxes), self._centres.get(row))
        self._centres[row] = centres
        labels = torch.cdist(points, centres).argmin(1)
        words = self._means["cross"][1][row].double().T[chosen]
        return subject_masks(labels, words, boxes, before, self.threshold, len(centres))
