"""Attention masks for regional prompts: cells and texts of a row attend to each other by region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PictureRule = Literal["own", "background", "free"]
"""Which cells a cell attends to.

``own``: cells that share a region with it, and background to background. ``background``: besides, background to all and all to
background. ``free``: all cells.
"""


@dataclass(frozen=True, eq=False)
class Texts:
    """Masks between cells and the texts of a batch of rows, which are concatenated along the network's text axis.

    Attributes:
        lengths: Number of positions of each text; the first is the row's prompt.
        cells: Cells that attend to each text, bool, ``batch texts cells``.
        seen: Cells that each text attends to, bool, ``batch texts cells``.
        regions: Cells of each region, bool, ``batch regions cells``; all other cells are background.
    """

    lengths: tuple[int, ...]
    cells: Tensor
    seen: Tensor
    regions: Tensor

    def of_positions(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Index of the text of each of ``count`` positions, and mask of padding behind the last text."""
        numbers = torch.arange(len(self.lengths), device=device)
        owner = numbers.repeat_interleave(torch.tensor(self.lengths, device=device))[:count]
        padding = torch.zeros(count - len(owner), dtype=owner.dtype, device=device)
        beyond = torch.arange(count, device=device) >= len(owner)
        return torch.cat([owner, padding]), beyond

    def cells_see_text(self, count: int) -> Tensor:
        """Mask from cells to text, bool, ``batch cells count``; no cell attends to padding."""
        owner, beyond = self.of_positions(count, self.cells.device)
        return self.cells[:, owner].transpose(1, 2) & ~beyond

    def text_sees_cells(self, count: int) -> Tensor:
        """Mask from text to cells, bool, ``batch count cells``; padding attends to all cells."""
        owner, beyond = self.of_positions(count, self.seen.device)
        return self.seen[:, owner] | beyond[:, None]

    def text_sees_text(self, count: int) -> Tensor:
        """Mask from text to text, bool, ``1 count count``: positions attend within their text, padding to padding."""
        owner, beyond = self.of_positions(count, self.cells.device)
        return ((owner[:, None] == owner) & (beyond[:, None] == beyond))[None]

    def cells_see_cells(self, rule: PictureRule) -> Tensor:
        """Mask from cells to cells, bool, ``batch cells cells``."""
        cells = self.regions.shape[-1]
        if rule == "free":
            return torch.ones(1, cells, cells, dtype=torch.bool, device=self.regions.device)
        inside = self.regions.float()
        shared = inside.transpose(1, 2) @ inside > 0
        background = ~self.regions.any(1)
        first, second = background[:, :, None], background[:, None]
        return shared | (first & second if rule == "own" else first | second)


def joint_mask(texts: Texts, queries: int, image: range, text: range, rule: PictureRule) -> Tensor:
    """Mask of a joint attention call, bool, ``batch 1 queries queries``; True where a query may attend.

    Args:
        texts: Masks of the rows' texts.
        queries: Number of positions of the call, text and image.
        image: Positions of the cells.
        text: Positions of the text. Positions in neither (registers, image padding) attend to all and all attend to them.
        rule: Rule between cells.
    """
    batch = len(texts.cells)
    mask = torch.ones(batch, queries, queries, dtype=torch.bool, device=texts.cells.device)
    rows, columns = slice(image.start, image.stop), slice(text.start, text.stop)
    mask[:, rows, rows] = texts.cells_see_cells(rule)
    mask[:, rows, columns] = texts.cells_see_text(len(text))
    mask[:, columns, rows] = texts.text_sees_cells(len(text))
    mask[:, columns, columns] = texts.text_sees_text(len(text))
    return mask[:, None]
