"""Token positions of ``phrase`` (every occurrence) or ``phrase[n]`` (one occurrence), as options name words."""

from __future__ import annotations

import re

from attnguide.prompt.tokens import TokenizedPrompt, token_indices
from attnguide.prompt.words import occurrences


def named_positions(prompt: TokenizedPrompt, name: str) -> tuple[int, ...]:
    """Positions in the tokenized prompt of all occurrences of ``phrase``, or of one, as ``phrase[1]`` for the second.

    Args:
        prompt: The tokenized prompt.
        name: Phrase, with or without ``[n]``; occurrences count from 0.

    Raises:
        ValueError: If the phrase does not occur (so often), or the text encoder does not read it.
    """
    picked = re.fullmatch(r"(.*?)\s*\[(\d+)\]\s*", name, re.DOTALL)
    phrase, number = (picked[1], int(picked[2])) if picked else (name, None)
    numbers = range(max(len(occurrences(prompt.text, phrase)), 1)) if number is None else [number]
    return tuple(dict.fromkeys(position for one in numbers for position in token_indices(prompt, phrase, one)))
