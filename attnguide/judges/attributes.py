"""Attributes of asked objects, and what else an object could have been: a colour is judged against the other colours."""

from __future__ import annotations

from dataclasses import dataclass

from attnguide.judges.base import Asked, AskedObject

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
"""Of GenEval (https://arxiv.org/abs/2310.11513), and gray."""

_SPELT = {"grey": "gray"}


@dataclass(frozen=True)
class Query:
    """What a picture is searched for.

    Attributes:
        label: As a detector is asked.
        noun: The object without its attribute; empty where nothing tells them apart.
        attribute: Its colour, material, ...
    """

    label: str
    noun: str = ""
    attribute: str = ""


def color_words(label: str) -> dict[str, str]:
    """``noun`` and ``attribute`` of a label that begins with a colour; nothing for any other.

    Example:
        >>> color_words("red sports car"), color_words("orange")
        ({'noun': 'sports car', 'attribute': 'red'}, {})
    """
    first, _, rest = label.partition(" ")
    return {"noun": rest, "attribute": first} if _SPELT.get(first.lower(), first.lower()) in COLORS and rest else {}


def queries_of(asked: Asked, rivals: bool = True) -> tuple[Query, ...]:
    """The labels of a row, and behind them the same nouns under other attributes, among which each thing takes the best.

    The rivals of a colour are all other colours; those of another attribute the attributes of the row's other objects.

    Args:
        asked: What one picture was asked to show.
        rivals: Whether to give them.
    """
    found = [Query(one.label, one.noun, one.attribute) for one in asked.objects]
    taken = {query.label.lower() for query in found}
    for one in asked.objects if rivals else ():
        for other in _rivals(one, asked):
            label = f"{other} {one.noun}"
            if label.lower() not in taken:
                taken.add(label.lower())
                found.append(Query(label, one.noun, other))
    return tuple(found)


def _rivals(one: AskedObject, asked: Asked) -> list[str]:
    if not (one.noun and one.attribute):
        return []
    own = _SPELT.get(one.attribute.lower(), one.attribute.lower())
    if own in COLORS:
        return [color for color in COLORS if color != own]
    return [other.attribute for other in asked.objects if other.attribute and other.attribute != one.attribute]
