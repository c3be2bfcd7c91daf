"""Forward layout guidance: each word's attention is moved into its region, its total kept."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteSelector, depth_range
from attnguide.guidance.per_row import EachRow, PerRow
from attnguide.injection.base import Injection, WindowEdit, as_tuple, finite, in_columns
from attnguide.prompt.targets import Targets
from attnguide.schedules import Unit, Window
from attnguide.types import PassContext


class ForwardLayout(Injection):
    """``P_w + scale * weight * (g sum(P_w) - P_w)`` on cross-attention probs, conditional half only.

    ``P_w`` is the column of a region's token over the map and ``g`` the region's window, which sums to 1: a Gaussian around the
    region's centre, cut off at its edge. With ``scale`` in [0, 1] a token keeps its total attention; rows do not keep theirs.

    The forward variant of https://arxiv.org/abs/2304.03373, whose code was never released: the formula is recalled from the
    paper, not checked against a reference; strength, spread and window are this project's choice.

    Args:
        scale: Strength in [0, 1], one number or one per row.
        spread: Standard deviation of the Gaussian as a multiple of the region's own along each axis; ``None`` for a flat
            window.
        levels: Map levels, 0 the largest that has cross-attention; all when ``None``.
        depths: First and last depth of the blocks, 0 the network's first and 1 its last; all when ``None``.
        start: First bound of the window, in ``unit``.
        stop: Second bound of the window, in ``unit``.
        unit: ``progress``, ``timestep`` (t / 1000) or ``sigma``.

    Raises:
        ValueError: If an option is out of range.
    """

    name = "forward_layout"
    needs_regions = "place"

    def __init__(
        self,
        *,
        scale: PerRow = 0.8,
        spread: float | None = 1.0,
        levels: Sequence[int] | None = None,
        depths: Sequence[float] | None = None,
        start: float = 0.0,
        stop: float = 0.5,
        unit: Unit = "progress",
    ) -> None:
        finite("scale", scale)
        numbers = EachRow(scale, "scale").values
        if not all(0 <= number <= 1 for number in numbers):
            raise ValueError(f"scale must lie in [0, 1]; got {scale}.")
        if spread is not None and not 0 < spread < float("inf"):
            raise ValueError(f"spread must be above 0, or None for a flat window; got {spread}.")
        self.scale, self.spread = scale, spread
        self.sites = SiteSelector(kind="cross", levels=as_tuple(levels), depths=depth_range(depths))
        self.window = Window(start, stop, unit)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [_Move(self, targets)]


class _Move(WindowEdit):
    """Edit of probs of a :class:`ForwardLayout` for one batch of rows."""

    def __init__(self, method: ForwardLayout, targets: Targets) -> None:
        super().__init__(method.sites, ("probs",), method.window, method.scale, len(targets.regions))
        self.method, self.targets = method, targets
        self._drawn: dict[Hashable, tuple[Tensor, Tensor, Tensor]] = {}

    def touches(self, context: PassContext) -> Sequence[int]:
        return self.gated(context)

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        key = (site.height, site.width, context.rows, probs.dtype, probs.device)
        if key not in self._drawn:
            self._drawn[key] = self._columns(site, context, probs)
        columns, window, weight = self._drawn[key]
        gate = self.gate(probs, context)

        def move(words: Tensor) -> Tensor:
            return words + gate * (window * words.sum(2, keepdim=True) - weight * words)

        return in_columns(probs, columns, move)

    def _columns(self, site: Site, context: PassContext, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of the words' columns, their windows ``batch 1 query columns`` and weights ``batch 1 1 columns``."""
        window, weight = self._windows(site)
        columns = (weight != 0).any(0).any(0).nonzero()[:, 0]
        rows = list(context.rows)
        window, weight = (part[rows][..., columns].unsqueeze(1).to(like) for part in (window, weight))
        return columns.to(like.device), window, weight

    def _windows(self, site: Site) -> tuple[Tensor, Tensor]:
        """Every token's window times its weight, ``batch query key``, and the weight, ``batch 1 key``.

        A token of several regions gets the mean of their windows and weights.
        """
        targets = self.targets
        masks = targets.masks(site.height, site.width).cpu().double()  # not every device has float64
        window = masks if self.method.spread is None else masks * _gaussians(masks, self.method.spread)
        window = window.flatten(2)
        window = window / window.sum(-1, keepdim=True).clamp_min(1e-30)
        owns = ((targets.tokens > 0) & targets.placed[..., None]).cpu().double()
        shares = owns / owns.sum(1, keepdim=True).clamp_min(1) * targets.weights[..., None].cpu().double()
        return torch.einsum("brq,brk->bqk", window, shares), shares.sum(1).unsqueeze(1)


def _gaussians(masks: Tensor, spread: float) -> Tensor:
    """Gaussians with each mask's centre and ``spread`` times its standard deviations, ``batch regions height width``."""
    result = torch.ones_like(masks)
    for axis in (-2, -1):
        count = masks.shape[axis]
        place = torch.arange(count, device=masks.device, dtype=masks.dtype)
        share = masks.sum(-1 if axis == -2 else -2)
        share = share / share.sum(-1, keepdim=True).clamp_min(1e-30)
        centre = (share * place).sum(-1, keepdim=True)
        # 1 / 12 is the variance within a cell of width 1, so that a region of one cell has a deviation too.
        variance = (share * (place - centre) ** 2).sum(-1, keepdim=True) + 1 / 12
        bell = torch.exp(-((place - centre) ** 2) / (2 * spread**2 * variance))
        result = result * (bell.unsqueeze(-1) if axis == -2 else bell.unsqueeze(-2))
    return result
