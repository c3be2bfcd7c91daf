"""Prompt-to-prompt: cross-attention of a source prompt's picture replaces the row's own, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.per_row import EachRow, PerRow
from attnguide.injection.aligned_attention import AlignedCrossAttention, token_spans
from attnguide.injection.base import (
    Factors,
    Injection,
    WindowEdit,
    finite,
    one_of,
    token_factors,
)
from attnguide.injection.local_blend import LocalBlend
from attnguide.injection.source import CONDITIONAL, Words, from_source, source_unless_idle
from attnguide.prompt.alignment import refinement_matrix, replacement_matrix
from attnguide.prompt.targets import Targets
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.schedules import Window
from attnguide.types import PassContext, Step

Spans = Mapping[str, Sequence[float]] | None


class PromptToPrompt(Injection):
    """Writes the source prompt's cross-attention probs into the row's own, and its self-attention on small maps.

    The source is denoised beside the row from the same noise (https://arxiv.org/abs/2208.01626). In the conditional half and
    within the window, ``P_j`` becomes ``c_j (sum_i P_src,i M_ij + P_j k_j)``: ``M`` aligns the tokens of the two prompts
    (:mod:`attnguide.prompt.alignment`), ``k`` is 1 for tokens without a source, ``c`` the factor of a reweighted word. Probs
    are not renormalised. The same prompt twice with factors is the paper's reweighting. A phrase of the prompt means every
    occurrence; ``phrase[1]`` is its second occurrence alone.

    Args:
        source_prompt: Source prompt, one for all rows, or one per row; the row's own when ``None``.
        source_image: Path of a picture as source, one for all rows, or one per row: it is inverted under the source prompt, and
            the row starts from its noise. Needs a scheduler with the noise levels of ``ddim``.
        source_iterations: Network evaluations per step of the inversion beyond the first (:mod:`attnguide.engine.inversion`).
        edit: Alignment of the prompts: ``replace`` swaps words one for one; ``refine`` keeps the words both prompts have.
        reweight: Phrase of the prompt -> factor, which may be negative; one mapping, or one per row.
        cross_stop: Progress at which the edit of cross-attention ends.
        self_stop: Progress at which the edit of self-attention ends.
        cross_start: Progress from which cross-attention is edited: all tokens have the window ``(cross_start, cross_stop)``.
        self_start: Progress from which self-attention is edited.
        word_windows: Phrase of the prompt -> ``(start, stop)`` in progress, instead of the window of all tokens; one mapping,
            or one per row.
        self_cells: Number of cells of the largest self-attention maps that are replaced.
        blend: Comma-separated phrases of the prompt: outside of the attention of these and of ``blend_source``, latents become
            the source's (the paper's local blend); one text, or one per row.
        blend_source: Comma-separated phrases of the source prompt for ``blend``, one text, or one per row; ``blend`` when
            ``None``.
        blend_threshold: Share of the map's peak above which a cell belongs to the words.
        blend_start: Progress at which blending begins.
        scale: Share of the edit, one number or one per row; 1 is the paper's.
        quirks: ``reference`` aligns tokens after the last swapped word, and padding, by position, counts windows on a schedule
            of one more step, sets probs of padding without a counterpart to 0, and blends by maps after the edit instead of
            before it.

    Raises:
        ValueError: If an option is out of range; for a batch, if the prompts cannot be aligned or a phrase does not occur.
    """

    name = "prompt_to_prompt"
    needs_regions = None

    def __init__(
        self,
        *,
        source_prompt: str | Sequence[str | None] | None = None,
        source_image: str | Sequence[str | None] | None = None,
        source_iterations: int = 0,
        edit: Literal["replace", "refine"] = "replace",
        reweight: Factors | Sequence[Factors] = None,
        cross_stop: float = 0.8,
        self_stop: float = 0.4,
        cross_start: float = 0.0,
        self_start: float = 0.0,
        word_windows: Spans | Sequence[Spans] = None,
        self_cells: int = 256,
        blend: Words | Sequence[Words] = None,
        blend_source: Words | Sequence[Words] = None,
        blend_threshold: float = 0.3,
        blend_start: float = 0.0,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        one_of("edit", edit, ("replace", "refine"))
        one_of("quirks", quirks, ("none", "reference"))
        finite("scale", scale)
        if not 0 <= blend_start <= 1:
            raise ValueError(f"blend_start must lie in [0, 1]; got {blend_start}.")
        self.cross_window = _window("cross_start and cross_stop", (cross_start, cross_stop))
        self.self_window = _window("self_start and self_stop", (self_start, self_stop))
        for mapping in [word_windows] if isinstance(word_windows, Mapping) else word_windows or ():
            for phrase, window in (mapping or {}).items():
                _window(f"window of {phrase!r}", window)
        self.edit, self.reweight, self.word_windows, self.quirks, self.scale = edit, reweight, word_windows, quirks, scale
        self.self_cells, self.blend, self.blend_source = self_cells, blend, blend_source
        self.blend_threshold, self.blend_start = blend_threshold, blend_start
        self.source = source_unless_idle(source_prompt, scale, source_image, source_iterations)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        if self.source is None:
            return []
        blend = LocalBlend(
            targets,
            self.scale,
            words=self.blend,
            source_words=self.blend_source,
            threshold=self.blend_threshold,
            start=self.blend_start,
            cells=self.self_cells,
        )
        edits: list[Edit] = [self._cross_attention(targets)]
        if blend.blends:  # the first edit sees the maps before the others' edits
            edits.insert(1 if self.quirks == "reference" else 0, blend)
        return [*edits, _SelfAttention(self, targets)] if self.self_window[0] < self.self_window[1] else edits

    def _cross_attention(self, targets: Targets) -> AlignedCrossAttention:
        pairs = list(zip(targets.source_prompts, targets.tokenized, strict=True))
        reweight = EachRow(self.reweight, "reweight").over(len(pairs))
        windows = EachRow(self.word_windows, "word_windows").over(len(pairs))
        return AlignedCrossAttention(
            self.scale,
            torch.stack([_alignment(self, *pair) for pair in pairs]).to(targets.device),
            torch.stack([token_factors(given, new) for given, (_, new) in zip(reweight, pairs, strict=True)]),
            [token_spans(given, self.cross_window, new) for given, (_, new) in zip(windows, pairs, strict=True)],
            self.covers,
            keeps=not (self.edit == "replace" and self.quirks == "reference"),
        )

    def covers(self, step: Step, start: float, stop: float) -> bool:
        """Whether a word's progress window includes a step."""
        rows = step.overall_count + 1 if self.quirks == "reference" else step.overall_count
        return _within(step.overall_index, rows, start, stop)


def _window(name: str, given: Sequence[float]) -> tuple[float, float]:
    """A progress window from an option, checked.

    Raises:
        ValueError: If it is not two numbers in order within [0, 1].
    """
    numbers = [number for number in given if isinstance(number, int | float)] if isinstance(given, list | tuple) else []
    if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= 1:
        raise ValueError(f"{name} must be start <= stop, both in [0, 1]; got {given!r}.")
    return float(numbers[0]), float(numbers[1])


def _within(index: int, count: int, start: float, stop: float) -> bool:
    # 1e-9 undoes the rounding of products such as 0.29 * 100.
    return int(start * count + 1e-9) <= index < int(stop * count + 1e-9)


class _SelfAttention(WindowEdit):
    """Replaces self-attention probs by the source's on small maps."""

    def __init__(self, method: PromptToPrompt, targets: Targets) -> None:
        small = SiteSelector(kind="self", where=lambda site: site.height * site.width <= method.self_cells)
        super().__init__(small, ("probs",), Window(), method.scale, len(targets.regions))
        self.span = method.self_window

    def active(self, context: PassContext) -> bool:
        return super().active(context) and _within(context.step.overall_index, context.step.overall_count, *self.span)

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        return from_source(probs, self.gate(probs, context), context, CONDITIONAL)


def _alignment(method: PromptToPrompt, source: TokenizedPrompt, target: TokenizedPrompt) -> Tensor:
    by_position = method.quirks == "reference"
    if method.edit == "replace":
        return replacement_matrix(source, target, misaligned_tail=by_position)
    return refinement_matrix(source, target, padding_by_position=by_position)
