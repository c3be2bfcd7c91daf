"""Edit that replaces a row's cross-attention by a source prompt's, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.update import PerRow
from attnguide.injection.base import WindowEdit
from attnguide.prompt.named import named_positions
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.schedules import Window
from attnguide.types import PassContext, Step

Span = tuple[float, float]
"""Start and stop of a token's progress window."""


class AlignedCrossAttention(WindowEdit):
    """``P_j`` becomes ``c_j (sum_i P_src,i M_ij + P_j k_j)`` within token j's window (https://arxiv.org/abs/2208.01626).

    ``k_j`` is 1 for tokens without a source in ``M``, if ``keeps``, and else 0.

    Args:
        scale: Share of the edit, one number or one per row.
        matrix: Alignment ``M``, ``batch source_token token``.
        factors: Factors ``c``, ``batch token``.
        spans: Window of each token, per row.
        covers: Whether a progress window includes a step.
        keeps: Whether tokens without a source keep their own probs.
    """

    def __init__(
        self,
        scale: PerRow,
        matrix: Tensor,
        factors: Tensor,
        spans: Sequence[Sequence[Span]],
        covers: Callable[[Step, float, float], bool],
        keeps: bool,
    ) -> None:
        super().__init__(SiteSelector(kind="cross"), ("probs",), Window(), scale, len(matrix))
        self.matrix, self.factors, self.spans, self.covers, self.keeps = matrix, factors, spans, covers, keeps

    def active(self, context: PassContext) -> bool:
        step = context.step
        return super().active(context) and any(self.covers(step, *span) for spans in self.spans for span in spans)

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        own, source = context.paired("cond", "source")
        if not own:
            return probs
        rows = [context.rows[position] for position in own]
        matrix, factors = self.matrix[rows].to(probs).unsqueeze(1), self.factors[rows].to(probs)[:, None, None]
        unaligned = (matrix.abs().sum(2, keepdim=True) == 0).to(probs) * self.keeps
        goal = factors * (probs[source] @ matrix + probs[own] * unaligned)
        now = [[float(self.covers(context.step, *span)) for span in self.spans[row]] for row in rows]
        share = self.gate(probs, context)[own] * torch.tensor(now).to(probs)[:, None, None]
        edited = probs.clone()
        edited[own] = torch.lerp(probs[own], goal, share)
        return edited


def token_spans(given: Mapping[str, Sequence[float]] | None, otherwise: Span, prompt: TokenizedPrompt) -> list[Span]:
    """Window of every token of a prompt: the one given for its phrase, else ``otherwise``.

    Args:
        given: Phrase of the prompt -> window; ``phrase[1]`` means the second occurrence alone.
        otherwise: Window of tokens outside all phrases.
        prompt: The tokenized prompt.

    Raises:
        ValueError: If a phrase does not occur in the prompt.
    """
    spans = [otherwise] * len(prompt.ids)
    for phrase, (start, stop) in (given or {}).items():
        for position in named_positions(prompt, phrase):
            spans[position] = (float(start), float(stop))
    return spans
