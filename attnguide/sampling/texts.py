"""The prompts of a row as the model reads them: whole, or refused."""

from __future__ import annotations

from attnguide.models.base import ModelAdapter
from attnguide.prompt.tokens import TokenizedPrompt, require_whole
from attnguide.types import Sample


def read_whole(model: ModelAdapter, sample: Sample) -> TokenizedPrompt:
    """The row's prompt, tokenized; its negative prompt, where one is read, must fit the text encoder as well.

    Raises:
        ValueError: If one of them is too long, naming it and the words that would be lost.
    """
    tokenized = model.tokenize(sample.prompt)
    require_whole(tokenized)
    if "uncond" in model.halves(sample):
        require_whole(model.tokenize(sample.negative_prompt or ""), "negative_prompt")
    return tokenized


def read_source(model: ModelAdapter, prompt: str, name: str = "source_prompt") -> TokenizedPrompt:
    """A prompt that a method reads beside the row's own, tokenized.

    Raises:
        ValueError: If it is too long.
    """
    tokenized = model.tokenize(prompt)
    require_whole(tokenized, name)
    return tokenized
