"""Plug-and-play: self-attention scores and one feature map of the source's picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.update import PerRow
from attnguide.injection.base import Injection, Source, WindowEdit, as_tuple, finite, one_of
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window
from attnguide.types import Branch, PassContext

DECODER_BLOCKS = ("up_blocks.1.attentions.[12].*", "up_blocks.[23].*")
"""Blocks 4 to 11 of the twelve of Stable Diffusion's decoder."""

DECODER_FEATURES = ("up_blocks.1.resnets.1.*",)
"""Block 4."""


class PlugAndPlay(Injection):
    """Queries and keys of decoder self-attention, and a residual block's features, become the source's.

    Half by half (https://arxiv.org/abs/2211.12572). The source is denoised beside the row from the same noise, as the paper
    does for generated pictures; its inversion of real pictures and its negative prompt of fading strength are not part of this.

    Args:
        source_prompt: One for all rows, or one per row; the row's own when ``None``.
        attention_stop: Progress at which self-attention is left alone again; nothing is done to it at 0.
        feature_stop: The same for features.
        attention_names: Glob patterns over the module paths of self-attention.
        feature_names: Glob patterns over those of the last convolutions of residual blocks.
        scale: Share of the source's, one number or one per row; 1 is the paper's.
        quirks: ``reference`` goes on for one step more: its "first half" of 50 steps is 26.

    Raises:
        ValueError: If an option is out of range.
    """

    name = "plug_and_play"
    needs_regions = None

    def __init__(
        self,
        *,
        source_prompt: str | Sequence[str | None] | None = None,
        attention_stop: float = 0.5,
        feature_stop: float = 0.8,
        attention_names: Sequence[str] | None = DECODER_BLOCKS,
        feature_names: Sequence[str] | None = DECODER_FEATURES,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        one_of("quirks", quirks, ("none", "reference"))
        finite("scale", scale)
        for name, value in (("attention_stop", attention_stop), ("feature_stop", feature_stop)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {value}.")
        self.attention = SiteSelector("self", names=as_tuple(attention_names))
        self.features = SiteSelector("feature", names=as_tuple(feature_names))
        self.attention_stop, self.feature_stop, self.scale, self.quirks = attention_stop, feature_stop, scale, quirks
        idle = scale == 0 if isinstance(scale, int | float) else not any(scale)
        self.source = None if idle else Source(source_prompt)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        if self.source is None:
            return []
        found: list[Edit] = []
        if self.attention_stop > 0:
            found.append(_Plug(self, targets, self.attention, "qkv", self.attention_stop))
        if self.feature_stop > 0:
            found.append(_Plug(self, targets, self.features, "output", self.feature_stop))
        return found


class _Plug(WindowEdit):
    """Takes over the source's queries and keys, or its features."""

    def __init__(self, method: PlugAndPlay, targets: Targets, sites: SiteSelector, stage: Stage, stop: float) -> None:
        super().__init__(sites, (stage,), Window(), method.scale, len(targets.regions))
        self.stop, self.more = stop, int(method.quirks == "reference")

    def active(self, context: PassContext) -> bool:
        step = context.step
        return super().active(context) and step.index < int(self.stop * step.count + 1e-9) + self.more

    def qkv(self, query: Tensor, key: Tensor, value: Tensor, site: Site, context: PassContext) -> tuple[Tensor, Tensor, Tensor]:
        return self._plugged(query, context), self._plugged(key, context), value

    def output(self, output: Tensor, site: Site, context: PassContext) -> Tensor:
        return self._plugged(output, context)

    def _plugged(self, values: Tensor, context: PassContext) -> Tensor:
        share = self.gate(values, context, ("cond", "uncond"))
        edited = values.clone()
        for half, reads in HALVES:
            own, source = context.paired(half, reads)
            edited[own] = torch.lerp(values[own], values[source], share[own])
        return edited


HALVES: tuple[tuple[Branch, Branch], ...] = (("uncond", "source_uncond"), ("cond", "source"))
