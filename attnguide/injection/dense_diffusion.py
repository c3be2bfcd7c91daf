"""DenseDiffusion: scores are raised towards each query's maximum inside a segment, lowered towards its minimum outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.update import PerRow
from attnguide.injection.base import Injection, WindowEdit, finite, one_of
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.models.texts import encode_prompts, read_prompt
from attnguide.prompt.drawing import sampled_mask
from attnguide.prompt.targets import Targets
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.schedules import Unit, Window
from attnguide.types import PassContext
from attnguide.weighted import Prompt


class DenseDiffusion(Injection):
    """Modulates cross- and self-attention by segments, conditional half only (https://arxiv.org/abs/2308.12964).

    Per head and query, with the largest and smallest scaled score ``max`` and ``min``: ``S + g (max - S)`` where query and key
    belong together and ``S - g (S - min)`` where they do not; ``g = w (t / 1000)^5 (1 - a)`` with ``a`` the share of the
    picture that the query's segment covers. A query and a token belong together if the query lies in a segment of the token;
    two queries, if one segment holds both. A region's weight is a factor on ``g`` where it joins query and key; elsewhere the
    factor is the geometric mean of the weights on either side, with 1 where no region is. Regions of weight 0 are ignored.

    Args:
        cross_scale: ``w`` in cross-attention.
        self_scale: ``w`` in self-attention.
        size_scale: Factor on ``a``.
        splice: Put each phrase's separately encoded states at its tokens' positions, as the paper's code always does.
        scale: Factor on ``w``, one number or one per row.
        start: First bound of the window, in ``unit``.
        stop: Second bound of the window, in ``unit``.
        unit: ``progress``, ``timestep`` (t / 1000) or ``sigma``.
        quirks: ``reference`` lowers the scores of start, end and padding tokens as well, which removes the attention sink,
            does not limit ``g`` to 1, so that scores may pass their maximum and minimum, and downsamples masks from latent size
            by taking every n-th cell, which loses small regions.

    Raises:
        ValueError: If an option is out of range; for a batch, with ``splice``, if a phrase alone has other tokens than in the
            prompt.
    """

    name = "dense_diffusion"
    needs_regions = "place"

    def __init__(
        self,
        *,
        cross_scale: float = 1.0,
        self_scale: float = 0.3,
        size_scale: float = 1.0,
        splice: bool = True,
        scale: PerRow = 1.0,
        start: float = 0.0,
        stop: float = 0.3,
        unit: Unit = "progress",
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        one_of("quirks", quirks, ("none", "reference"))
        for name, value in (("cross_scale", cross_scale), ("self_scale", self_scale), ("size_scale", size_scale)):
            finite(name, value)
        finite("scale", scale)
        self.weights = {"cross": cross_scale, "self": self_scale}
        self.size_scale, self.splice, self.scale, self.quirks = size_scale, splice, scale, quirks
        self.window = Window(start, stop, unit)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [_Modulation(self, targets)]

    def condition(self, states: Conditioning, targets: Targets, model: ModelAdapter) -> Conditioning:
        if not self.splice:
            return states
        cond = states.cond.clone()
        scales = _Modulation(self, targets).scales
        for row, regions in enumerate(targets.regions):
            there = [index for index, region in enumerate(regions) if region.has_place and region.weight != 0]
            chosen = there if scales[row] != 0 else []
            if not chosen:
                continue
            alone = encode_prompts(model, [_phrase(targets, row, index) for index in chosen], None).cond
            for phrase_states, index in zip(alone, chosen, strict=True):
                positions = list(targets.token_indices[row][index])
                own = read_prompt(model, _phrase(targets, row, index))
                if _pieces(own, own.word_positions) != _pieces(targets.tokenized[row], positions):
                    raise ValueError(
                        f"Region {regions[index].phrase!r}: the phrase alone must have the tokens it has in the prompt "
                        f"{targets.tokenized[row].text!r} (positions {positions}); use splice=False."
                    )
                columns = targets.columns
                written = positions if columns is None else [columns[position] for position in positions]
                cond[row, written] = phrase_states[list(own.word_positions)]
        return replace(states, cond=cond)


def _phrase(targets: Targets, row: int, region: int) -> Prompt:
    """A region's phrase as a prompt of its own, with its weights in the row's prompt."""
    asked, positions = targets.tokenized[row].asked, targets.token_indices[row][region]
    if asked is None:
        return targets.regions[row][region].phrase
    spans = [span for position in positions if (span := targets.tokenized[row].offsets[position]) is not None]
    return asked.excerpt(min(first for first, _ in spans), max(stop for _, stop in spans))


def _pieces(prompt: TokenizedPrompt, positions: Sequence[int]) -> list[str]:
    """Characters of tokens, without the leading space that some tokenizers include inside a text."""
    spans = [prompt.offsets[position] for position in positions]
    return [prompt.text[slice(*span)].strip().casefold() for span in spans if span is not None]


class _Modulation(WindowEdit):
    """Edit of scores of a :class:`DenseDiffusion` for one batch of rows."""

    def __init__(self, method: DenseDiffusion, targets: Targets) -> None:
        kinds = {kind for kind, weight in method.weights.items() if weight != 0}
        chosen = SiteSelector(where=lambda site: site.kind in (kinds or method.weights))
        super().__init__(chosen, ("scores",), method.window, method.scale if kinds else 0.0, len(targets.regions))
        self.method, self.targets = method, targets
        self.there = targets.placed & targets.counted
        self.scales = [scale * any(row) for scale, row in zip(self.scales, self.there.tolist(), strict=True)]

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        rows = list(context.rows)
        together, touched, share, factor = (part[rows].unsqueeze(1).to(scores.device) for part in self._layout(site))
        noise = (context.step.timestep / 1000) ** 5
        strength = self.gate(scores, context) * (self.method.weights[site.kind] * noise) * factor.to(scores)
        strength = strength * (1 - self.method.size_scale * share.to(scores))
        if self.method.quirks == "none":
            strength = strength.clamp(max=1.0)
        seen = scores
        if self.targets.columns is not None:  # scores of keys that an element has not are minus infinity, and stay
            masked = scores == float("-inf")
            seen = torch.where(masked, scores.masked_fill(masked, float("inf")).amin(-1, keepdim=True), scores)
            touched = touched & ~masked
        up = seen + strength * (seen.amax(-1, keepdim=True) - seen)
        down = seen - strength * (seen - seen.amin(-1, keepdim=True))
        return torch.where(touched, torch.where(together, up, down), scores)

    def _layout(self, site: Site) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Masks and factors of a site.

        Returns:
            Mask of query-key pairs that belong together, ``batch query key``; mask of keys whose scores change, broadcast to
            it; share of the picture that a query's segment covers, ``batch query 1``; factor of the regions' weights.
        """
        targets = self.targets
        masks = self._masks(site).flatten(2) * self.there[..., None]
        joined = torch.einsum("brq,brk->bqk", masks, masks)
        # The code's segments are disjoint; where regions overlap, a query's segment is the union of its regions.
        share = (joined if self.method.quirks == "reference" else (joined > 0).float()).mean(-1, keepdim=True)
        if site.kind == "self":
            together = joined
            return together > 0, torch.ones_like(together[:, :1], dtype=torch.bool), share, self._factor(masks, masks, together)
        owns = ((targets.tokens > 0) & self.there[..., None]).to(masks)
        together = torch.einsum("brq,brk->bqk", masks, owns)
        words = torch.zeros(len(targets.tokenized), targets.tokens.shape[-1], dtype=torch.bool, device=masks.device)
        for row, prompt in enumerate(targets.tokenized):
            words[row, list(prompt.word_positions)] = True
        if self.method.quirks == "reference":
            words = torch.ones_like(words)
        return together > 0, words.unsqueeze(1), share, self._factor(masks, owns, together)

    def _factor(self, queries: Tensor, keys: Tensor, joined: Tensor) -> Tensor:
        """Factor of the regions' weights, ``batch query key``; several regions on one side count by their mean.

        Args:
            queries: 1 where a region has the query, ``batch regions query``.
            keys: 1 where a region has the key, ``batch regions key``.
            joined: Number of regions that have both, ``batch query key``.
        """
        weights = self.targets.weights
        if bool((weights[self.there] == 1).all()):
            return torch.ones_like(joined[:, :1, :1])
        own = torch.einsum("brq,br,brk->bqk", queries, weights, keys) / joined.clamp_min(1)
        apart = (_mean_weight(queries, weights)[:, :, None] * _mean_weight(keys, weights)[:, None]).sqrt()
        return torch.where(joined > 0, own, apart)

    def _masks(self, site: Site) -> Tensor:
        """Binary masks as floats, ``batch regions height width``."""
        if self.method.quirks == "none":
            return self.targets.binary_masks(site.height, site.width).float()
        targets = self.targets
        masks = torch.zeros(len(targets.regions), targets.count, site.height, site.width)
        for row, regions in enumerate(targets.regions):
            for index, region in enumerate(regions):
                if region.has_place:
                    masks[row, index] = sampled_mask(region, site.height, site.width, 1 << site.level, "nearest")
        return masks.to(targets.device)


def _mean_weight(members: Tensor, weights: Tensor) -> Tensor:
    """Mean weight, at least 0, of the regions that have a query or key, 1 without any; ``batch regions n`` to ``batch n``."""
    count = members.sum(1)
    mean = torch.einsum("brn,br->bn", members, weights.clamp_min(0)) / count.clamp_min(1)
    return torch.where(count > 0, mean, 1.0)
