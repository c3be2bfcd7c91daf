"""How text encoders other than CLIP read a prompt: tokens with offsets, through templates, cuts and padding."""

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
    """One text encoder's way from a prompt to the positions of its states that the network attends to.

    Attributes:
        tokenizer: Of transformers, with a fast form.
        limit: Most tokens of the encoder, template included.
        padded: Whether the network attends to padding up to ``limit``; otherwise a prompt has as many positions as tokens.
        before: The template's text before the prompt.
        after: The template's text behind the prompt.
        dropped: First positions of the states that the pipeline cuts off, a template's as a rule.
        special: Whether the tokenizer adds its own start and end tokens; templates as a rule hold them already.
        expand: How the pipeline writes names of embeddings with several vectors (:func:`~attnguide.prompt.expansion.follow`).
        spelt: What the pipeline makes of a character before it tokenizes, lower case for one; white space at both ends is
            stripped if ``stripped``.
        stripped: See above.
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
        """The prompt with one segment, whose sink is the first token unless that is a word, else the first end token.

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
        """What is tokenized for each character of the expanded prompt, with the prompt's characters that it comes from."""
        read = self.expand(prompt)
        spans = follow(prompt, read, self.tokenizer.added_tokens_encoder)
        first = len(read) - len(read.lstrip()) if self.stripped else 0
        stop = len(read.rstrip()) if self.stripped else len(read)
        return [(self.spelt(read[place]), spans[place]) for place in range(first, stop)]

    def _span(self, origin: list[_Span], span: _Span) -> _Span | None:
        """The prompt's characters behind characters of the text; ``None`` for a template's alone, or none."""
        first, stop = max(span[0] - len(self.before), 0), min(span[1] - len(self.before), len(origin))
        return spread(origin, (first, stop)) if first < stop else None

    def _before_words(self, encoded: Any) -> int:
        """Tokens before the place of the words, of a prompt without any."""
        count = 0
        for number, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            closing = span[0] == span[1] and number == self.tokenizer.eos_token_id
            if closing or span[1] > len(self.before):
                break
            count += 1
        return count


def expansion(pipeline: Any, tokenizer: Any) -> Callable[[str], str]:
    """How a pipeline writes names of embeddings with several vectors; as they are where it loads none."""
    convert = getattr(pipeline, "maybe_convert_prompt", None)
    return str if convert is None else lambda text: str(convert(text, tokenizer))


def texts_of(sample: Sample, halves: Sequence[Branch]) -> list[str]:
    """What a row's plain passes read."""
    return [sample.prompt, *([sample.negative_prompt or ""] if "uncond" in halves else [])]


def beyond(pipeline: Any, texts: Sequence[str]) -> bool:
    """Whether any text is longer than the first text encoder of a pipeline reads, which is CLIP beside T5."""
    reader = TextReader(pipeline.tokenizer, pipeline.tokenizer_max_length)
    return any(reader.read(text).truncated for text in texts)


def with_offsets(tokenizer: Any) -> Any:
    """A tokenizer that knows which characters its tokens stand for: the same, or its fast form.

    Raises:
        ValueError: If it has no fast form.
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
