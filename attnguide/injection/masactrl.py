"""MasaCtrl: self-attention with the row's own queries and the source's keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.update import PerRow
from attnguide.injection.base import Injection, WindowEdit, as_tuple, finite, one_of
from attnguide.injection.foreground import Foreground
from attnguide.injection.source import HALVES, Words, from_source, source_unless_idle
from attnguide.prompt.targets import Targets
from attnguide.schedules import Unit, Window
from attnguide.types import PassContext


class MasaCtrl(Injection):
    """Keys and values of self-attention become those of the source, in both CFG halves (https://arxiv.org/abs/2304.08465).

    The source is denoised beside the row from the same noise. With ``union``, the row's own keys and values stay beside the
    source's, and one softmax runs over both.

    With a foreground, foreground cells attend to the source's foreground, and background to background. With ``words``, a cell
    is foreground if the words' cross-attention so far in this pass, averaged over heads and over the largest maps of at most
    ``mask_cells`` cells and stretched to [0, 1], is at least ``threshold``. With ``regions``, the row's foreground is the union
    of its regions' places, and so is the source's without ``source_words``.

    Args:
        source_prompt: Source prompt, one for all rows, or one per row; the row's own when ``None``.
        source_image: Path of a picture as source, one for all rows, or one per row: it is inverted under the source prompt, and
            the row starts from its noise. Needs a scheduler with the noise levels of ``ddim``.
        source_iterations: Network evaluations per step of the inversion beyond the first (:mod:`attnguide.engine.inversion`).
        union: Attend to the row's own keys and values beside the source's, in one softmax.
        foreground: How foreground is found: ``words`` or ``regions``; rows without any have no foreground.
        words: Comma-separated phrases of the prompt that are foreground; one text, or one per row.
        source_words: Comma-separated phrases of the source prompt that are foreground, one text, or one per row; ``words`` when
            ``None``.
        threshold: Smallest value of the words' map, in [0, 1], of a foreground cell.
        mask_cells: Number of cells of the largest maps from which foreground is found.
        levels: Map levels whose self-attention reads the source; the reference's last six of sixteen blocks are the decoder's
            two largest.
        places: ``down``, ``mid``, ``up``; all when ``None``.
        start: First bound of the window, in ``unit``; the reference's step 4 of 50.
        stop: Second bound of the window, in ``unit``.
        unit: ``progress``, ``timestep`` (t / 1000) or ``sigma``.
        scale: Share of the source's keys and values (with ``union``, of the output over both), one number or one per row; 1 is
            the paper's.

    Raises:
        ValueError: If an option is out of range; for a batch, if a phrase does not occur.
    """

    name = "masactrl"
    needs_regions = None

    def __init__(
        self,
        *,
        source_prompt: str | Sequence[str | None] | None = None,
        source_image: str | Sequence[str | None] | None = None,
        source_iterations: int = 0,
        union: bool = False,
        foreground: Literal["words", "regions"] = "words",
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
        one_of("foreground", foreground, ("words", "regions"))
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1; got {threshold}.")
        self.union, self.foreground, self.words, self.source_words = union, foreground, words, source_words
        self.threshold, self.mask_cells, self.scale = threshold, mask_cells, scale
        self.sites = SiteSelector("self", as_tuple(levels), places=as_tuple(places))
        self.window = Window(start, stop, unit)
        self.source = source_unless_idle(source_prompt, scale, source_image, source_iterations)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        if self.source is None:
            return []
        foreground = Foreground(
            targets,
            self.window,
            self.scale,
            words=self.words,
            source_words=self.source_words,
            drawn=self.foreground == "regions",
            threshold=self.threshold,
            cells=self.mask_cells,
        )
        answer = (_Union if self.union else _Answer)(self, targets, foreground)
        return [foreground, answer] if foreground.reads_words else [answer]


class _Answer(WindowEdit):
    """Replaces keys and values by the source's."""

    def __init__(self, method: MasaCtrl, targets: Targets, foreground: Foreground) -> None:
        stages: tuple[Stage, ...] = ("qkv", "scores") if any(foreground.masked) else ("qkv",)
        super().__init__(method.sites, stages, method.window, method.scale, len(targets.regions))
        self.foreground = foreground

    def qkv(self, query: Tensor, key: Tensor, value: Tensor, site: Site, context: PassContext) -> tuple[Tensor, Tensor, Tensor]:
        share = self.gate(key, context, ("cond", "uncond"))
        return query, from_source(key, share, context), from_source(value, share, context)

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        visible = self.foreground.visible(site, context)
        if visible is None:
            return scores
        visible = visible | ~visible.any(2, keepdim=True)  # a query without any key attends to all
        idle = torch.tensor([scale == 0 for scale in self.scales], device=visible.device)
        visible = (visible | idle.view(-1, 1, 1)).unsqueeze(1)
        edited = scores.clone()
        for half, _ in HALVES:
            positions = context.positions(half)
            rows = [context.rows[position] for position in positions]
            edited[positions] = scores[positions].masked_fill(~visible[rows], torch.finfo(scores.dtype).min)
        return edited


class _Union(WindowEdit):
    """Attends to the source's keys and values beside the row's own; recorded probs stay the row's own."""

    def __init__(self, method: MasaCtrl, targets: Targets, foreground: Foreground) -> None:
        super().__init__(method.sites, ("qkv", "output"), method.window, method.scale, len(targets.regions))
        self.foreground = foreground
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None

    def qkv(self, query: Tensor, key: Tensor, value: Tensor, site: Site, context: PassContext) -> tuple[Tensor, Tensor, Tensor]:
        self._seen = query, key, value
        return query, key, value

    def output(self, output: Tensor, site: Site, context: PassContext) -> Tensor:
        assert self._seen is not None  # of the same site: its output follows its inputs
        (query, key, value), self._seen = self._seen, None
        share, visible = self.gate(output, context, ("cond", "uncond")), self.foreground.visible(site, context)
        edited = output.clone()
        for half, read in HALVES:
            own, source = context.paired(half, read)
            keys, values = (torch.cat([of[own], of[source]], dim=2) for of in (key, value))
            mask = None
            if visible is not None:
                theirs = visible[[context.rows[position] for position in own]].unsqueeze(1).to(query.device)
                mask = torch.cat([torch.ones_like(theirs), theirs], dim=3)
            both = F.scaled_dot_product_attention(query[own], keys, values, mask)
            edited[own] = torch.where(share[own] != 0, torch.lerp(output[own], both, share[own]), output[own])
        return edited
