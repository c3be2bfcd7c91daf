"""SynGen: a modifier attends where its noun does, and both elsewhere than the other words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.guidance.base import Guidance, LossOutput, cross_sites
from attnguide.guidance.groups import require_groups
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Update
from attnguide.losses.binding import infinite_kl, pairwise_symmetric_kl
from attnguide.prompt.pairs import TokenGroup
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, constant
from attnguide.types import Step


class SynGen(Guidance):
    """Binds modifiers to nouns by the distance of their maps (https://arxiv.org/abs/2306.08877).

    With ``D`` the symmetric Kullback-Leibler divergence of two words' raw mean maps, each scaled to sum 1, and ``U`` the
    prompt's tokens outside a group: ``L = sum over pairs (m, n) of D(m, n) - mean over u in U of (D(n, u) + D(m, u)) / 2``. Of
    a word's pieces the largest distance counts. A noun of several modifiers is pushed away from ``U`` once for each of them,
    as in the paper. Groups are the row's (:mod:`attnguide.prompt.pairs`) instead of a parser's.

    Args:
        bare_nouns: Also push nouns without modifiers away from all other tokens.
        step_size: Constant factor on the gradient.
        stop: Progress at which guidance ends.
        levels: Map levels to read; the model's guidance level when ``None``.
        scale: Factor on the step size, one number or one per row.
        quirks: ``"reference"`` leaves cells in which one of two maps is exactly 0 out of their distance, and of a word's pieces
            takes the first that has such a cell for the farthest: the published loss is infinite or NaN there, and its latents
            move on along this gradient. Else the logarithm of 0 is that of the type's precision. Other slips are not repeated:
            the published code keeps the first prompt's groups for later prompts, and returns the last picture of a batch only.
    """

    name = "syngen"
    needs_regions = None

    def __init__(
        self,
        *,
        bare_nouns: bool = False,
        step_size: float = 20.0,
        stop: float = 0.5,
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        super().__init__(
            sites=cross_sites(levels),
            window=Window(0.0, stop),
            update=Update(constant(step_size), scale),
        )
        self.bare_nouns = bare_nouns
        self.strict = repeats_slips(quirks)

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        if self.bare_nouns:
            require_groups(self.name, targets, "a noun")
        else:
            require_groups(self.name, targets, "a noun with a modifier", lambda group: bool(group.modifiers))

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        sizes = [self._one_size(maps.average(height, width), targets) for height, width in maps.resolutions]
        loss = torch.stack(sizes).mean(0)
        return LossOutput(loss, loss.detach())

    def _one_size(self, probs: Tensor, targets: Targets) -> Tensor:
        """Loss of each row from its ``height width tokens`` maps; ``batch``."""
        losses = []
        for prompt, groups, row in zip(targets.tokenized, targets.groups, probs, strict=True):
            positions = list(prompt.word_positions)
            words = row[..., positions].movedim(-1, 0)
            distances = pairwise_symmetric_kl(words, self.strict)
            ranks = distances.detach()
            if self.strict:
                ranks = ranks.masked_fill(infinite_kl(words), float("inf"))
            place = {position: index for index, position in enumerate(positions)}
            terms = [self._one_group(distances, ranks, group, place) for group in groups if group.modifiers or self.bare_nouns]
            losses.append(torch.stack(terms).sum() if terms else row.sum() * 0)
        return torch.stack(losses)

    def _one_group(self, distances: Tensor, ranks: Tensor, group: TokenGroup, place: dict[int, int]) -> Tensor:
        """Loss of one noun and its modifiers.

        Args:
            distances: Distances of all word tokens, ``words words``.
            ranks: Distances by which the farthest token of a word is chosen, ``words words``.
            group: The noun and its modifiers.
            place: Index among the word tokens by token position.
        """
        noun = [place[position] for position in group.noun]
        outside = [place[position] for position in place if position not in group.positions]

        def away(word: list[int]) -> Tensor:
            """Mean, over tokens outside the group, of the distance of the word's farthest token."""
            if not outside:
                return distances.new_zeros(())
            farthest = ranks[word][:, outside].argmax(0, keepdim=True)
            return distances[word][:, outside].gather(0, farthest).mean()

        total = distances.new_zeros(()) if group.modifiers else -away(noun)
        for pieces in group.modifiers:
            modifier = [place[position] for position in pieces]
            near = distances[modifier][:, noun].flatten()[ranks[modifier][:, noun].argmax()]
            total = total + near - (away(noun) + away(modifier)) / 2
        return total
