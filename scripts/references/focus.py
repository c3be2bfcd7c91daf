"""FOCUS: the cost of its control, on maps that are not blurred (the published blur is torchvision's).

The published code adds 1e-10 to what it takes the logarithm of, hence about 1e-7. Its sign for FLUX, which climbs the cost,
stands in a pipeline and is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from attnguide.guidance.focus import Focus
from attnguide.types import Region
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import CROSS_16, mean_map, random_maps, step, targets

GROUPS: dict[tuple[str, ...], list[list[int]]] = {
    ("red cat", "blue ball"): [[2, 3], [6, 7]],
    ("cat", "ball"): [[3], [7]],
    ("red cat",): [[2, 3]],
    ("red cat", "ball"): [[2, 3], [7]],
}
"""Phrases, and their tokens."""


def compare(clone: Path) -> Iterator[Comparison]:
    """Subjects of one word and of two, one subject alone among them; flat maps and sharp ones."""
    theirs = load(clone / "src" / "losses.py", ["controller_loss"])["controller_loss"]
    for number, (phrases, groups) in enumerate(GROUPS.items()):
        aim = targets([Region(phrase) for phrase in phrases])
        for sharpness in (1.0, 3.0):
            maps = random_maps(CROSS_16, number, sharpness)
            tokens = mean_map(maps).flatten(0, 1).T
            loss = theirs(tokens, [torch.tensor(group) for group in groups])
            found = Focus(blur_std=0.0, quirks="reference").loss(maps, aim, step()).loss
            yield compared(f"{', '.join(phrases)}, sharpness {sharpness:g}", loss, found, maps.probs.values())


REFERENCE = Reference("focus", "ericbill21/FOCUS", compare)
