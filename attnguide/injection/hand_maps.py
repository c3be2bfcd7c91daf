"""Regions' masks written into attention: the eight methods ``inject1`` to ``inject8`` as corners of one family."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from attnguide.attention.edits import MASS_POLICIES, Edit, MassPolicy, apply_mass_policy
from attnguide.attention.sites import Site, SiteSelector, depth_range
from attnguide.guidance.per_row import EachRow, PerRow
from attnguide.injection.base import Injection, in_columns
from attnguide.prompt.targets import Targets
from attnguide.schedules import Unit, Window
from attnguide.types import Branch, PassContext

Operation = Literal["add", "replace", "interpolate"]
Reference = Literal["absolute", "mean", "max", "std", "norm"]


class MapInjection(Injection):
    """Writes each region's map into its phrase's columns of cross-attention, or into self-attention among its cells.

    With ``m`` the region's map, ``w`` its token, ``s`` the scale and ``u`` the reference unit: ``add`` is ``X_w + s u m``,
    ``replace`` is ``X_w = s u m`` and ``interpolate`` is ``X_w + s (u m - X_w)``, where ``X`` is the probabilities or the
    scaled scores. A region's weight is a further factor on its map; a region of weight 0 writes nothing.

    Args:
        stage: ``probs`` (after the softmax) or ``scores`` (before).
        operation: ``add``, ``replace`` or ``interpolate``.
        levels: Map levels to edit, 0 the largest that has attention of this kind; all when ``None``.
        places: ``down``, ``mid``, ``up``; all when ``None``.
        depths: First and last depth of the blocks, 0 the network's first and 1 its last; all when ``None``.
        kind: ``cross`` or ``self``.
        scale: Strength, one number or one per row; 0 is exactly no method.
        reference: Unit ``u`` of the scale: ``absolute`` (1), or the ``mean``, ``max``, ``std`` or ``norm`` (root mean square)
            of the column's current values, per site, row and head.
        mass: Treatment of probability mass (``probs`` only): ``none``, ``renormalize`` rows, ``preserve`` each token's total.
        start: First bound of the window, in ``unit``.
        stop: Second bound of the window, in ``unit``.
        unit: ``timestep`` (t / 1000, 1 at pure noise), ``progress`` or ``sigma``.
        branch: ``cond`` edits the conditional half only, ``both`` both.

    Raises:
        ValueError: If an option has a value that is not allowed.
    """

    name = "map_injection"

    def __init__(
        self,
        *,
        stage: Literal["probs", "scores"] = "probs",
        operation: Operation = "add",
        levels: Sequence[int] | None = (0, 1),
        places: Sequence[str] | None = None,
        depths: Sequence[float] | None = None,
        kind: Literal["cross", "self"] = "cross",
        scale: PerRow = 1.0,
        reference: Reference = "absolute",
        mass: MassPolicy = "none",
        start: float = 0.8,
        stop: float = 1.0,
        unit: Unit = "timestep",
        branch: Literal["cond", "both"] = "cond",
    ) -> None:
        _one_of("stage", stage, ("probs", "scores"))
        _one_of("operation", operation, ("add", "replace", "interpolate"))
        _one_of("kind", kind, ("cross", "self"))
        _one_of("reference", reference, ("absolute", "mean", "max", "std", "norm"))
        _one_of("mass", mass, MASS_POLICIES)
        _one_of("branch", branch, ("cond", "both"))
        EachRow(scale, "scale").require_finite()
        if stage == "scores" and mass != "none":
            raise ValueError(f"mass applies to stage 'probs' only (a softmax follows the scores); got {mass!r}.")
        self.stage, self.operation, self.scale, self.reference, self.mass = stage, operation, scale, reference, mass
        self.branch: Literal["cond", "both"] = branch
        self.window = Window(start, stop, unit)
        self.sites = SiteSelector(kind=kind, levels=_tuple(levels), places=_tuple(places), depths=depth_range(depths))

    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [_MapEdit(self, targets)]


def _tuple(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


def _strongest(values: Tensor) -> Tensor:
    """Combine regions (axis 1): the largest positive plus the smallest negative value of each cell."""
    return values.amax(1).clamp_min(0) + values.amin(1).clamp_max(0)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")


class _MapEdit(Edit):
    """Edit of scores or probs of a :class:`MapInjection` for one batch of rows."""

    def __init__(self, injection: MapInjection, targets: Targets) -> None:
        self.injection, self.targets = injection, targets
        self.sites = injection.sites
        self.stages = frozenset({injection.stage})
        self._kept: dict[Hashable, tuple[Tensor, Tensor, Tensor, Tensor | None]] = {}
        self.scales = [float(scale) for scale in EachRow(injection.scale, "scale").over(len(targets.regions))]

    def active(self, context: PassContext) -> bool:
        return (
            context.kind == "denoise"
            and self.injection.window.active(context.step)
            and any(self.scales[row] != 0 for row in context.rows)
        )

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        return self._write(scores, site, context)

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        return apply_mass_policy(self._write(probs, site, context), probs, self.injection.mass)

    def _write(self, values: Tensor, site: Site, context: PassContext) -> Tensor:
        """Scores or probs ``batch heads query key`` with the maps written into them."""
        drawn, written, scale, columns = self._fitted(site, context, values)
        if columns is None:
            return self._changed(values, drawn, written, scale)
        return in_columns(values, columns, lambda words: self._changed(words, drawn, written, scale))

    def _changed(self, values: Tensor, drawn: Tensor, written: Tensor, scale: Tensor) -> Tensor:
        goal = drawn * self._unit(values)
        if self.injection.operation == "add":
            changed = values + scale * goal
        elif self.injection.operation == "replace":
            changed = scale * goal.expand_as(values)
        else:
            changed = values + scale * (goal - values)
        return torch.where(written, changed, values)

    def touches(self, context: PassContext) -> Sequence[int]:
        elements = enumerate(zip(context.rows, context.branches, strict=True))
        return [position for position, (row, branch) in elements if branch in self._branches and self.scales[row] != 0]

    def _fitted(self, site: Site, context: PassContext, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Maps for a pass's batch elements, cached for cross-attention (maps of pairs of cells are too large).

        Returns:
            Map ``batch 1 query columns``, mask of where it is written, scale, and positions of the columns (``None`` for all).
        """
        key = (site.height, site.width, context.rows, context.branches, like.dtype, like.device)
        if key in self._kept:
            return self._kept[key]
        rows = list(context.rows)
        drawn, touched = self._drawn(site)
        columns = touched.any(0).any(0).nonzero()[:, 0] if site.kind == "cross" else None
        if columns is not None:
            drawn, touched = drawn[..., columns], touched[..., columns]
        drawn, touched = (part[rows].unsqueeze(1).to(like.device) for part in (drawn, touched))
        scale = torch.tensor([self.scales[row] for row in rows], device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)
        edited = torch.tensor([branch in self._branches for branch in context.branches], device=like.device)
        fitted = drawn.to(like.dtype), touched & edited.view(-1, 1, 1, 1) & (scale != 0), scale, columns
        if columns is not None:
            self._kept[key] = fitted
        return fitted

    @property
    def _branches(self) -> tuple[Branch, ...]:
        return ("cond", "perturbed", "uncond") if self.injection.branch == "both" else ("cond", "perturbed")

    def _drawn(self, site: Site) -> tuple[Tensor, Tensor]:
        """Map to write, ``batch query key``, and mask of where it is written, broadcast to it."""
        targets = self.targets
        masks = targets.masks(site.height, site.width).flatten(2) * targets.weights[..., None]
        if site.kind == "self":
            pairs = torch.einsum("brq,brk->brqk", masks, targets.masks(site.height, site.width).flatten(2))
            return _strongest(pairs), (pairs != 0).any(1)
        owns = (targets.tokens > 0) & (targets.placed & (targets.weights != 0))[..., None]
        return _strongest(masks.unsqueeze(-1) * owns.unsqueeze(2)), owns.any(1).unsqueeze(1)

    def _unit(self, values: Tensor) -> Tensor | float:
        """Reference value of every column, per batch element and head: ``batch heads 1 key``."""
        kind = self.injection.reference
        if kind == "absolute":
            return 1.0
        if kind == "mean":
            return values.mean(2, keepdim=True)
        if kind == "max":
            return values.amax(2, keepdim=True)
        if kind == "std":
            return values.std(2, keepdim=True)
        return values.square().mean(2, keepdim=True).sqrt()
