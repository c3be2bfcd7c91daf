"""How rows of the shapes world are scored, for the commands."""

from attnguide.metrics.scoring import shapes_scores

__all__ = ["shapes_scores"]
