"""Restart of rows from other noise where words' attention misses its regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.guidance.base import Trials
from attnguide.prompt.targets import Targets, region_maps

_TINY = 1e-12


def restarted(
    latents: Tensor,
    rows: Sequence[int],
    trials: Trials,
    judge: Callable[[AttentionMaps, Targets], Tensor],
    enough: float,
    attempts: int,
) -> Tensor:
    """Latents in which rows whose score is below ``enough`` are replaced by their best attempt from other noise.

    Every score costs a row one conditional pass, every attempt the denoising up to the step that follows. A row's result does
    not depend on other rows.

    Args:
        latents: Latents of all rows of the trials, ``batch channels height width``.
        rows: Rows that may be restarted.
        trials: Network passes before the current step.
        judge: Score of maps, ``batch``; higher is better.
        enough: Score that ends a row's attempts.
        attempts: Most attempts per row, the current latents included.
    """
    if not rows or attempts < 2:
        return latents
    found = latents.clone()
    reached = _judged(found, rows, trials, judge)
    for _ in range(attempts - 1):
        waiting = [row for row in rows if reached[row] < enough]
        attempt = trials.restart(found[waiting], waiting) if waiting else None
        if attempt is None:
            break
        again = found.clone()
        again[waiting] = attempt.latents
        now = _judged(again, waiting, trials, judge)
        better = [row for row in waiting if now[row] > reached[row]]
        found[better] = again[better]
        reached |= {row: now[row] for row in better}
        trials.adopt(attempt, better)
    return found


def _judged(
    latents: Tensor, rows: Sequence[int], trials: Trials, judge: Callable[[AttentionMaps, Targets], Tensor]
) -> dict[int, float]:
    """Score of each row, by row."""
    maps = trials.maps(latents[list(rows)], rows)
    return dict(zip(rows, judge(maps, trials.targets.select(rows)).tolist(), strict=True))


def lowest_peak(maps: AttentionMaps, targets: Targets) -> Tensor:
    """Smallest peak inside a region over a row's regions, as a share of the word's peak; ``batch``, in [0, 1].

    Averaged over map sizes; regions with an empty mask or weight 0 do not count.
    """
    shares = []
    for height, width in maps.resolutions:
        words = region_maps(maps.average(height, width).flatten(1, 2), targets.tokens)
        masks = targets.masks(height, width).flatten(2).to(words)
        inside = (words * (masks > 0)).amax(-1) / words.amax(-1).clamp_min(_TINY)
        counts = targets.placed & (targets.weights > 0) & (masks.sum(-1) > 0)
        shares.append(torch.where(counts, inside, 1.0))
    return torch.stack(shares).mean(0).amin(1)
