"""Plug-and-play: self-attention queries and keys, and one feature map, of the source's picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.per_row import EachRow, PerRow
from attnguide.injection.base import Injection, WindowEdit, as_tuple, finite, one_of
from attnguide.injection.source import HALVES, Readers, from_source, source_unless_idle
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window
from attnguide.types import Branch, PassContext, Step
from attnguide.weighted import Prompt

DECODER_BLOCKS = ("up_blocks.1.attentions.[12].*", "up_blocks.[23].*")
"""Blocks 4 to 11 of the twelve of Stable Diffusion's decoder."""

DECODER_FEATURES = ("up_blocks.1.resnets.1.*",)
"""Block 4."""


READERS: Readers = (*HALVES, ("negative", "source_uncond"))
PLUGGED: tuple[Branch, ...] = tuple(reader for reader, _ in READERS)


class PlugAndPlay(Injection):
    """Queries and keys of decoder self-attention, and a residual block's features, become the source's.

    In each CFG half (https://arxiv.org/abs/2211.12572). The source is denoised beside the row from the same noise, as the paper
    does for generated pictures; with the row's own ``cfg_scale``, where the published settings have 5 for the source and 7.5
    for the row. A picture is inverted along the row's own steps; the published code inverts it in 999.

    With a ``negative_alpha`` below 1, or a schedule that lowers it, the unconditional prediction of classifier-free guidance is
    ``a e + (1 - a) n`` instead of ``e``, the prediction under the row's own negative prompt: ``n`` is the prediction under
    ``negative_prompt``, a further branch in every pass, and ``a`` falls from ``negative_alpha`` in the first step to 0
    (``linear``) or ``exp(-6)`` of it (``exponential``) in the last. No effect where ``cfg_scale`` is at most 1.

    Args:
        source_prompt: Source prompt, one for all rows, or one per row; the row's own when ``None``.
        source_image: Path of a picture as source, one for all rows, or one per row: it is inverted under the source prompt, and
            the row starts from its noise. Needs a scheduler with the noise levels of ``ddim``.
        source_iterations: Network evaluations per step of the inversion beyond the first (:mod:`attnguide.engine.inversion`).
        attention_stop: Progress at which the edit of self-attention ends; 0 for no edit.
        feature_stop: Progress at which the edit of features ends; 0 for no edit.
        attention_names: Glob patterns over the module paths of self-attention.
        feature_names: Glob patterns over the module paths of the last convolutions of residual blocks.
        negative_prompt: Text of the prediction ``n``, one for all rows, or one per row; the source prompt when ``None``.
        negative_alpha: Share ``a`` of the row's own negative prompt in the first step, in [0, 1]; the published settings are
            0.75 for generated pictures and 1 for real ones, both with the linear schedule.
        negative_schedule: Schedule of ``a``: ``constant``, ``linear`` or ``exponential``.
        scale: Share of the source's values, one number or one per row; 1 is the paper's. 0 also leaves out ``negative_prompt``.
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
        source_image: str | Sequence[str | None] | None = None,
        source_iterations: int = 0,
        attention_stop: float = 0.5,
        feature_stop: float = 0.8,
        attention_names: Sequence[str] | None = DECODER_BLOCKS,
        feature_names: Sequence[str] | None = DECODER_FEATURES,
        negative_prompt: str | Sequence[str | None] | None = None,
        negative_alpha: float = 1.0,
        negative_schedule: Literal["constant", "linear", "exponential"] = "constant",
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        one_of("quirks", quirks, ("none", "reference"))
        finite("scale", scale)
        one_of("negative_schedule", negative_schedule, _FADING)
        shares = {"attention_stop": attention_stop, "feature_stop": feature_stop, "negative_alpha": negative_alpha}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {value}.")
        self.attention = SiteSelector("self", names=as_tuple(attention_names))
        self.features = SiteSelector("feature", names=as_tuple(feature_names))
        self.attention_stop, self.feature_stop, self.scale, self.quirks = attention_stop, feature_stop, scale, quirks
        self.negative_prompt, self.negative_alpha = negative_prompt, negative_alpha
        self.negative_schedule = negative_schedule
        self.source = source_unless_idle(source_prompt, scale, source_image, source_iterations)

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        if self.source is not None and self.feature_stop > 0 and not any(site.name.startswith("up_blocks") for site in sites):
            raise ValueError(
                f"Method {self.name!r} takes over features of a UNet's decoder (up_blocks), and this network is none; "
                "for self-attention alone set feature_stop=0 and attention_names=null."
            )

    def edits(self, targets: Targets) -> Sequence[Edit]:
        if self.source is None:
            return []
        found: list[Edit] = []
        if self.attention_stop > 0:
            found.append(_Plug(self, targets, self.attention, "qkv", self.attention_stop))
        if self.feature_stop > 0:
            found.append(_Plug(self, targets, self.features, "output", self.feature_stop))
        return found

    def alpha(self, step: Step) -> float:
        """Share ``a`` of the row's own negative prompt in the unconditional prediction at a step."""
        return self.negative_alpha * _FADING[self.negative_schedule](step.overall_index / max(step.overall_count - 1, 1))

    def branches(self, step: Step) -> tuple[Branch, ...]:
        return ("negative",) if self.source is not None and self.alpha(step) < 1 else ()

    def negative_prompts(self, targets: Targets) -> Sequence[Prompt]:
        if self.source is None or (self.negative_alpha == 1 and self.negative_schedule == "constant"):
            return ()
        given = EachRow[str | None](self.negative_prompt, "negative_prompt").over(len(targets.regions))
        return [source.prompt if own is None else own for own, source in zip(given, targets.source_prompts, strict=True)]

    def unconditional(self, uncond: Tensor, answers: Mapping[Branch, Tensor], step: Step) -> Tensor:
        if "negative" not in answers:
            return uncond
        scales = EachRow(self.scale, "scale").over(len(uncond))
        idle = torch.tensor([scale == 0 for scale in scales], device=uncond.device).view(-1, 1, 1, 1)
        return torch.where(idle, uncond, torch.lerp(answers["negative"], uncond, self.alpha(step)))


_FADING: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "exponential": lambda progress: math.exp(-6 * progress),
}
"""Schedule -> factor on the negative prompt's alpha, from the first step at 0 to the last at 1."""


class _Plug(WindowEdit):
    """Replaces queries and keys, or features, by the source's."""

    def __init__(self, method: PlugAndPlay, targets: Targets, sites: SiteSelector, stage: Stage, stop: float) -> None:
        super().__init__(sites, (stage,), Window(), method.scale, len(targets.regions))
        self.stop, self.more = stop, int(method.quirks == "reference")

    def active(self, context: PassContext) -> bool:
        step = context.step
        return super().active(context) and step.overall_index < int(self.stop * step.overall_count + 1e-9) + self.more

    def qkv(self, query: Tensor, key: Tensor, value: Tensor, site: Site, context: PassContext) -> tuple[Tensor, Tensor, Tensor]:
        share = self.gate(query, context, PLUGGED)
        return from_source(query, share, context, READERS), from_source(key, share, context, READERS), value

    def output(self, output: Tensor, site: Site, context: PassContext) -> Tensor:
        return from_source(output, self.gate(output, context, PLUGGED), context, READERS)
