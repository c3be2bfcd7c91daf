"""CONFORM: maps of one group are alike, maps of different groups differ, over two steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps, gaussian_smooth, token_softmax
from attnguide.attention.sites import Site
from attnguide.guidance.base import Guidance, LossOutput, cross_sites
from attnguide.guidance.groups import require_groups
from attnguide.guidance.memory import Memory, StepMemory
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Refinement, Update
from attnguide.guidance.word_maps import blur_deviation
from attnguide.losses.binding import nt_xent
from attnguide.prompt.pairs import TokenGroup
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, sqrt_linear
from attnguide.types import Step


class Conform(Guidance):
    """Contrastive loss on the words' maps of this step and the last (https://arxiv.org/abs/2312.06059).

    Every word of a group (noun and modifiers, :mod:`attnguide.prompt.pairs`) contributes its smoothed map and that of the last
    guide pass of the previous step; maps of one group are positives, maps of different groups negatives of an NT-Xent loss
    with cosine similarity. At progress 0, 0.2 and 0.4 there are twenty further updates, whatever the loss. Two groups are
    needed.

    Args:
        step_size: Peak of the step size; it falls as ``sqrt(linspace(1, 0.5))``.
        stop: Progress at which guidance ends (the code's default; its notebook has 0.6).
        refinements: Updates before the plain one at each point of ``refine_at``; 0 for none.
        refine_at: Progress points of the further updates.
        temperature: Temperature of the NT-Xent loss.
        softmax: Apply a softmax over tokens with factor 100 to maps first; the code's notebook does not, its default does.
        blur_std: Standard deviation of the 3x3 blur in cells; 0 for none.
        levels: Map levels to read; the model's guidance level when ``None``.
        scale: Factor on the step size, one number or one per row.
        quirks: ``"reference"`` repeats slips of the published code: with ``softmax`` the map of the previous step is
            multiplied by 100 at every pass anew (after some 20 passes the loss is not finite and the row is given up), a word
            in two groups belongs to the last only, and the blur is wider by ``sqrt(2)``.
    """

    name = "conform"
    needs_regions = None

    def __init__(
        self,
        *,
        step_size: float = 20.0,
        stop: float = 0.5,
        refinements: int = 20,
        refine_at: Sequence[float] = (0.0, 0.2, 0.4),
        temperature: float = 0.5,
        softmax: bool = False,
        blur_std: float = 0.5,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0; got {temperature}.")
        further = (Refinement(-math.inf, refinements, tuple(refine_at)),) if refinements else ()
        super().__init__(
            sites=cross_sites(levels),
            window=Window(0.0, stop),
            update=Update(sqrt_linear(step_size), scale, refinements=further),
        )
        self.reference = repeats_slips(quirks)
        self.temperature, self.softmax = temperature, softmax
        self.blur_std = blur_deviation(blur_std, self.reference)
        self._memories: dict[tuple[int, int], StepMemory] = {}

    def start(self, targets: Targets) -> None:
        self._memories.clear()

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        require_groups(self.name, targets, "two groups of words", lambda group: any(len(row) > 1 for row in targets.groups))

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        sizes = [self._one_size(maps.average(height, width), targets, step) for height, width in maps.resolutions]
        loss = torch.stack(sizes).mean(0)
        return LossOutput(loss, loss.detach())

    def _one_size(self, probs: Tensor, targets: Targets, step: Step) -> Tensor:
        """Loss of each row from ``batch height width tokens`` maps; ``batch``."""
        memory = self._memories.setdefault((probs.shape[1], probs.shape[2]), StepMemory())
        recalled = memory.recall(targets.rows, step, list(probs))
        # In the published code one pass has been made already when a refinement begins.
        extra = int(self.update.refinement(step) is not None)
        competing, losses = targets.competing(with_end=True), []
        for row, remembered in enumerate(recalled):
            groups = targets.groups[row]
            words = list(dict.fromkeys(word for group in groups for word in group.words))
            seen = [self._words(probs[row], words, competing[row], 100.0)]
            if remembered.previous is not None:
                seen.append(self._words(remembered.previous, words, competing[row], self._heat(remembered, extra)))
            related = _related(words, groups, last_only=self.reference).to(probs.device).repeat(len(seen), len(seen))
            losses.append(nt_xent(torch.cat(seen).flatten(1), related, self.temperature) if words else probs[row].sum() * 0)
        return torch.stack(losses)

    def _heat(self, remembered: Memory, extra: int) -> float:
        """Factor on the previous step's map before the token softmax."""
        if not self.reference:
            return 100.0
        return 100.0 ** min(remembered.passes + extra, 150)

    def _words(self, probs: Tensor, words: Sequence[tuple[int, ...]], competing: Tensor, heat: float) -> Tensor:
        """Maps of words from one row's ``height width tokens`` map; ``words height width``."""
        if self.softmax:
            heated = probs * torch.tensor(heat, device=probs.device, dtype=probs.dtype)
            probs = token_softmax(heated[None], competing[None], temperature=1.0)[0]
        maps = torch.stack([probs[..., list(word)].mean(-1) for word in words]) if words else probs.movedim(-1, 0)[:0]
        return gaussian_smooth(maps, self.blur_std) if self.blur_std > 0 and words else maps


def _related(words: Sequence[tuple[int, ...]], groups: Sequence[TokenGroup], last_only: bool) -> Tensor:
    """True where two words share a group, ``words words``."""
    member = torch.tensor([[word in group.words for group in groups] for word in words], dtype=torch.float32)
    if last_only and len(words):
        last = member.shape[1] - 1 - member.flip(1).argmax(1)
        member = torch.nn.functional.one_hot(last, member.shape[1]).float()
    return member @ member.T > 0 if len(words) else torch.zeros(0, 0, dtype=torch.bool)
