"""Finds the phrase of a prompt for an object's name in a layout, and words prompts. Importing this needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attnguide.prompt.nested import free_occurrences
from attnguide.prompt.words import occurrences

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten"}
_IRREGULAR = {"person": "people", "knife": "knives", "mouse": "mice", "sheep": "sheep", "skis": "skis", "scissors": "scissors"}
_ARTICLE = re.compile(r"^(?:an?|the|one|some)\s+", re.IGNORECASE)


def plural(name: str) -> str:
    """Plural of a name: ``"wine glass"`` to ``"wine glasses"``."""
    head, space, noun = name.rpartition(" ")
    if noun in _IRREGULAR:
        return head + space + _IRREGULAR[noun]
    return name + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def amount(name: str, count: int) -> str:
    """A name with its number: ``"a dog"``, ``"two dogs"``."""
    if count == 1:
        return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
    return f"{_NUMBERS.get(count, str(count))} {plural(name)}"


def listed(parts: Sequence[str]) -> str:
    """Parts joined as an enumeration: ``"a dog, two cats and a ball"``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def bare_name(name: str) -> str:
    """A name without its article and full stop."""
    return _ARTICLE.sub("", " ".join(name.split())).rstrip(".")


def phrase_of(prompt: str, name: str) -> str:
    """The phrase of a prompt that names an object: its name, its plural, or the longest part of the name that occurs.

    If no part occurs, the name itself, so that the row's check reports it.

    Example:
        >>> phrase_of("a photo of two sandwichs", "sandwich"), phrase_of("A dog runs on grass", "a brown dog that runs")
        ('sandwichs', 'dog')
    """
    bare = bare_name(name)
    for spelling in (f"{bare}s", f"{bare}es", plural(bare), bare):
        if occurrences(prompt, spelling):
            return spelling
    words = bare.split()
    runs = [words[i : i + length] for length in range(len(words) - 1, 0, -1) for i in range(len(words) - length + 1)]
    found = next((" ".join(run) for run in runs if _says_something(run) and occurrences(prompt, " ".join(run))), None)
    return found or bare or name


def _says_something(words: Sequence[str]) -> bool:
    """Whether words can name an object: first and last have three letters or more; the first is not the, and, with."""
    return min(len(words[0]), len(words[-1])) > 2 and words[0].lower() not in ("the", "and", "with")


def placed_regions(prompt: str, placed: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Regions for phrases with boxes; a phrase given twice takes its next occurrence in the prompt, or the last.

    Args:
        prompt: The row's prompt.
        placed: Phrases with boxes as fractions, or ``None`` for no place.
    """
    regions: list[dict[str, Any]] = []
    for phrase, box in placed:
        before = sum(region["phrase"] == phrase for region in regions)
        regions.append({"phrase": phrase, "box": box})
        if before:
            free = free_occurrences(prompt, phrase, [other for other, _ in placed])
            regions[-1]["occurrence"] = free[min(before, len(free) - 1)] if free else 0
    return regions


def asked_tag(objects: Sequence[Mapping[str, Any]], relations: Sequence[Sequence[Any]] = ()) -> dict[str, Any]:
    """The tag ``asked`` of a row, which holds what its picture is judged by; see :func:`attnguide.metrics.asked.asked_of`."""
    return {"objects": [dict(one) for one in objects], **({"relations": [list(one) for one in relations]} if relations else {})}
