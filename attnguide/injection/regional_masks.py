"""Which positions of an attention call see which others, where every region of a picture has a text of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PictureRule = Literal["own", "background", "free"]
"""What cells see of other cells.

``own``: those that share a region with them, and the background sees itself. ``background``: also the background sees
everything and is seen by everything. ``free``: all.
"""


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts of a batch of rows, one behind the other in the network's text axis.

    Attributes:
        lengths: Positions of each text; the first is the row's prompt.
        cells: Which cells see each text, bool, ``batch texts cells``.
        seen: Which cells each text sees, likewise.
        regions: Cells of each region, bool, ``batch regions cells``; what they leave is the background.
    """

    lengths: tuple[int, ...]
    cells: Tensor
    seen: Tensor
    regions: Tensor

    def of_positions(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The text of each of ``count`` positions, and which positions belong to none (padding behind the last text)."""
        numbers = torch.arange(len(self.lengths), device=device)
        owner = numbers.repeat_interleave(torch.tensor(self.lengths, device=device))[:count]
        padding = torch.zeros(count - len(owner), dtype=owner.dtype, device=device)
        beyond = torch.arange(count, device=device) >= len(owner)
        return torch.cat([owner, padding]), beyond

    def cells_see_text(self, count: int) -> Tensor:
        """``batch cells count``, bool; nothing sees padding."""
        owner, beyond = self.of_positions(count, self.cells.device)
        return self.cells[:, owner].transpose(1, 2) & ~beyond

    def text_sees_cells(self, count: int) -> Tensor:
        """``batch count cells``, bool; padding sees all of them."""
        owner, beyond = self.of_positions(count, self.seen.device)
        return self.seen[:, owner] | beyond[:, None]

    def text_sees_text(self, count: int) -> Tensor:
        """``1 count count``, bool: positions of one text see one another, and so does padding."""
        owner, beyond = self.of_positions(count, self.cells.device)
        return ((owner[:, None] == owner) & (beyond[:, None] == beyond))[None]

    def cells_see_cells(self, rule: PictureRule) -> Tensor:
        """``batch cells cells``, bool."""
        cells = self.regions.shape[-1]
        if rule == "free":
            return torch.ones(1, cells, cells, dtype=torch.bool, device=self.regions.device)
        inside = self.regions.float()
        shared = inside.transpose(1, 2) @ inside > 0
        background = ~self.regions.any(1)
        first, second = background[:, :, None], background[:, None]
        return shared | (first & second if rule == "own" else first | second)


def joint_mask(texts: Texts, queries: int, image: range, text: range, rule: PictureRule) -> Tensor:
    """Mask of a joint attention call, bool, ``batch 1 queries queries``; true where a query may look.

    Args:
        texts: The rows'.
        queries: Positions of the call, text and image.
        image: Those of the cells.
        text: Those of the text. Positions in neither (registers, padding of the image) see everything and are seen by all.
        rule: What cells see of other cells.
    """
    batch = len(texts.cells)
    mask = torch.ones(batch, queries, queries, dtype=torch.bool, device=texts.cells.device)
    rows, columns = slice(image.start, image.stop), slice(text.start, text.stop)
    mask[:, rows, rows] = texts.cells_see_cells(rule)
    mask[:, rows, columns] = texts.cells_see_text(len(text))
    mask[:, columns, rows] = texts.text_sees_cells(len(text))
    mask[:, columns, columns] = texts.text_sees_text(len(text))
    return mask[:, None]
