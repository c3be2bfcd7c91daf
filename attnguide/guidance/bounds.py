"""Attention masks that keep subjects apart (Bounded Attention)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.clusters import SubjectMasks
from attnguide.prompt.function_words import function_word_positions
from attnguide.prompt.targets import Targets
from attnguide.types import PassContext, Step


def subject_words(targets: Targets) -> Tensor:
    """Mask of the words of each placed region, bool, ``batch regions tokens``."""
    return (targets.tokens > 0) & targets.placed[..., None]


def end_token(targets: Targets) -> Tensor:
    """Mask of first end tokens, bool, ``batch tokens``, without end tokens that are sinks, which belong to no subject."""
    return targets.ends & ~targets.sinks


class SubjectBounds(Edit):
    """Masks both kinds of attention by subject (Bounded Attention, https://arxiv.org/abs/2403.16990), in one batch of rows.

    Every placed region is a subject. In cross-attention of the conditional half, a subject's cell attends to no words of other
    subjects, a background cell to no subject's words and no end token (in guide passes to all of them), and no cell to function
    words. In self-attention of both halves, a subject's cell does not attend to other subjects' cells.

    Args:
        targets: All rows.
        on: Whether each row is masked.
        masks: Masks of the subjects, refined from maps that :class:`SubjectMaps` records.
        start: Progress at which refinement of the masks begins.
        every: Progress between one refinement and the next, above 0.
    """

    stages = frozenset({"scores"})
    remembers = True

    def __init__(
        self,
        targets: Targets,
        on: Sequence[bool],
        masks: SubjectMasks,
        start: float,
        every: float,
    ) -> None:
        self.on, self.masks, self.start, self.every = list(on), masks, start, every
        self.words, self.end = subject_words(targets), end_token(targets)
        self.silent = torch.zeros_like(self.end)
        for row, prompt in enumerate(targets.tokenized):
            self.silent[row, list(function_word_positions(prompt))] = True
        self._step: Step | None = None

    def active(self, context: PassContext) -> bool:
        return context.kind in ("denoise", "guide") and any(self.on[row] for row in context.rows)

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        if context.step is not self._step and context.kind == "denoise":  # a step may be made in several passes
            self._step = context.step
            if self._due(context.step):
                self.masks.refine()
        rows = list(context.rows)
        masks = self.masks.at(site.height, site.width)[rows]
        hidden = self._hidden_words(masks, rows, context) if site.kind == "cross" else _hidden_cells(masks)
        # A perturbed branch is masked like the conditional one.
        halves = ("cond", "perturbed") if site.kind == "cross" else ("cond", "uncond", "perturbed")
        touched = [self.on[row] and branch in halves for row, branch in zip(rows, context.branches, strict=True)]
        hidden = hidden & torch.tensor(touched, device=hidden.device)[:, None, None]
        return scores.masked_fill(hidden[:, None].to(scores.device), torch.finfo(scores.dtype).min)

    def _due(self, step: Step) -> bool:
        """Whether masks are refined before this step."""
        interval = max(1, round(self.every * step.overall_count))
        late = step.begins and step.progress >= self.start
        return late and (not self.masks.refined or step.overall_index % interval == 0)

    def _hidden_words(self, masks: Tensor, rows: list[int], context: PassContext) -> Tensor:
        """True where a query may not attend to a token, ``batch query token``."""
        words, background = self.words[rows], ~masks.any(1)
        guiding = context.kind == "guide"
        seeing = masks | background[:, None] if guiding else masks
        visible = torch.einsum("brq,brk->bqk", seeing.float(), words.float()) > 0
        hidden = (words.any(1) | self.silent[rows])[:, None] & ~visible
        return hidden if guiding else hidden | (background[:, :, None] & self.end[rows][:, None])


class SubjectMaps(Edit):
    """Records conditional attention maps of denoising passes for :class:`SubjectMasks`; changes nothing.

    Args:
        masks: Masks that are refined from the maps.
        on: Whether each row is masked; nothing is recorded if none is.
        sites: Sites to record, of one map size.
    """

    stages = frozenset({"probs"})
    remembers = True

    def __init__(self, masks: SubjectMasks, on: Sequence[bool], sites: SiteSelector) -> None:
        self.masks, self.on, self.sites = masks, list(on), sites

    def active(self, context: PassContext) -> bool:
        return context.kind == "denoise" and any(self.on[row] for row in context.rows)

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        if own := context.positions("cond"):
            self.masks.see(site, probs[own].detach().mean(1))
        return probs


def _hidden_cells(masks: Tensor) -> Tensor:
    """True where a cell may not attend to another, ``batch query key``."""
    background = ~masks.any(1)
    together = torch.einsum("brq,brk->bqk", masks.float(), masks.float()) > 0
    return ~(together | background[:, :, None] | background[:, None, :])
