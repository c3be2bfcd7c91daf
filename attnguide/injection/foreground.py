"""Which cells of a row, and of the source it reads, are foreground."""

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
    """Which cells belong to the foreground, by words' maps of the pass that is under way or by places; changes nothing.

    Args:
        targets: All rows.
        window: When maps are kept.
        scale: 0 for rows that need none.
        words: Phrases of the prompt, separated by commas; one text, or one per row.
        source_words: Phrases of the source prompt, likewise; ``words`` when ``None``.
        drawn: Take the regions' places instead of ``words``, and of ``source_words`` where there are none.
        threshold: A cell is foreground where the words' map, averaged over heads and the largest sites seen so far and
            stretched to [0, 1], reaches this.
        cells: Largest maps that are read, in cells.

    Attributes:
        words: Positions of each row's words, and of each source's.
        masked: Which rows have a foreground on both sides.
        reads_words: Whether it needs any maps.

    Raises:
        ValueError: If a phrase does not occur, or there is neither one text nor one per row.
    """

    across_halves = True  # both are masked by maps of the conditional one

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
        """Which of the source's cells every row may ask, bool, ``rows query key``; ``None`` while nothing is known."""
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
        """Foreground by the words' maps of the rows and of their sources, each ``rows query``."""
        if context is not self._context or not self._maps:
            return None
        largest = max(self._maps, key=lambda size: size[0] * size[1])
        maps = min_max(torch.stack(self._maps[largest]).mean(0).unflatten(-1, largest))
        own, source = F.interpolate(maps, (site.height, site.width)).flatten(2) >= self.threshold
        return own, source
