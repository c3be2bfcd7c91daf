"""MasaCtrl: self-attention asks with its own queries and is answered by the source's picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.edits import Edit, Stage
from attnguide.attention.maps import min_max
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.update import PerRow
from attnguide.injection.base import Injection, Source, WindowEdit, as_tuple, finite, per_row_items, phrase_positions
from attnguide.prompt.targets import Targets
from attnguide.schedules import Unit, Window
from attnguide.types import Branch, PassContext

Words = str | None


class MasaCtrl(Injection):
    """Keys and values of self-attention become those of the source, half by half (https://arxiv.org/abs/2304.08465).

    The source is denoised beside the row from the same noise. With ``words``, foreground asks foreground and background asks
    background: a cell is foreground if the words' cross-attention so far in this pass, averaged over heads and over the largest
    maps of at most ``mask_cells`` cells and stretched to [0, 1], reaches ``threshold``.

    Args:
        source_prompt: One for all rows, or one per row; the row's own when ``None``.
        words: Phrases of the prompt, separated by commas, that are foreground; one text, or one per row.
        source_words: Phrases of the source prompt, likewise; ``words`` when ``None``.
        threshold: See above.
        mask_cells: See above.
        levels: Map levels whose self-attention is answered by the source; the reference's last six of sixteen blocks are the
            decoder's two largest.
        places: ``down``, ``mid``, ``up``; all when ``None``.
        start: Where it begins, in ``unit``; the reference's step 4 of 50.
        stop: Where it ends.
        unit: ``progress``, ``timestep`` (t / 1000) or ``sigma``.
        scale: Share of the source's keys and values, one number or one per row; 1 is the paper's.

    Raises:
        ValueError: If an option is out of range; for a batch, if a phrase does not occur.
    """

    name = "masactrl"
    needs_regions = None

    def __init__(
        self,
        *,
        source_prompt: str | Sequence[str | None] | None = None,
        words: Words | Sequence[Words] = None,
        source_words: Words | Sequence[Words] = None,
        threshold: float = 0.1,
        mask_cells: int = 256,
        levels: Sequence[int] | None = (0, 1),
        places: Sequence[str] | None = ("up",),
        start: float = 0.08,
        stop: float = 1.0,
        unit: Unit = "progress",
        scale: PerRow = 1.0,
    ) -> None:
        finite("scale", scale)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1; got {threshold}.")
        self.words, self.source_words = words, source_words
        self.threshold, self.mask_cells, self.scale = threshold, mask_cells, scale
        self.sites = SiteSelector("self", as_tuple(levels), places=as_tuple(places))
        self.window = Window(start, stop, unit)
        idle = scale == 0 if isinstance(scale, int | float) else not any(scale)
        self.source = None if idle else Source(source_prompt)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        if self.source is None:
            return []
        foreground = _Foreground(self, targets)
        answer = _Answer(self, targets, foreground)
        return [foreground, answer] if any(foreground.masked) else [answer]


class _Foreground(WindowEdit):
    """Keeps the words' maps of the pass that is under way; changes nothing."""

    def __init__(self, method: MasaCtrl, targets: Targets) -> None:
        maps = SiteSelector(kind="cross", where=lambda site: site.height * site.width <= method.mask_cells)
        super().__init__(maps, ("probs",), method.window, method.scale, len(targets.regions))
        self.threshold = method.threshold
        prompts = targets.tokenized
        words = per_row_items("words", method.words, len(prompts))
        others = per_row_items("source_words", method.source_words, len(prompts))
        others = [other or own for own, other in zip(words, others, strict=True)]
        self.words = [phrase_positions(own, prompt) for own, prompt in zip(words, prompts, strict=True)]
        self.source_words = [phrase_positions(w, prompt) for w, prompt in zip(others, targets.source_prompts, strict=True)]
        self.masked = [bool(own and source) for own, source in zip(self.words, self.source_words, strict=True)]
        self._context: PassContext | None = None
        self._maps: dict[tuple[int, int], list[Tensor]] = {}

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        if context is not self._context:
            self._context, self._maps = context, {}
        own, source = context.paired("cond", "source")
        rows = [context.rows[position] for position in own]
        found = [
            torch.stack([probs[at].mean(0)[:, list(words[row])].sum(-1) for at, row in zip(positions, rows, strict=True)])
            for positions, words in ((own, self.words), (source, self.source_words))
        ]
        self._maps.setdefault((site.height, site.width), []).append(torch.stack(found))
        return probs

    def at(self, site: Site, context: PassContext) -> tuple[Tensor, Tensor] | None:
        """Foreground of the rows and of their sources, each ``rows query``; ``None`` before any map was seen."""
        if context is not self._context or not self._maps:
            return None
        largest = max(self._maps, key=lambda size: size[0] * size[1])
        maps = min_max(torch.stack(self._maps[largest]).mean(0).unflatten(-1, largest))
        own, source = F.interpolate(maps, (site.height, site.width)).flatten(2) >= self.threshold
        return own, source


class _Answer(WindowEdit):
    """Puts the source's keys and values in place."""

    def __init__(self, method: MasaCtrl, targets: Targets, foreground: _Foreground) -> None:
        stages: tuple[Stage, ...] = ("qkv", "scores") if any(foreground.masked) else ("qkv",)
        super().__init__(method.sites, stages, method.window, method.scale, len(targets.regions))
        self.foreground = foreground

    def qkv(self, query: Tensor, key: Tensor, value: Tensor, site: Site, context: PassContext) -> tuple[Tensor, Tensor, Tensor]:
        share = self.gate(key, context, ("cond", "uncond"))
        return query, _from_source(key, share, context), _from_source(value, share, context)

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        found = self.foreground.at(site, context)
        if found is None:
            return scores
        own, source = found
        visible = own.unsqueeze(2) == source.unsqueeze(1)
        visible = visible | ~visible.any(2, keepdim=True)  # who finds nobody to ask may ask all
        limited = torch.tensor([m and s != 0 for m, s in zip(self.foreground.masked, self.scales, strict=True)])
        visible = (visible | ~limited.to(visible.device).view(-1, 1, 1)).unsqueeze(1)
        edited = scores.clone()
        for half in HALVES:
            positions = context.positions(half)
            rows = [context.rows[position] for position in positions]
            edited[positions] = scores[positions].masked_fill(~visible[rows], torch.finfo(scores.dtype).min)
        return edited


HALVES: tuple[Branch, ...] = ("uncond", "cond")


def _from_source(values: Tensor, share: Tensor, context: PassContext) -> Tensor:
    edited = values.clone()
    pairs: tuple[tuple[Branch, Branch], ...] = (("uncond", "source_uncond"), ("cond", "source"))
    for half, reads in pairs:
        own, source = context.paired(half, reads)
        edited[own] = torch.lerp(values[own], values[source], share[own])
    return edited
