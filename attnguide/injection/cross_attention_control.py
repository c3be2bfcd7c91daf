"""Cross-attention control: prompt-to-prompt on the row's own latents, with weights on tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.per_row import EachRow, PerRow
from attnguide.injection.base import Factors, Injection, Source, WindowEdit, finite, token_factors
from attnguide.prompt.alignment import equal_spans
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window
from attnguide.types import Branch, PassContext, Step


class CrossAttentionControl(Injection):
    """Replaces attention of the conditional half by that of a source prompt on the same latents.

    The variant of https://github.com/bloc97/CrossAttentionControl, from which the notes' ``prompt_edit_tokens_start`` comes:
    in every step of the windows a further branch reads the source prompt. Tokens that both prompts share, or that were replaced
    by equally many, take its cross-attention probs; self-attention is replaced as a whole, on maps of every size. Then ``P_j``
    is multiplied by the factor of token ``j``, in all steps, without renormalising.

    Windows are in ``t / 1000``, 1 at pure noise: 0.8 to 1 is the noisiest fifth.

    Args:
        source_prompt: Source prompt, one for all rows, or one per row; the row's own when ``None``.
        tokens_start: First bound of the window of cross-attention.
        tokens_stop: Second bound of the window of cross-attention.
        spatial_start: First bound of the window of self-attention; the reference's examples use 0.5 to 1.
        spatial_stop: Second bound of the window of self-attention.
        weights: Phrase of the prompt -> factor, which may be negative (the examples go to -8); one mapping, or one per row.
        scale: Share of the edit, one number or one per row; 1 is the reference's.

    Raises:
        ValueError: If an option is out of range; for a batch, if a phrase does not occur.
    """

    name = "cross_attention_control"
    needs_regions = None

    def __init__(
        self,
        *,
        source_prompt: str | Sequence[str | None] | None = None,
        tokens_start: float = 0.0,
        tokens_stop: float = 1.0,
        spatial_start: float = 0.0,
        spatial_stop: float = 1.0,
        weights: Factors | Sequence[Factors] = None,
        scale: PerRow = 1.0,
    ) -> None:
        finite("scale", scale)
        self.weights, self.scale = weights, scale
        self.windows = {
            "cross": Window(tokens_start, tokens_stop, "timestep"),
            "self": Window(spatial_start, spatial_stop, "timestep"),
        }
        self.source = Source(source_prompt, "shared")
        self._idle = not any(EachRow(scale, "scale").values)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [_Swap(self, targets), _Weights(self, targets)]

    def branches(self, step: Step) -> tuple[Branch, ...]:
        wanted = not self._idle and any(window.active(step) for window in self.windows.values())
        return ("source",) if wanted else ()


class _Swap(WindowEdit):
    """Replaces probs by the source's."""

    def __init__(self, method: CrossAttentionControl, targets: Targets) -> None:
        chosen = SiteSelector(where=lambda site: site.kind in method.windows)
        super().__init__(chosen, ("probs",), Window(), method.scale, len(targets.regions))
        self.windows = method.windows
        length = len(targets.tokenized[0].ids)
        self.indices = torch.zeros(len(targets.tokenized), length, dtype=torch.long)
        self.shared = torch.zeros(len(targets.tokenized), length)
        for row, (source, prompt) in enumerate(zip(targets.source_prompts, targets.tokenized, strict=True)):
            for room in prompt.rooms():
                for place, other in equal_spans(source.ids[room.start : room.stop], prompt.ids[room.start : room.stop]).items():
                    self.indices[row, room.start + place], self.shared[row, room.start + place] = room.start + other, 1.0

    def active(self, context: PassContext) -> bool:
        return super().active(context) and bool(context.positions("source"))

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        if not self.windows[site.kind].active(context.step):
            return probs
        own, source = context.paired("cond", "source")
        if not own:
            return probs
        rows = [context.rows[position] for position in own]
        share, read = self.gate(probs, context)[own], probs[source]
        if site.kind == "cross":
            read = read.gather(-1, self.indices[rows].to(read.device)[:, None, None].expand_as(read))
            share = share * self.shared[rows].to(read)[:, None, None]
        edited = probs.clone()
        edited[own] = torch.lerp(probs[own], read, share)
        return edited


class _Weights(WindowEdit):
    """Multiplies tokens' probs by their factors."""

    def __init__(self, method: CrossAttentionControl, targets: Targets) -> None:
        super().__init__(SiteSelector(kind="cross"), ("probs",), Window(), method.scale, len(targets.regions))
        weights = EachRow(method.weights, "weights").over(len(targets.tokenized))
        pairs = zip(weights, targets.tokenized, strict=True)
        self.factors = torch.stack([token_factors(given, prompt) for given, prompt in pairs])

    def active(self, context: PassContext) -> bool:
        return super().active(context) and bool((self.factors != 1).any())

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        factors = self.factors[list(context.rows)].to(probs)[:, None, None]
        return probs * (1 + self.gate(probs, context) * (factors - 1))
