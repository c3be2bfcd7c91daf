"""The eight hand injections on one head, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tests.reference.attention import softmax

Array = NDArray[np.float64]

STAGES = {1: "probs", 2: "probs", 3: "scores", 4: "scores", 5: "probs", 6: "probs", 7: "scores", 8: "scores"}
REPLACES = {2, 4, 6, 8}
SIZES = {1: (0,), 2: (0,), 3: (0,), 4: (0,), 5: (0, 1), 6: (0, 1), 7: (0, 1), 8: (0, 1)}


def edited_probs(number: int, scores: Array, maps: Mapping[int, Array], scale: float) -> Array:
    """Probs of one head after function ``number``.

    Args:
        number: 1 to 8.
        scores: Scaled scores before the softmax, ``query token``.
        maps: Token -> the drawn map, flattened, one value a query.
        scale: Strength.
    """
    values = scores.copy() if STAGES[number] == "scores" else np.stack([softmax(row) for row in scores])
    for token, drawn in maps.items():
        for cell in range(len(values)):
            if number in REPLACES:
                values[cell, token] = scale * drawn[cell]
            else:
                values[cell, token] += scale * drawn[cell]
    return values if STAGES[number] == "probs" else np.stack([softmax(row) for row in values])
