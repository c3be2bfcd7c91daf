"""Word boundaries of a text in any script, and occurrences of a phrase.

All splitting into words is done here, so that every word of :func:`find_words` is found again by :func:`occurrences`.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import regex

Span = tuple[int, int]
"""Characters ``[first, last + 1)`` of a text."""

_UNSPACED = r"\u0e00-\u0eff\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Scripts whose words may touch without a space: Thai, Lao, Hangul with its particles, Han, kana."""

_LETTER = rf"(?:(?![{_UNSPACED}])\w)"
"""One character that continues a word of a spaced script; accents and other marks are in ``\\w``."""

_JOINED = r"(?:['\u2018\u2019\u02bc\-\u2010\u2011]\w+)*"
"""The rest of ``dog's`` or ``t-shirt``."""

_WORD = regex.compile(rf"(?=[\p{{L}}\p{{N}}_])\w+{_JOINED}")
_PART = regex.compile(r"(?=[\p{L}\p{N}_])\w+|['\u2019\u02bc]s\b")
_PICTOGRAM = regex.compile(r"(?=\p{Extended_Pictographic})\X")
_ALIKE = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u02bc": "'", "\u2010": "-", "\u2011": "-", "\ufe0e": None, "\ufe0f": None}
)
"""Apostrophes and hyphens that keyboards and word processors exchange; marks that only choose how an emoji is drawn."""


def find_words(text: str, *, parts: bool = False) -> list[Span]:
    """Words and emoji of a text, in order; ``dog's`` and ``t-shirt`` are one word each.

    Args:
        text: The text.
        parts: Split such words into their parts: ``dog`` and ``'s``, ``t`` and ``shirt``.
    """
    found = [match.span() for pattern in (_PART if parts else _WORD, _PICTOGRAM) for match in pattern.finditer(text)]
    return sorted(found)


def occurrences(text: str, phrase: str) -> list[Span]:
    """Spans of all occurrences of a phrase in a text, on word boundaries, in order.

    Case, the number of spaces, the form of apostrophes, and the composition of accents do not matter.
    """
    if not _fold(phrase)[0].split():
        return []
    folded, starts, stops = _fold(text)
    found = (match.span() for match in _pattern(phrase).finditer(folded))
    return [(starts[first], stops[stop]) for first, stop in found if first in starts and stop in stops]


@lru_cache(maxsize=256)
def _fold(text: str) -> tuple[str, dict[int, int], dict[int, int]]:
    """The normalised text, and for its grapheme boundaries the starts and stops in the original text."""
    pieces: list[str] = []
    starts: dict[int, int] = {}
    stops: dict[int, int] = {}
    length = 0
    for match in regex.finditer(r"\X", text):
        piece = unicodedata.normalize("NFD", match[0]).translate(_ALIKE)
        starts[length] = match.start()
        length += len(piece)
        stops[length] = match.end()
        pieces.append(piece)
    return "".join(pieces), starts, stops


@lru_cache(maxsize=256)
def _pattern(phrase: str) -> regex.Pattern[str]:
    words = _fold(phrase)[0].split()
    before = rf"(?<!{_LETTER})" if regex.match(_LETTER, words[0]) else ""
    after = rf"(?!{_LETTER})" if regex.match(_LETTER, words[-1][-1]) else ""
    return regex.compile(before + r"\s+".join(map(regex.escape, words)) + after, regex.IGNORECASE)
