"""Common part of adapters with a language model as text encoder, whose text has as many positions as the prompt has tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from attnguide.attention.parts import part_of_pass
from attnguide.attention.sites import Site
from attnguide.models.base import Conditioning
from attnguide.models.support import text_problems
from attnguide.models.transformer import TransformerAdapter
from attnguide.types import Step

MASK = "text_mask"
"""Key of the text mask in :attr:`Conditioning.extra`, bool ``batch tokens``: True at a row's own tokens."""


class LanguageModelAdapter(TransformerAdapter):
    """Base of adapters of pipelines whose prompts differ in length; shorter rows of a batch are padded under a mask.

    Each prompt is encoded by itself, since padding would change the text encoder's states of the words.

    Attributes:
        cuts_states: Whether the per-length forwards of :attr:`one_length` get text states without padding.
    """

    cuts_states: ClassVar[bool] = True

    @abstractmethod
    def states(self, prompt: str, *, negative: bool) -> tuple[Tensor, Tensor | None]:
        """Text states of one prompt, ``1 tokens channels``, and its mask where the network does not attend to all tokens."""

    def predict(
        self, latents: Tensor, step: Step, conditioning: Conditioning, *, until: Collection[Site] | None = None
    ) -> Tensor | None:
        if not self.one_length:
            return super().predict(latents, step, conditioning, until=until)
        lengths: list[int] = conditioning.extra[MASK][0].sum(1).tolist()
        order: list[int] = []
        answers = []
        for elements in by_length(lengths):
            states = _some(conditioning, elements, lengths[elements[0]] if self.cuts_states else None)
            with part_of_pass(elements if len(elements) < len(latents) else None):
                answers.append(super().predict(latents[elements], step, states, until=until))
            order += elements
        found = [answer for answer in answers if answer is not None]
        return torch.cat(found)[torch.tensor(order).argsort().to(latents.device)] if found else None

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        cond = self._stacked(prompts, negative=False)
        if negative_prompts is None:
            return cond
        uncond = self._stacked([text or "" for text in negative_prompts], negative=True)
        both = Conditioning(cond.cond, uncond.cond, {MASK: (cond.extra[MASK][0], uncond.extra[MASK][0])})
        return both.padded(both.length)

    def _stacked(self, prompts: Sequence[str], *, negative: bool) -> Conditioning:
        """Text states of prompts, padded to the longest."""
        known = {prompt: self._encoded_text(prompt, negative=negative) for prompt in dict.fromkeys(prompts)}
        length = max(one.length for one in known.values())
        rows = [known[prompt].padded(length) for prompt in prompts]
        masks = torch.cat([row.extra[MASK][0] for row in rows])
        return Conditioning(torch.cat([row.cond for row in rows]), None, {MASK: (masks, None)})

    def _encoded_text(self, prompt: str, *, negative: bool) -> Conditioning:
        states, mask = self.states(prompt, negative=negative)
        whole = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return Conditioning(states.to(self.dtype), None, {MASK: (whole if mask is None else mask.bool(), None)})

    def sigmas(self, steps: int) -> Sequence[float]:
        return [float(share) for share in torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64)]


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Batch elements grouped by text length."""
    return [[at for at, other in enumerate(lengths) if other == length] for length in dict.fromkeys(lengths)]


def _some(conditioning: Conditioning, elements: Sequence[int], length: int | None) -> Conditioning:
    """Conditioning of some batch elements, with their text states cut to ``length`` tokens."""
    at = list(elements)
    extra = {name: (pair[0][at, :length] if name == MASK else pair[0][at], None) for name, pair in conditioning.extra.items()}
    return Conditioning(conditioning.cond[at, :length], None, extra)


def text_mask(conditioning: Conditioning) -> Tensor | None:
    """The text mask of a pass; ``None`` where no row has padding."""
    mask = conditioning.extra[MASK][0]
    return None if bool(mask.all()) else mask


def language_problems(tokenizer: object, encoder: object) -> Iterator[str]:
    """Problems of tokenizer and text encoder, except for text length, which the pipeline limits."""
    yield from (problem for problem in text_problems(tokenizer, encoder) if "model_max_length" not in problem)


def packed(latents: Tensor, patch: int = 2) -> Tensor:
    """Latents ``batch channels height width`` as image tokens ``batch cells channels * patch^2``, row by row."""
    batch, channels, height, width = latents.shape
    cells = latents.view(batch, channels, height // patch, patch, width // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch, (height // patch) * (width // patch), channels * patch**2)


def unpacked(cells: Tensor, like: Tensor, patch: int = 2) -> Tensor:
    """Inverse of :func:`packed`: image tokens as latents of the shape of ``like``."""
    batch, channels, height, width = like.shape
    parts = cells.view(batch, height // patch, width // patch, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(batch, channels, height, width)
