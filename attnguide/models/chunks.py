"""CLIP text encoders on weighted prompts, in chunks of the encoder's length; embedded by compel."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attnguide.prompt.expansion import follow, spread
from attnguide.prompt.tokens import Segment, TokenizedPrompt
from attnguide.weighted import Fragment, WeightedPrompt, require_compel

_Token = tuple[int, tuple[int, int]]
"""A token id, and its characters in :attr:`WeightedPrompt.text`."""


@dataclass(frozen=True)
class _Piece:
    """A fragment for the text encoder: text with textual-inversion names expanded, weight, and tokens."""

    text: str
    weight: float
    tokens: tuple[_Token, ...]


_NOTHING = _Piece("", 1.0, ())
"""The only piece of a part without words."""


@dataclass(frozen=True)
class _Encoder:
    """A text encoder for compel that reports the device it computes on, even if its weights are offloaded."""

    module: Any
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.module.dtype
        return found

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return self.module(*arguments, **settings)


@dataclass(frozen=True)
class ChunkedClip:
    """One CLIP text encoder with its tokenizer.

    A token's state ``z`` of weight ``w`` becomes ``e + w (z - e)``, ``e`` the state of the empty text at its position; for
    weights below 1, it moves towards its state where the fragment is masked, ``tan((1 - w) pi / 2)`` parts to one. A chunk ends
    behind its last sentence, else its last comma, else its last word. All of this is done by compel
    (https://github.com/damian0815/compel).

    Attributes:
        tokenizer: The pipeline's tokenizer.
        reader: The tokenizer, or a fast copy that returns offsets.
        encoder: The pipeline's text encoder.
        device: Device that the encoder computes on.
        expand: Expands textual-inversion names with several vectors, as the pipeline does.
        penultimate: Whether the network reads the states before the last layer, without its norm, as in SDXL.
    """

    tokenizer: Any
    reader: Any
    encoder: Any
    device: torch.device
    expand: Callable[[str], str] = str
    penultimate: bool = False

    @property
    def length(self) -> int:
        """Number of token positions of a chunk."""
        return int(self.tokenizer.model_max_length)

    @cached_property
    def _provider(self) -> Any:
        require_compel()
        from compel.embeddings_provider import EmbeddingsProvider, ReturnedEmbeddingsType, SplitLongTextMode

        kinds = ReturnedEmbeddingsType
        kind = kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED if self.penultimate else kinds.LAST_HIDDEN_STATES_NORMALIZED
        return EmbeddingsProvider(
            self.tokenizer,
            _Encoder(self.encoder, self.device),
            truncate=False,
            padding_attention_mask_value=0 if getattr(self.encoder.config, "use_attention_mask", False) else 1,
            returned_embeddings_type=kind,
            device=self.device,
            split_long_text_mode=SplitLongTextMode.SENTENCES,
        )

    def read(self, prompt: WeightedPrompt) -> TokenizedPrompt:
        """Tokens of a prompt, one segment per chunk.

        Raises:
            ValueError: If the tokenizer cannot tell which tokens stand for which words, or compel is not installed.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int] | None] = []
        segments: list[Segment] = []
        for pieces in self._parts(prompt):
            waiting = deque(token for piece in pieces for token in piece.tokens)
            laid = self._laid_out(pieces)
            for start in range(0, len(laid), self.length):
                spans = _spans(laid[start : start + self.length], waiting)
                at = len(offsets)
                segments.append(Segment(at, at + self.length, at + len(spans), at))
                offsets += [*spans, *[None] * (self.length - len(spans))]
            if waiting:
                raise ValueError(
                    f"The tokenizer {type(self.tokenizer).__name__} cannot tell which tokens stand for which words of "
                    f"{prompt.text!r}."
                )
            ids += laid
        for at in range(len(ids), self.length * prompt.chunks, self.length):
            ids += self._laid_out([_NOTHING])
            offsets += [None] * self.length
            segments.append(Segment(at, at + self.length, at + 1, at))
        tokens = tuple(self.tokenizer.convert_ids_to_tokens(ids))
        return TokenizedPrompt(prompt.text, tokens, tuple(offsets), tuple(ids), "", tuple(segments), None, prompt)

    def states(self, prompts: Sequence[WeightedPrompt]) -> Tensor:
        """Text states of prompts, ``batch tokens channels``; shorter prompts are filled up with chunks of the empty text."""
        rows = [torch.cat([self._states(pieces) for pieces in self._parts(prompt)], 1) for prompt in prompts]
        longest = max(*(row.shape[1] for row in rows), *(self.length * prompt.chunks for prompt in prompts))
        empty = self._provider.empty_z.to(rows[0])
        filled = [torch.cat([row, *[empty] * ((longest - row.shape[1]) // self.length)], 1) for row in rows]
        return torch.cat(filled)

    def pooled(self, prompts: Sequence[WeightedPrompt]) -> Tensor:
        """Pooled state of each text's first chunk, without weights, ``batch channels``."""
        found = [self._provider.get_pooled_embeddings([self.expand(one.text)], device=self.device) for one in prompts]
        return torch.cat(found)

    def _states(self, pieces: Sequence[_Piece]) -> Tensor:
        found: Tensor = self._provider.get_embeddings_for_weighted_prompt_fragments(
            [[piece.text for piece in pieces]], [[piece.weight for piece in pieces]], device=self.device
        )
        return found

    def _laid_out(self, pieces: Sequence[_Piece]) -> list[int]:
        """Token ids of a part, chunk by chunk."""
        ids, _, _ = self._provider.get_token_ids_and_expand_weights(
            [piece.text for piece in pieces], [piece.weight for piece in pieces], device="cpu"
        )
        found: list[int] = ids.tolist()
        return found

    def _parts(self, prompt: WeightedPrompt) -> list[list[_Piece]]:
        """Pieces of every part, without pieces that have no token."""
        parts = [[self._piece(prompt.text, fragment) for fragment in part] for part in prompt.parts]
        return [[piece for piece in part if piece.tokens] or [_NOTHING] for part in parts] or [[_NOTHING]]

    def _piece(self, text: str, fragment: Fragment) -> _Piece:
        letters = text[fragment.first : fragment.stop]
        read = self.expand(letters)
        origin = follow(letters, read, self.tokenizer.added_tokens_encoder)
        encoded = self.reader(read, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = [spread(origin, span) for span in encoded["offset_mapping"]]
        moved = [(fragment.first + first, fragment.first + stop) for first, stop in spans]
        return _Piece(read, fragment.weight, tuple(zip(encoded["input_ids"], moved, strict=True)))


def _spans(chunk: Sequence[int], waiting: deque[_Token]) -> list[tuple[int, int] | None]:
    """Characters of a chunk's first positions: ``None`` (start token), then those of the waiting tokens that it holds."""
    spans: list[tuple[int, int] | None] = [None]
    while waiting and chunk[len(spans)] == waiting[0][0]:
        spans.append(waiting.popleft()[1])
    return spans
