"""Instances of a word in a picture, found by clustering self-attention, and adjusted to a wanted count (CountGen)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.maps import AttentionMaps, min_max
from attnguide.attention.sites import SiteSelector
from attnguide.losses.stray import levels, otsu_level
from attnguide.prompt.targets import Targets, region_maps
from attnguide.types import Step

REACHES = tuple(round(0.1 + 0.01 * number, 2) for number in range(10))
"""Tried cosine distances within which cells are neighbours; the one with the best silhouette is used."""

_CORE, _CLUSTER, _CENTRE = 10 / 1024, 15 / 1024, 6 / 32
"""Neighbours of a core cell and size of the smallest cluster, as shares of the map's cells; side of the square that replaces
an object where none was found, as a share of the map's side."""


class FirstPass:
    """Records maps of a first pass without guidance, and finds the instances of phrases without a place.

    Args:
        targets: Rows of the pass.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        self._words: Tensor | None = None
        self._attention: Tensor | None = None

    def __call__(self, step: Step, maps: AttentionMaps) -> None:
        """Add the words' maps of a step to the sum, and keep its self-attention; all maps of one size."""
        cross, own = (maps.choose(SiteSelector(kind=kind)) for kind in ("cross", "self"))
        size = cross.resolutions[0]
        words = region_maps(cross.average(*size).flatten(1, 2), self.targets.last_tokens).unflatten(-1, size)
        self._words = words if self._words is None else self._words + words
        self._attention = own.average(*size).flatten(1, 2)

    def masks(self, counts: Sequence[int]) -> list[Tensor]:
        """Union of each phrase's ``counts[row]`` instances, bool, ``regions height width`` per row; empty where placed."""
        assert self._words is not None and self._attention is not None
        free = (self.targets.valid & ~self.targets.placed).tolist()
        found = []
        for words, attention, wanted, count in zip(self._words, self._attention, free, counts, strict=True):
            nothing = torch.zeros(words.shape[1:], dtype=torch.bool, device=words.device)
            found.append(
                torch.stack(
                    [
                        with_count(find_instances(attention, word), count).any(0) if one else nothing
                        for word, one in zip(words, wanted, strict=True)
                    ]
                )
            )
        return found


def density_clusters(distances: Tensor, reach: float, neighbours: int) -> Tensor:
    """DBSCAN clusters; a point between two clusters goes to the first.

    Args:
        distances: ``points points``.
        reach: Largest distance of neighbours; a point is its own neighbour.
        neighbours: Smallest number of neighbours of a core point; neighbouring cores share a cluster.

    Returns:
        int64, ``points``: clusters numbered from 0 by their first core, -1 for points near no core.
    """
    near = distances <= reach
    cores = near.sum(1) >= neighbours
    outside = len(distances)
    linked = near & cores[:, None] & cores
    label = torch.where(cores, torch.arange(outside, device=distances.device), outside)
    while True:
        lower = torch.where(linked, label[None], outside).amin(1)
        if torch.equal(lower, label):
            break
        label = lower
    reached = torch.where(near & cores[None], label[None], outside).amin(1)
    joined = torch.where(cores, label, reached)
    numbered = joined.unique(return_inverse=True)[1]
    return torch.where(joined == outside, -1, numbered)  # the outside has the highest number


def silhouette(distances: Tensor, labels: Tensor) -> float:
    """Silhouette score, the mean of ``(b - a) / max(a, b)`` over points (Rousseeuw, 1987).

    ``a`` is a point's mean distance to the others of its cluster, ``b`` to the points of the nearest other cluster. A point
    alone in its cluster counts 0, and the score of a single cluster is 0.

    Args:
        distances: ``points points``.
        labels: Cluster of each point; -1 counts as a cluster too.
    """
    member = F.one_hot(labels - labels.min()).to(distances)
    member = member[:, member.sum(0) > 0]
    size = member.sum(0)
    if len(size) < 2:
        return 0.0
    sums, own = distances @ member, member.bool()
    within = sums[own] / (size[None].expand_as(sums)[own] - 1).clamp_min(1)
    beside = (sums / size).masked_fill(own, math.inf).amin(1)
    value = (beside - within) / torch.maximum(within, beside).clamp_min(1e-12)
    return float(torch.where(size[None].expand_as(sums)[own] > 1, value, 0.0).mean())


def find_instances(attention: Tensor, words: Tensor) -> Tensor:
    """Masks of a word's instances in the first pass of CountGen (https://arxiv.org/abs/2406.10210), as its code finds them.

    Cells where the word's map exceeds Otsu's threshold are clustered (:func:`density_clusters`) by the cosine distance of
    their self-attention to one another, made symmetric; of several reaches the one with the best :func:`silhouette` is taken.
    A cell is a core with 10 neighbours of 1024, and clusters below 15 cells of 1024 are dropped. The code's clean-up of
    masks by convex hulls is left out.

    Args:
        attention: Self-attention of one picture, averaged over heads and sites, ``cells cells``.
        words: The word's map, ``height width``.

    Returns:
        Masks, bool, ``instances height width``, with 0 or more instances.
    """
    scaled = min_max(words.double())
    inside = (levels(scaled) > otsu_level(scaled)).flatten()
    cells = len(inside)
    kept = attention.double() * inside[:, None] * inside
    kept = kept + kept.T
    unit = kept / kept.norm(dim=1, keepdim=True).clamp_min(1e-30)
    distances = (1 - unit @ unit.T).clamp_min(0).fill_diagonal_(0)
    tried = []
    for reach in REACHES:
        labels = density_clusters(distances, reach, max(2, round(_CORE * cells)))
        for cluster in range(int(labels.max()) + 1):
            if int((labels == cluster).sum()) < max(2, round(_CLUSTER * cells)):
                labels = torch.where(labels == cluster, -1, labels)
        found = [labels == cluster for cluster in labels.unique().tolist() if cluster >= 0]
        tried.append((silhouette(distances, labels) if len(found) > 1 else 0.0, found))
    best = max(tried, key=lambda pair: pair[0])[1]
    masks = torch.stack(best) if best else torch.zeros(0, cells, dtype=torch.bool, device=words.device)
    return masks.unflatten(1, words.shape)


def with_count(masks: Tensor, count: int) -> Tensor:
    """Exactly ``count`` instances: the smallest are dropped, or further ones are put where there is most room.

    Without any instance a square in the middle is used, as in CountGen's code. There, further instances come from a trained
    network, which is not part of this: here each is a disc of the instances' mean area around the cell farthest from all
    instances and edges, with at most that distance as radius.

    Args:
        masks: Masks of instances, bool, ``instances height width``.
        count: Wanted number of instances, at least 1.

    Returns:
        bool, ``count height width``.
    """
    if not len(masks):
        masks = _middle(masks.shape[1], masks.shape[2], masks.device)[None]
    sizes = masks.flatten(1).sum(1)
    largest = sizes.argsort(descending=True, stable=True)[:count].sort().values
    chosen = list(masks[largest])
    radius = math.sqrt(float(sizes[largest].double().mean()) / math.pi)
    while len(chosen) < count:
        chosen.append(_disc(torch.stack(chosen).any(0), radius))
    return torch.stack(chosen)


def _middle(height: int, width: int, device: torch.device) -> Tensor:
    """A square around the middle cell, ``height width``."""
    side = max(_CENTRE * min(height, width), 1.0)
    away = [(torch.arange(cells, device=device) + 0.5 - cells / 2).abs() <= max(side / 2, 0.5) for cells in (height, width)]
    return away[0][:, None] & away[1]


def _disc(taken: Tensor, radius: float) -> Tensor:
    """A disc around the freest cell, without cells in ``taken``, bool ``height width``; never empty."""
    height, width = taken.shape
    ys, xs = (torch.arange(cells, device=taken.device, dtype=torch.float64) + 0.5 for cells in (height, width))
    places = torch.cartesian_prod(ys, xs)
    edges = torch.stack([places[:, 0], height - places[:, 0], places[:, 1], width - places[:, 1]]).amin(0)
    others = places[taken.flatten()]
    room = torch.minimum(edges, torch.cdist(places, others).amin(1)) if len(others) else edges
    centre = int(room.argmax())
    near = (places - places[centre]).norm(dim=1)
    disc = (near <= min(radius, float(room[centre]))) & ~taken.flatten()
    disc[centre] = True
    return disc.view(height, width)
