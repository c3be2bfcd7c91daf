"""Perturbed-attention guidance: away from the prediction under identity self-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.per_row import EachRow, PerRow
from attnguide.injection.base import Injection, WindowEdit, as_tuple, finite
from attnguide.prompt.targets import Targets
from attnguide.schedules import Unit, Window
from attnguide.types import Branch, PassContext, Step


class PerturbedAttention(Injection):
    """Adds ``scale (cond - perturbed)`` to the prediction (https://arxiv.org/abs/2403.17377).

    ``perturbed`` is a further conditional branch of the pass, in which self-attention of the chosen sites is the identity: each
    query takes its own value. The default sites and strength are those of diffusers' pipelines.

    Args:
        scale: Strength, one number or one per row.
        adaptive: Lowers the strength to ``scale - adaptive (1000 - t)``, at least 0; 0 for a constant strength.
        places: ``down``, ``mid``, ``up``; all when ``None``.
        levels: Map levels; all when ``None``.
        names: Glob patterns over module paths; any when ``None``.
        start: First bound of the window, in ``unit``.
        stop: Second bound of the window, in ``unit``.
        unit: ``progress``, ``timestep`` (t / 1000) or ``sigma``.

    Raises:
        ValueError: If an option is out of range.
    """

    name = "pag"
    needs_regions = None

    def __init__(
        self,
        *,
        scale: PerRow = 3.0,
        adaptive: float = 0.0,
        places: Sequence[str] | None = ("mid",),
        levels: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        start: float = 0.0,
        stop: float = 1.0,
        unit: Unit = "progress",
    ) -> None:
        finite("scale", scale)
        if not 0 <= adaptive < float("inf"):
            raise ValueError(f"adaptive must be at least 0; got {adaptive}.")
        self.scale, self.adaptive = scale, adaptive
        self.sites = SiteSelector("self", as_tuple(levels), places=as_tuple(places), names=as_tuple(names))
        self.window = Window(start, stop, unit)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [_Identity(self, targets)]

    def branches(self, step: Step) -> tuple[Branch, ...]:
        return ("perturbed",) if self.window.active(step) and any(self._strengths(step)) else ()

    def correct(self, noise_pred: Tensor, answers: Mapping[Branch, Tensor], step: Step) -> Tensor:
        if "perturbed" not in answers:
            return noise_pred
        strength = torch.tensor(self._strengths(step), device=noise_pred.device, dtype=noise_pred.dtype).view(-1, 1, 1, 1)
        return noise_pred + strength * (answers["cond"] - answers["perturbed"])

    def _strengths(self, step: Step) -> list[float]:
        """Strength at a step, one for all rows, or one per row."""
        scales = EachRow(self.scale, "scale").values
        lowered = self.adaptive * (1000 - step.timestep)
        return [max(scale - lowered, 0.0) if self.adaptive else float(scale) for scale in scales]


class _Identity(WindowEdit):
    """Identity self-attention in the perturbed branch."""

    def __init__(self, method: PerturbedAttention, targets: Targets) -> None:
        super().__init__(method.sites, ("probs",), method.window, method.scale, len(targets.regions))

    def active(self, context: PassContext) -> bool:
        return bool(context.positions("perturbed"))

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        edited = probs.clone()
        edited[context.positions("perturbed")] = torch.eye(probs.shape[-1], device=probs.device, dtype=probs.dtype)
        return edited
