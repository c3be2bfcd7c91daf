"""Recording words' attention maps over the steps, and thresholding them to a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.maps import is_flat, min_max
from attnguide.attention.sites import Site, SiteSelector
from attnguide.prompt.targets import Targets, region_maps
from attnguide.types import PassContext, PassKind, Step


class MapRecording:
    """Records the map of every region's words at every step: mean over heads and sites of one level, conditional half.

    Attach :meth:`probe`, and call :meth:`end_step` after each step's pass.

    Args:
        targets: Words of the rows; places are not needed.
        level: Map level of the cross-attention that is read, 0 the largest.
    """

    def __init__(self, targets: Targets, level: int) -> None:
        self.targets = targets
        self.sites = SiteSelector(kind="cross", levels=(level,))
        self._current: dict[Site, Tensor] = {}
        self._maps: list[Tensor] = []
        self._progress: list[float] = []

    def probe(self, kind: PassKind = "denoise") -> Probe:
        """Probe that records in passes of one kind."""
        return Probe("probs", self._record, self.sites, frozenset({kind}))

    def _record(self, site: Site, probs: Tensor, context: PassContext) -> None:
        maps = region_maps(probs.detach()[context.positions("cond")].mean(1), self.targets.tokens)
        self._current[site] = maps.unflatten(2, (site.height, site.width))

    def end_step(self, step: Step) -> None:
        """Average the step's maps over sites, and begin the next step."""
        self._maps.append(torch.stack(list(self._current.values())).mean(0).float().cpu())
        self._progress.append(step.progress)
        self._current.clear()

    @property
    def progress(self) -> tuple[float, ...]:
        """Progress of every step that was recorded."""
        return tuple(self._progress)

    @property
    def maps(self) -> Float[Tensor, "batch regions steps height width"]:
        """Maps of all recorded steps, float32 on the CPU."""
        return torch.stack(self._maps, 2)


def target_mask(
    maps: Float[Tensor, "steps height width"],
    progress: Sequence[float],
    *,
    start: float = 0.0,
    stop: float = 1.0,
    threshold: float | None = None,
) -> Float[Tensor, "height width"]:
    """A word's maps as one mask: the mean over a part of the schedule, stretched to [0, 1].

    A flat map becomes 1 everywhere. Where no step lies in the part, the one nearest to ``start`` is used.

    Args:
        maps: Attention maps in any range.
        progress: Progress of each step.
        start: First progress of the part.
        stop: End of the part, excluded.
        threshold: Smallest value that becomes 1, all others 0; ``None`` keeps the mask soft.

    Raises:
        ValueError: If a map is not finite.
    """
    if not bool(torch.isfinite(maps).all()):
        raise ValueError("The recorded attention is not finite.")
    chosen = [index for index, at in enumerate(progress) if start <= at < stop]
    chosen = chosen or [min(range(len(progress)), key=lambda index: abs(progress[index] - start))]
    mean = maps[chosen].float().mean(0)
    mask = torch.ones_like(mean) if bool(is_flat(mean)) else min_max(mean)
    return mask if threshold is None else (mask >= threshold).to(mask.dtype)
