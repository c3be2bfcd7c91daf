"""From phrases of a prompt to token positions, by character offsets."""

from __future__ import annotations

import difflib
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from attnguide.prompt.words import Span, occurrences
from attnguide.types import Region
from attnguide.weighted import Prompt, WeightedPrompt

_READ_IN_CHUNKS = ", or set prompt_syntax to 'weights' (--prompt-syntax weights), which reads it in chunks"
_END_TOKENS = ("<|endoftext|>", "</s>", "<eos>", "[SEP]")


@dataclass(frozen=True)
class Segment:
    """Positions of a tokenized prompt that belong to one text encoder; a network may read several encoders' states.

    Attributes:
        start: First position.
        stop: Position after the last one that the network attends to, padding included where it is not masked.
        end: Position right after the words: the first end token, or ``stop`` if there is none.
        sink: Token that collects attention which no word needs: the start token, or the end token for T5-like encoders.
    """

    start: int
    stop: int
    end: int
    sink: int


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt tokenized for the network's text encoders; tokens, offsets and ids have one entry per position.

    Attributes:
        text: The whole prompt as the user wrote it, including words that were cut off.
        tokens: Token strings, with start, end and padding tokens.
        offsets: Characters ``[first, last + 1)`` of ``text`` for each position, ``None`` for start, end and padding. All
            vectors of a textual-inversion embedding have the characters of its name.
        ids: Token ids; -1 where the row is shorter than others of its batch.
        truncated: Words beyond the length of every text encoder, or ``""``.
        segments: One per text encoder whose states the network attends to, or per chunk of one, in order. By default all
            positions are one segment, with a start token (as CLIP's) unless the first token is a word or an end token.
        columns: Positions in the network's text axis, where only some were kept (:meth:`keep`); ``None`` for all.
        asked: The prompt with weights whose :attr:`WeightedPrompt.text` is ``text``; its segments are chunks of one text
            encoder, each with a start token of its own. ``None`` for a plain prompt.

    Raises:
        ValueError: If the tuples differ in length.
    """

    text: str
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int] | None, ...]
    ids: tuple[int, ...]
    truncated: str = ""
    segments: tuple[Segment, ...] = ()
    columns: tuple[int, ...] | None = None
    asked: WeightedPrompt | None = None

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.offsets) == len(self.ids):
            lengths = f"{len(self.tokens)}, {len(self.offsets)} and {len(self.ids)}"
            raise ValueError(f"tokens, offsets and ids must have the same length; got {lengths}.")
        if not self.segments and self.tokens:
            object.__setattr__(self, "segments", (self._only_segment(),))

    def _only_segment(self) -> Segment:
        words = self.word_positions
        unopened = self.tokens[0] in _END_TOKENS or words[:1] == (0,)  # T5-like tokenizers have no start token
        end = words[-1] + 1 if words else int(not unopened)
        return Segment(0, len(self.tokens), end, min(end, len(self.tokens) - 1) if unopened else 0)

    @property
    def word_positions(self) -> tuple[int, ...]:
        """Positions of tokens with characters of the prompt, in order."""
        return tuple(position for position, span in enumerate(self.offsets) if span is not None and span[0] < span[1])

    @property
    def ends(self) -> tuple[int, ...]:
        """Position of each segment's first end token, where it has one (padding may use the same token)."""
        return tuple(segment.end for segment in self.segments if segment.end < segment.stop)

    @property
    def sinks(self) -> tuple[int, ...]:
        """Position of each segment's sink."""
        return tuple(segment.sink for segment in self.segments)

    def first_word(self, segment: Segment) -> int:
        """Position of a segment's first word, after start and template tokens; its end if it has no word."""
        inside = (position for position in self.word_positions if segment.start <= position < segment.stop)
        return next(inside, segment.end)

    def rooms(self) -> tuple[range, ...]:
        """All positions by segment, each with the padding behind it."""
        starts = [segment.start for segment in self.segments]
        return tuple(map(range, starts, [*starts[1:], len(self.tokens)]))

    @property
    def prompt(self) -> Prompt:
        """The prompt to encode for these tokens: with weights and chunks (:attr:`asked`), or the text."""
        return self.text if self.asked is None else self.asked

    @property
    def chunks(self) -> int:
        """Number of chunks; 1 for a plain prompt."""
        return 1 if self.asked is None else len(self.segments)

    def readers(self) -> tuple[range, ...]:
        """All positions by text encoder: :meth:`rooms`, with all chunks of an encoder joined."""
        return self.rooms() if self.asked is None else (range(len(self.tokens)),)

    def keep(self, columns: Sequence[int]) -> TokenizedPrompt:
        """The prompt restricted to these positions of the network's text axis, in rising order; missing ones are padding."""
        length = len(self.tokens)
        there = [column if column < length else None for column in columns]
        segments = tuple(Segment(*(bisect_left(columns, place) for place in astuple(one))) for one in self.segments)
        return TokenizedPrompt(
            self.text,
            tuple("" if column is None else self.tokens[column] for column in there),
            tuple(None if column is None else self.offsets[column] for column in there),
            tuple(-1 if column is None else self.ids[column] for column in there),
            self.truncated,
            segments,
            tuple(columns),
            self.asked,
        )

    def place(self, position: int) -> int | None:
        """Index here of a position in the network's text axis; ``None`` if it was not kept."""
        if self.columns is None:
            return position if 0 <= position < len(self.tokens) else None
        return self.columns.index(position) if position in self.columns else None


def joined(parts: Sequence[TokenizedPrompt]) -> TokenizedPrompt:
    """Join the tokenizations of a prompt for several text encoders, whose states are concatenated along the text axis."""
    segments: list[Segment] = []
    length = 0
    for part in parts:
        segments += [Segment(*(length + place for place in astuple(segment))) for segment in part.segments]
        length += len(part.tokens)
    return TokenizedPrompt(
        parts[0].text,
        tuple(token for part in parts for token in part.tokens),
        tuple(span for part in parts for span in part.offsets),
        tuple(number for part in parts for number in part.ids),
        min((part.truncated for part in parts), key=len),
        tuple(segments),
    )


def worded_columns(prompts: Sequence[TokenizedPrompt]) -> tuple[int, ...]:
    """Positions of the network's text axis at which any of the prompts has a word, its end token or its sink.

    All positions from the first word of any prompt to the last end token of any are kept in each segment. Padding, a large part
    of most transformers' text axis, and template tokens are dropped.
    """
    kept: set[int] = set()
    for same in zip(*(prompt.segments for prompt in prompts), strict=True):
        pairs = list(zip(prompts, same, strict=True))
        stop = max(min(segment.end + 1, segment.stop) for segment in same)
        kept.update(range(min(prompt.first_word(segment) for prompt, segment in pairs), stop))
        kept.update(segment.sink for segment in same)
    return tuple(sorted(kept))


def find_phrase(prompt: str, phrase: str, occurrence: int | None = None) -> Span:
    """Characters ``[first, last + 1)`` of a phrase in a prompt.

    Case, the number of spaces, and the form of accents do not matter; the phrase must stand on word boundaries (``cat`` is not
    in ``cathedral``, but ``dog`` is in ``dog,``).

    Args:
        prompt: The prompt as the user wrote it.
        phrase: Words of the prompt.
        occurrence: Index of the occurrence, from 0; the first when ``None``.

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
    """Token positions (CLIP's start token = 0), in all segments, whose characters overlap a phrase.

    A segment that ends before the phrase has none, as long as another segment reads all of it.

    Args:
        tokenized: The tokenized prompt.
        phrase: Words of the prompt, found as by :func:`find_phrase`.
        occurrence: Index of the occurrence, from 0; the first when ``None``.

    Raises:
        ValueError: If the phrase does not occur, or if no text encoder reads all of it.
    """
    first, stop = find_phrase(tokenized.text, phrase, occurrence)
    found = positions_of(tokenized, first, stop)
    # Tokenizers may leave a combining accent out of the offsets, which is no loss.
    unread = [char for char in tokenized.text[max(_read(tokenized), first) : stop] if not unicodedata.combining(char)]
    if tokenized.truncated and unread:
        raise ValueError(
            f"Phrase {phrase!r} lies beyond what the text encoder reads ({_longest(tokenized)} tokens); "
            f"lost words: {tokenized.truncated!r}. Shorten the prompt or move the phrase forward."
        )
    if not found:
        raise ValueError(f"Phrase {phrase!r} has no token of its own in the prompt {tokenized.text!r}.")
    for number, room in enumerate(tokenized.readers(), 1):
        seen = max((span[1] for span in tokenized.offsets[room.start : room.stop] if span), default=0)
        if first < seen and not any(position in room for position in found):
            raise ValueError(
                f"Phrase {phrase!r} has no token of its own for text encoder {number} of {len(tokenized.segments)}, "
                f"whose tokenizer does not know it. Choose another word."
            )
    return found


def _read(tokenized: TokenizedPrompt) -> int:
    """End of the characters that some text encoder reads."""
    return max((span[1] for span in tokenized.offsets if span), default=0)


def _longest(tokenized: TokenizedPrompt) -> int:
    """Number of positions of the longest text encoder, or of the kept positions."""
    if tokenized.columns is not None:
        return len(tokenized.columns)
    return max((len(room) for room in tokenized.rooms()), default=0)


def positions_of(tokenized: TokenizedPrompt, first: int, stop: int) -> tuple[int, ...]:
    """Token positions whose characters overlap ``[first, stop)``; empty if no encoder reads them."""
    spans = ((position, tokenized.offsets[position]) for position in tokenized.word_positions)
    return tuple(position for position, span in spans if span and span[0] < stop and first < span[1])


def resolve(tokenized: TokenizedPrompt, region: Region) -> tuple[int, ...]:
    """Token positions of a region's words: its ``token_indices`` if given, else those of its phrase.

    ``token_indices`` are positions in the network's whole text axis.

    Raises:
        ValueError: If explicit positions are empty, repeated or not on words, or as for :func:`token_indices`.
    """
    if region.token_indices is None:
        return token_indices(tokenized, region.phrase, region.occurrence)
    given = region.token_indices
    found = tuple(place for place in map(tokenized.place, given) if place is not None)
    if not given or len(set(given)) < len(given):
        raise ValueError(f"Region {region.phrase!r}: token_indices must be distinct positions, at least one; got {given}.")
    if len(found) < len(given) or not all(any(place in words for words in worded(tokenized)) for place in found):
        spans = [
            tuple(place if tokenized.columns is None else tokenized.columns[place] for place in (words[0], words[-1]))
            for words in worded(tokenized)
            if words
        ]
        ranges = " or ".join(f"{first}..{last}" for first, last in spans) or "nothing"
        raise ValueError(
            f"Region {region.phrase!r}: token_indices must lie in {ranges} (the words of {tokenized.text!r}); got {given}."
        )
    return found


def worded(tokenized: TokenizedPrompt) -> tuple[range, ...]:
    """Positions from the first to the last word of each segment; all after the sink where the words are not known."""
    return tuple(range(_first(tokenized, segment), segment.end) for segment in tokenized.segments)


def _first(tokenized: TokenizedPrompt, segment: Segment) -> int:
    """First word position of a segment; the one behind the start token where the words are not known."""
    first = tokenized.first_word(segment)
    unknown = first == segment.end and segment.sink == segment.start
    return min(segment.start + 1, segment.end) if unknown else first


def require_whole(tokenized: TokenizedPrompt, name: str = "prompt", *, in_chunks: bool = False) -> None:
    """Refuse a prompt that is longer than the text encoder reads.

    Args:
        tokenized: The tokenized prompt.
        name: Name of the prompt in the error message (``prompt``, ``negative_prompt``, ...).
        in_chunks: Whether the model could read it in chunks.

    Raises:
        ValueError: Naming the words that would be cut off.
    """
    if tokenized.truncated:
        raise ValueError(
            f"{name} {tokenized.text!r} is longer than the text encoder reads ({_longest(tokenized)} tokens); "
            f"lost words: {tokenized.truncated!r}. Shorten it{_READ_IN_CHUNKS if in_chunks else ''}."
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
