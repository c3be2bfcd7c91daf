"""How clearly a finished picture's words were attended to somewhere: a score that needs no judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.prompt.pairs import group_tokens, row_groups
from attnguide.types import PassContext, Sample, SampleResult

_TINY = 1e-12


def least_contrast(maps: Tensor) -> float:
    """The least peak over mean of maps ``words query``; at least 1, and 1 for an even map."""
    return float((maps.amax(1) / maps.mean(1).clamp_min(_TINY)).min())


def require_nouns(sample: Sample) -> None:
    """Refuse a row in whose prompt no noun is found, as its pictures would have no contrast.

    Raises:
        ValueError: If no noun is found and the row names no words.
    """
    if not row_groups(sample.text, sample.groups, sample.regions):
        raise ValueError(f"judge 'attention' finds no noun in the prompt {sample.prompt!r}; name words by regions or groups.")


class Contrast(Observer):
    """Observer of one batch that keeps :func:`least_contrast` of each row's nouns at the last evaluation of the network.

    A noun's map is the mean of its tokens and those of its modifiers, over heads and over the sites of the model's guidance
    level. Nouns are those of the row's regions, its groups, or all that are found in the prompt.

    Attributes:
        scores: Contrast of each row; empty until the batch is finished, or if it stopped before the last evaluation.
    """

    def __init__(self) -> None:
        self.scores: list[float] = []
        self._words: list[list[list[int]]] = []
        self._maps: dict[Site, Tensor] = {}
        self._last = 0

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        rows = zip(info.samples, info.targets.tokenized, strict=True)
        groups = [group_tokens(tokens, row_groups(row.text, row.groups, row.regions)) for row, tokens in rows]
        self._words = [
            [[*group.noun, *(token for words in group.modifiers for token in words)] for group in own] for own in groups
        ]
        self._last = info.steps[-1].index
        return (Probe("probs", self._record, SiteSelector(kind="cross", levels=(info.model.guidance_level,))),)

    def _record(self, site: Site, probs: Tensor, context: PassContext) -> None:
        if context.step.index == self._last:
            self._maps[site] = probs.detach()[context.positions("cond")].float().mean(1)  # batch query tokens

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        if self._maps:
            maps = torch.stack(list(self._maps.values())).mean(0)
            self.scores = [
                least_contrast(torch.stack([own[:, tokens].mean(1) for tokens in words]))
                for own, words in zip(maps, self._words, strict=True)
            ]
