"""Regional prompts, one pair of positions after the other.

The boolean masks of Regional-Prompting-FLUX (https://arxiv.org/abs/2411.02395), and those of InvokeAI for the background.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def sees(
    query: tuple[str, int], key: tuple[str, int], regions: Sequence[set[int]], texts: Sequence[set[int]], rule: str
) -> bool:
    """Whether a position may look at another; each is ``("cell", number)``, ``("text", number)`` or ``("other", 0)``.

    Args:
        query: Who looks.
        key: At whom.
        regions: Cells of each region.
        texts: Cells that belong to each text.
        rule: What cells see of other cells.
    """
    kinds = query[0], key[0]
    if "other" in kinds:
        return True
    if kinds == ("cell", "cell"):
        one, two = ([number for number, cells in enumerate(regions) if cell in cells] for cell in (query[1], key[1]))
        alike = bool(set(one) & set(two)) or (not one and not two)
        return rule == "free" or alike or (rule == "background" and (not one or not two))
    if kinds == ("text", "text"):
        return query[1] == key[1]
    text, cell = (query[1], key[1]) if query[0] == "text" else (key[1], query[1])
    return cell in texts[text]


def mask(positions: Sequence[tuple[str, int]], regions: Sequence[set[int]], texts: Sequence[set[int]], rule: str) -> Mask:
    """``positions positions``."""
    return np.array([[sees(query, key, regions, texts, rule) for key in positions] for query in positions])
