"""Foreground masks of a row and of its source (MasaCtrl)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.maps import min_max
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.per_row import EachRow, PerRow
from attnguide.injection.base import WindowEdit
from attnguide.injection.source import Words, word_attention, word_positions
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window
from attnguide.types import PassContext


class Foreground(WindowEdit):
    """Foreground masks from words' maps in the current pass, or from places; changes no attention.

    Args:
        targets: All rows.
        window: The part of the schedule in which maps are recorded.
        scale: Strength, one number or one per row; 0 for rows without a mask.
        words: Comma-separated phrases of the prompt; one text, or one per row.
        source_words: Comma-separated phrases of the source prompt, one text, or one per row; ``words`` when ``None``.
        drawn: Use the regions' places instead of ``words``, also for the source where ``source_words`` is ``None``.
        threshold: A cell is foreground where the words' map, averaged over heads and the largest sites seen so far in the pass
            and stretched to [0, 1], is at least this.
        cells: Number of cells of the largest maps that are read.

    Attributes:
        words: Token positions of each row's words, and of each source's.
        masked: Whether each row has a foreground, also in its source.
        reads_words: Whether any maps are needed.

    Raises:
        ValueError: If a phrase does not occur, or there is neither one text nor one per row.
    """

    across_halves = True  # both halves are masked by maps of the conditional one

    def __init__(
        self,
        targets: Targets,
        window: Window,
        scale: PerRow,
        *,
        words: Words | Sequence[Words],
        source_words: Words | Sequence[Words],
        drawn: bool,
        threshold: float,
        cells: int,
    ) -> None:
        maps = SiteSelector(kind="cross", where=lambda site: site.height * site.width <= cells)
        super().__init__(maps, ("probs",), window, scale, len(targets.regions))
        self.threshold, self.targets, self.drawn = threshold, targets, drawn
        rows = len(targets.tokenized)
        own = EachRow[str | None](words, "words").over(rows)
        self.words = word_positions(targets, [None] * rows if drawn else own, source_words)
        placed = targets.placed.any(1).tolist() if drawn else [False] * rows
        self.masked = [at or bool(own and source) for at, own, source in zip(placed, *self.words, strict=True)]
        self.reads_words = any(self.masked) and any(map(any, self.words))
        self._context: PassContext | None = None
        self._maps: dict[tuple[int, int], list[Tensor]] = {}

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        if context is not self._context:
            self._context, self._maps = context, {}
        self._maps.setdefault((site.height, site.width), []).append(word_attention(probs, self.words, context))
        return probs

    def visible(self, site: Site, context: PassContext) -> Tensor | None:
        """Mask of the source's cells that each cell may attend to, bool, ``rows query key``; ``None`` before the first map."""
        if not any(self.masked):
            return None
        found, known = self._attended(site, context), torch.tensor(self.masked)
        if self.drawn:
            places = self.targets.binary_masks(site.height, site.width).any(1).flatten(1)
            by_words = torch.tensor([bool(words) for words in self.words[1]])
            known = known & ~by_words if found is None else known
            own, source = places, places
            if found is not None:
                source = torch.where(by_words[:, None].to(places.device), found[1].to(places.device), places)
        elif found is None:
            return None
        else:
            own, source = found
        return (own.unsqueeze(2) == source.unsqueeze(1)) | ~known.to(own.device).view(-1, 1, 1)

    def _attended(self, site: Site, context: PassContext) -> tuple[Tensor, Tensor] | None:
        """Foreground masks by words' maps, of the rows and of their sources, each ``rows query``; ``None`` without maps."""
        if context is not self._context or not self._maps:
            return None
        largest = max(self._maps, key=lambda size: size[0] * size[1])
        maps = min_max(torch.stack(self._maps[largest]).mean(0).unflatten(-1, largest))
        own, source = F.interpolate(maps, (site.height, site.width)).flatten(2) >= self.threshold
        return own, source
