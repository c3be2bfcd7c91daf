"""Textual-inversion names with several vectors: from the expanded text, which is tokenized, back to the user's prompt.

Diffusers keeps the vectors of ``<thing>`` under the names ``<thing>``, ``<thing>_1``, ``<thing>_2``, and writes
all of them into the prompt where the user wrote the first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from attnguide.prompt.words import Span


def follow(prompt: str, read: str, names: Collection[str]) -> list[Span]:
    """Span of the prompt for every character of the expanded text.

    Args:
        prompt: The prompt as the user wrote it.
        read: The prompt with textual-inversion names expanded, as it is tokenized.
        names: Tokens added to the tokenizer's vocabulary.

    Raises:
        ValueError: If ``read`` is not the prompt with its names expanded.
    """
    if read == prompt:
        return [(index, index + 1) for index in range(len(prompt))]
    expansions = {name: _expansion(name, names) for name in sorted(names, key=len, reverse=True)}
    spans: list[Span] = []
    place = 0
    while place < len(prompt):
        at = len(spans)
        name = next((n for n, long in expansions.items() if prompt.startswith(n, place) and read.startswith(long, at)), None)
        if name is None and read[at : at + 1] != prompt[place]:
            raise ValueError(f"Prompt {prompt!r} is read as {read!r}; it cannot be told which words stand where.")
        width = 1 if name is None else len(name)
        spans += [(place, place + width)] * (1 if name is None else len(expansions[name]))
        place += width
    return spans


def spread(origin: Sequence[Span], span: Span) -> Span:
    """Span of the prompt for a span of the expanded text; empty for an empty span."""
    first, stop = span
    if first >= stop:
        place = origin[first][0] if first < len(origin) else (origin[-1][1] if origin else 0)
        return place, place
    return origin[first][0], origin[stop - 1][1]


def _expansion(name: str, names: Collection[str]) -> str:
    parts = [name]
    while f"{name}_{len(parts)}" in names:
        parts.append(f"{name}_{len(parts)}")
    return " ".join(parts)
