"""Prompt syntax of other programs (weights, LoRA tags, prompt schedules), which the text encoder reads as plain text."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

from attnguide.weighted import AND, BEHIND, CHOICE, LOAD_LORA, LORA, ONE_PROMPT, WILDCARD, WRITE_ROWS

_WEIGH = (
    "set prompt_syntax to 'weights' (--prompt-syntax weights), or write the words alone; a region's weight and a method's "
    "options set how strongly words act"
)

_KINDS: tuple[tuple[str, str], ...] = (
    (LORA, LOAD_LORA),
    (rf"\([^()]*:\s*[+-]?\d*\.?\d+\s*\)|\(\([^()]+\)\)|{BEHIND}", _WEIGH),
    (r"\[[^\[\]|]+\]", _WEIGH),
    (CHOICE, WRITE_ROWS),
    (r"\{[^{}|]+\}", _WEIGH),
    (WILDCARD, WRITE_ROWS),
    (r"(?<![A-Z]{2} )\bBREAK\b(?! [A-Z]{2})", _WEIGH),
    (AND, ONE_PROMPT),
)
"""Patterns of foreign syntax, and what to write instead. Words in single round brackets are ordinary text."""


def find_syntax(prompt: str) -> list[tuple[str, str]]:
    """Pieces of a prompt that are syntax in other programs, each with what to write instead."""
    shouted = not any(char.islower() for char in prompt)  # among capitals AND and BREAK are words
    kinds = _KINDS[:-2] if shouted else _KINDS
    return [(match[0], instead) for pattern, instead in kinds for match in re.finditer(pattern, prompt)]


def warn_of_syntax(prompts: Iterable[str]) -> None:
    """Warn once of all foreign syntax in a run's prompts, naming one piece of each kind."""
    found: dict[str, str] = {}
    for prompt in dict.fromkeys(prompts):
        for piece, instead in find_syntax(prompt):
            found.setdefault(instead, piece)
    if found:
        told = "; ".join(f"{piece!r}: {instead}" for instead, piece in found.items())
        warnings.warn(f"Prompts hold syntax of other programs, which is read as letters here. {told}.", stacklevel=2)
