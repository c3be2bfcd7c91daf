"""Clustering of CountGen's first pass (https://arxiv.org/abs/2406.10210), point by point."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def density_clusters(distances: Array, reach: float, neighbours: int) -> list[int]:
    """DBSCAN: walk from every core that has no cluster yet to whatever it reaches through cores."""
    count = len(distances)
    near = [[other for other in range(count) if distances[point, other] <= reach] for point in range(count)]
    labels = [-1] * count
    cluster = 0
    for start in range(count):
        if labels[start] >= 0 or len(near[start]) < neighbours:
            continue
        labels[start] = cluster
        waiting = [start]
        while waiting:
            point = waiting.pop()
            if len(near[point]) < neighbours:
                continue
            for other in near[point]:
                if labels[other] < 0:
                    labels[other] = cluster
                    waiting.append(other)
        cluster += 1
    return labels


def silhouette(distances: Array, labels: list[int]) -> float:
    values = []
    for point, label in enumerate(labels):
        others = {other: [p for p, its in enumerate(labels) if its == other and p != point] for other in set(labels)}
        if not others[label]:
            values.append(0.0)
            continue
        within = float(np.mean([distances[point, p] for p in others[label]]))
        beside = min(float(np.mean([distances[point, p] for p in found])) for other, found in others.items() if other != label)
        values.append((beside - within) / max(beside, within))
    return float(np.mean(values))
