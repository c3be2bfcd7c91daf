"""A matplotlib figure that notebooks display without pyplot."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_DOTS = 110
"""Resolution in a notebook, in dots per inch."""


class ShownFigure(Figure):
    """A figure that notebooks show as a picture, with or without ``%matplotlib inline``."""

    def _repr_png_(self) -> bytes:
        raw = io.BytesIO()
        self.savefig(raw, format="png", dpi=_DOTS)
        return raw.getvalue()


def subplots(rows: int, columns: int, cell: float) -> tuple[ShownFigure, Any]:
    """A figure with ``rows`` by ``columns`` subplots of ``cell`` inches, and the array of their axes."""
    figure = ShownFigure(figsize=(columns * cell, rows * cell + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)
