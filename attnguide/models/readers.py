"""Tokenization for text encoders of transformers: tokens with offsets, through templates, cuts and padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import convert_slow_tokenizer

from attnguide.prompt.expansion import follow, spread
from attnguide.prompt.tokens import Segment, TokenizedPrompt
from attnguide.types import Branch, Sample

_Span = tuple[int, int]


@dataclass(frozen=True)
class TextReader:
    """Tokenizes a prompt into the text positions that a transformer attends to.

    Attributes:
        tokenizer: A tokenizer of transformers that is fast or has a fast form.
        limit: Most tokens of the encoder, template included.
        padded: Whether the text is padded up to ``limit``; otherwise a prompt has as many positions as tokens.
        before: Template text before the prompt.
        after: Template text after the prompt.
        dropped: Number of first positions that the pipeline cuts off, usually the template's.
        special: Whether the tokenizer adds its start and end tokens; templates usually contain them.
        expand: Expands textual-inversion names with several vectors (:func:`~attnguide.prompt.expansion.follow`).
        spelt: The pipeline's change of a character before tokenization, such as ``str.lower``.
        stripped: Whether white space at both ends of the prompt is stripped.
    """

    tokenizer: Any
    limit: int
    padded: bool = False
    before: str = ""
    after: str = ""
    dropped: int = 0
    special: bool = True
    expand: Callable[[str], str] = str
    spelt: Callable[[str], str] = str
    stripped: bool = False

    def read(self, prompt: str) -> TokenizedPrompt:
        """The tokenized prompt with one segment, whose sink is the first token unless it is a word, else the first end token.

        Raises:
            ValueError: If the tokenizer cannot tell which tokens stand for which words.
        """
        reader = with_offsets(self.tokenizer)
        pieces = self._pieces(prompt)
        origin = [span for piece, span in pieces for _ in piece]
        text = self.before + "".join(piece for piece, _ in pieces) + self.after
        settings = {"return_offsets_mapping": True, "add_special_tokens": self.special}
        encoded = reader(text, truncation=True, max_length=self.limit, **settings)
        spans = [self._span(origin, span) for span in encoded["offset_mapping"]]
        whole = [self._span(origin, span) for span in reader(text, **settings)["offset_mapping"]]
        read, all_of_it = (max((span[1] for span in some if span), default=0) for some in (spans, whole))
        ids = list(encoded["input_ids"])
        words = [place for place, span in enumerate(spans) if span]
        end = words[-1] + 1 if words else self._before_words(encoded)
        first, left = 0, 0
        if self.padded:
            missing = self.limit - len(ids)
            left = missing if reader.padding_side == "left" else 0
            ids = [reader.pad_token_id] * left + ids + [reader.pad_token_id] * (missing - left)
            spans = [None] * left + spans + [None] * (missing - left)
        first, end = max(left, self.dropped), left + end
        opened = first < end and spans[first] is None and ids[first] != reader.eos_token_id
        sink = first if opened else min(end, len(ids) - 1)
        segment = Segment(0, len(ids) - self.dropped, end - self.dropped, sink - self.dropped)
        return TokenizedPrompt(
            prompt,
            tuple(reader.convert_ids_to_tokens(ids[self.dropped :])),
            tuple(spans[self.dropped :]),
            tuple(ids[self.dropped :]),
            prompt[read:].strip() if all_of_it > read else "",
            (segment,),
        )

    def _pieces(self, prompt: str) -> list[tuple[str, _Span]]:
        """Text to tokenize for each character of the expanded prompt, with the span of the prompt that it comes from."""
        read = self.expand(prompt)
        spans = follow(prompt, read, self.tokenizer.added_tokens_encoder)
        first = len(read) - len(read.lstrip()) if self.stripped else 0
        stop = len(read.rstrip()) if self.stripped else len(read)
        return [(self.spelt(read[place]), spans[place]) for place in range(first, stop)]

    def _span(self, origin: list[_Span], span: _Span) -> _Span | None:
        """Span of the prompt for a span of the tokenized text; ``None`` if it is empty or lies in the template."""
        first, stop = max(span[0] - len(self.before), 0), min(span[1] - len(self.before), len(origin))
        return spread(origin, (first, stop)) if first < stop else None

    def _before_words(self, encoded: Any) -> int:
        """Number of tokens before the position of the words, for a prompt without words."""
        count = 0
        for number, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            closing = span[0] == span[1] and number == self.tokenizer.eos_token_id
            if closing or span[1] > len(self.before):
                break
            count += 1
        return count


def expansion(pipeline: Any, tokenizer: Any) -> Callable[[str], str]:
    """The pipeline's expansion of textual-inversion names with several vectors; ``str`` where it supports none."""
    convert = getattr(pipeline, "maybe_convert_prompt", None)
    return str if convert is None else lambda text: str(convert(text, tokenizer))


def texts_of(sample: Sample, halves: Sequence[Branch]) -> list[str]:
    """Texts of a row's plain passes: the prompt, and the negative prompt where there is an unconditional half."""
    return [sample.prompt, *([sample.negative_prompt or ""] if "uncond" in halves else [])]


def beyond(pipeline: Any, texts: Sequence[str]) -> bool:
    """Whether any text is longer than a pipeline's CLIP encoder reads (beside T5, which reads more)."""
    reader = TextReader(pipeline.tokenizer, pipeline.tokenizer_max_length)
    return any(reader.read(text).truncated for text in texts)


def with_offsets(tokenizer: Any) -> Any:
    """The tokenizer, or its fast form, which returns the characters (offsets) of each token.

    Raises:
        ValueError: If the tokenizer has no fast form.
    """
    if tokenizer.is_fast:
        return tokenizer
    special = {name: getattr(tokenizer, name) for name in ("pad_token", "eos_token", "bos_token", "unk_token")}
    try:
        made = convert_slow_tokenizer(tokenizer)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"The tokenizer {type(tokenizer).__name__} cannot tell which tokens stand for which words: {error}"
        ) from error
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side=tokenizer.padding_side, **special)
