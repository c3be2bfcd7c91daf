"""Phrase of the prompt to positions in the tokenized prompt, by character offsets."""

from __future__ import annotations

import difflib
import unicodedata
from dataclasses import dataclass

from attnguide.prompt.words import Span, occurrences
from attnguide.types import Region

_END_TOKENS = ("<|endoftext|>", "</s>", "<eos>", "[SEP]")


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the text encoder reads it; the four tuples have one entry per position.

    Attributes:
        text: The prompt as the user wrote it, also the part that was cut.
        tokens: Readable pieces, start, end and padding tokens included.
        offsets: Characters ``[first, last + 1)`` of ``text`` behind each position, ``None`` for start, end and padding. All
            vectors of an embedding by textual inversion stand for the characters of its name.
        ids: The tokenizer's numbers.
        truncated: The words that the encoder does not read any more, or ``""``.

    Raises:
        ValueError: If the tuples differ in length.
    """

    text: str
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int] | None, ...]
    ids: tuple[int, ...]
    truncated: str = ""

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.offsets) == len(self.ids):
            lengths = f"{len(self.tokens)}, {len(self.offsets)} and {len(self.ids)}"
            raise ValueError(f"tokens, offsets and ids must have the same length; got {lengths}.")

    @property
    def word_positions(self) -> tuple[int, ...]:
        """Positions that stand for characters of the prompt, in order."""
        return tuple(position for position, span in enumerate(self.offsets) if span is not None and span[0] < span[1])

    @property
    def end(self) -> int:
        """Position of the first end token: right after the words, also where padding repeats the end token."""
        words = self.word_positions
        if words:
            return words[-1] + 1
        return 0 if self.tokens[0] in _END_TOKENS else 1  # T5-like tokenizers have no start token


def find_phrase(prompt: str, phrase: str, occurrence: int | None = None) -> Span:
    """Characters ``[first, last + 1)`` of the prompt where a phrase stands.

    Capitals do not matter, any run of spaces equals any other, composed and decomposed accents are equal, and the phrase must
    stand on word boundaries (``cat`` is not in ``cathedral``, but ``dog`` is in ``dog,``).

    Args:
        prompt: The prompt as the user wrote it.
        phrase: Words of it.
        occurrence: Which one is meant, from 0; the first when ``None``.

    Raises:
        ValueError: If the phrase is empty, does not occur, or occurs too few times.
    """
    if not phrase.strip():
        raise ValueError(f"phrase must contain a word; got {phrase!r}.")
    wanted = occurrence or 0
    if wanted < 0:
        raise ValueError(f"occurrence counts from 0; got {occurrence}.")
    spans = occurrences(prompt, phrase)
    if not spans:
        raise ValueError(f"Phrase {phrase!r} does not occur in the prompt {prompt!r}{_nearest(prompt, phrase)}.")
    if wanted >= len(spans):
        times = "once" if len(spans) == 1 else f"{len(spans)} times"
        raise ValueError(
            f"Phrase {phrase!r} occurs {times} in the prompt {prompt!r}; occurrence counts from 0, got {occurrence}."
        )
    return spans[wanted]


def token_indices(tokenized: TokenizedPrompt, phrase: str, occurrence: int | None = None) -> tuple[int, ...]:
    """Positions in the tokenized prompt (start token = 0) whose characters overlap a phrase's.

    Args:
        tokenized: The prompt.
        phrase: Words of it, found as by :func:`find_phrase`.
        occurrence: Which one is meant, from 0; the first when ``None``.

    Raises:
        ValueError: If the phrase does not occur, or if the text encoder does not read all of it.
    """
    first, stop = find_phrase(tokenized.text, phrase, occurrence)
    spans = [tokenized.offsets[position] for position in tokenized.word_positions]
    read = max((span[1] for span in spans if span), default=0)
    found = positions_of(tokenized, first, stop)
    # Tokenizers may give a combining accent no character of its own, which is no loss.
    unread = [char for char in tokenized.text[max(read, first) : stop] if not unicodedata.combining(char)]
    if tokenized.truncated and unread:
        raise ValueError(
            f"Phrase {phrase!r} lies beyond what the text encoder reads ({len(tokenized.tokens)} tokens); "
            f"lost words: {tokenized.truncated!r}. Shorten the prompt or move the phrase forward."
        )
    if not found:
        raise ValueError(f"Phrase {phrase!r} has no token of its own in the prompt {tokenized.text!r}.")
    return found


def positions_of(tokenized: TokenizedPrompt, first: int, stop: int) -> tuple[int, ...]:
    """Positions in the tokenized prompt whose characters overlap ``[first, stop)``; none if the encoder does not read them."""
    spans = ((position, tokenized.offsets[position]) for position in tokenized.word_positions)
    return tuple(position for position, span in spans if span and span[0] < stop and first < span[1])


def resolve(tokenized: TokenizedPrompt, region: Region) -> tuple[int, ...]:
    """Positions of a region's words: its own ``token_indices`` if it has any, else those of its phrase.

    Raises:
        ValueError: If explicit positions are empty, repeated or not on words, or as for :func:`token_indices`.
    """
    if region.token_indices is None:
        return token_indices(tokenized, region.phrase, region.occurrence)
    given = region.token_indices
    first, last = min(tokenized.word_positions, default=1), tokenized.end - 1
    if not given or len(set(given)) < len(given):
        raise ValueError(f"Region {region.phrase!r}: token_indices must be distinct positions, at least one; got {given}.")
    if min(given) < first or max(given) > last:
        raise ValueError(
            f"Region {region.phrase!r}: token_indices must lie in {first}..{last} (the words of {tokenized.text!r}); "
            f"got {given}."
        )
    return given


def require_whole(tokenized: TokenizedPrompt, name: str = "prompt") -> None:
    """Refuse a prompt of which the text encoder reads a part only, be it positive, negative or another picture's.

    Args:
        tokenized: The prompt.
        name: What the user calls it.

    Raises:
        ValueError: Naming the words that would be lost.
    """
    if tokenized.truncated:
        raise ValueError(
            f"{name} {tokenized.text!r} is longer than the text encoder reads ({len(tokenized.tokens)} tokens); "
            f"lost words: {tokenized.truncated!r}. Shorten it."
        )


def _nearest(prompt: str, phrase: str) -> str:
    words = [word for word in (part.strip(".,;:!?\"'()[]{}") for part in prompt.split()) if word]
    count = len(phrase.split())
    candidates: dict[str, str] = {}
    for length in (count, count - 1, count + 1):
        for start in range(len(words) - length + 1 if length > 0 else 0):
            run = " ".join(words[start : start + length])
            candidates.setdefault(run.lower(), run)
    close = difflib.get_close_matches(" ".join(phrase.lower().split()), candidates, n=1, cutoff=0.5)
    return f"; nearest words: {candidates[close[0]]!r}" if close else ""
