"""A-STAR: words must not share cells, and must keep the cells they had a step before."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps, min_max
from attnguide.guidance.base import Guidance, LossOutput, cross_sites
from attnguide.guidance.memory import StepMemory
from attnguide.guidance.update import PerRow, Update
from attnguide.guidance.word_maps import word_maps
from attnguide.losses.separation import overlap
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, sqrt_linear
from attnguide.types import Step


class AStar(Guidance):
    """Segregation and retention of the phrases' maps (https://arxiv.org/abs/2306.14544).

    With ``O(a, b) = sum min(a, b) / sum (a + b)``: ``L = sum over pairs of O(A_m, A_n) + sum over phrases of 1 - O(A_m, B_m)``,
    ``B`` the binarised map of the previous step (the second sum is left out in the first step). Guidance acts at every step.
    A region's ``weight`` is a factor on its phrase's term, the geometric mean of two weights on that of a pair.

    Implemented from the paper alone, as there is no published code; the paper gives no step size, threshold or scaling of maps.
    Chosen here: attend-and-excite's maps and step size, and half of a map's range as the threshold.

    Args:
        step_size: Peak of the step size; it falls as ``sqrt(linspace(1, 0.5))``.
        stop: Progress at which guidance ends.
        threshold: A cell of ``B`` is 1 where the map, scaled to [0, 1], exceeds this.
        retain: What ``B`` is: ``previous`` for the previous step's maps; ``places`` for the masks of regions that have a place
            (the paper's layout control).
        blur_std: Standard deviation of the 3x3 blur in cells; 0 for none.
        until_end: Let only words compete in the token softmax, not the end token and padding.
        levels: Map levels to read; the model's guidance level when ``None``.
        scale: Factor on the step size, one number or one per row.
    """

    name = "a_star"
    needs_regions = "phrase"

    def __init__(
        self,
        *,
        step_size: float = 20.0,
        stop: float = 1.0,
        threshold: float = 0.5,
        retain: Literal["previous", "places"] = "previous",
        blur_std: float = 0.5,
        until_end: bool = False,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
    ) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must lie in [0, 1); got {threshold}.")
        if retain not in ("previous", "places"):
            raise ValueError(f"retain must be 'previous' or 'places'; got {retain!r}.")
        super().__init__(
            sites=cross_sites(levels),
            window=Window(0.0, stop),
            update=Update(sqrt_linear(step_size), scale),
        )
        self.threshold, self.retain, self.blur_std, self.until_end = threshold, retain, blur_std, until_end
        self._memories: dict[tuple[int, int], StepMemory] = {}

    def start(self, targets: Targets) -> None:
        self._memories.clear()

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        sizes = [self._one_size(maps, targets, step, height, width) for height, width in maps.resolutions]
        loss = torch.stack(sizes).mean(0)
        return LossOutput(loss, loss.detach())

    def _one_size(self, maps: AttentionMaps, targets: Targets, step: Step, height: int, width: int) -> Tensor:
        words = word_maps(maps, targets, blur_std=self.blur_std, until_end=self.until_end, height=height, width=width)
        shares = targets.shares(targets.valid)
        tokens = targets.tokens
        others = (tokens[:, :, None] != tokens[:, None, :]).any(-1).triu(1)
        pairs = overlap(words[:, :, None], words[:, None, :]) * shares[:, :, None] * shares[:, None, :] * targets.pair_weights
        kept, known = self._kept(words, targets, step)
        lost = (1 - overlap(words, kept)) * shares * targets.weights * known
        return (pairs * others).sum((1, 2)) + lost.sum(1)

    def _kept(self, words: Tensor, targets: Targets, step: Step) -> tuple[Tensor, Tensor]:
        """Maps ``B`` of 0 and 1, ``batch regions height width``, and whether a region has one, bool, ``batch regions``."""
        height, width = words.shape[-2:]
        memory = self._memories.setdefault((height, width), StepMemory())
        previous = [remembered.previous for remembered in memory.recall(targets.rows, step, list(words))]
        kept = torch.stack([torch.zeros_like(words[0]) if p is None else p[: words.shape[1]] for p in previous])
        kept = (min_max(kept) > self.threshold).to(words.dtype)
        known = torch.tensor([p is not None for p in previous], device=words.device)[:, None].expand(words.shape[:2])
        if self.retain == "places":
            masks = targets.joined_masks(height, width).to(words.dtype)
            kept = torch.where(targets.placed[..., None, None], masks, kept)
            known = known | targets.placed
        return kept, known
