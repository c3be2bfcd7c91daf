"""Search phrases for the objects of a row, with rival attributes: a colour is judged against all other colours."""

from __future__ import annotations

from dataclasses import dataclass

from attnguide.judges.base import Asked, AskedObject

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
"""The colours of GenEval (https://arxiv.org/abs/2310.11513), and gray."""

_SPELT = {"grey": "gray"}


@dataclass(frozen=True)
class Query:
    """One phrase that a detector searches a picture for.

    Attributes:
        label: Text given to the detector.
        noun: The object without its attribute; empty if noun and attribute are not known apart.
        attribute: Its colour, material or the like.
    """

    label: str
    noun: str = ""
    attribute: str = ""


def color_words(label: str) -> dict[str, str]:
    """``noun`` and ``attribute`` of a label that begins with a colour; empty for any other label.

    Example:
        >>> color_words("red sports car"), color_words("orange")
        ({'noun': 'sports car', 'attribute': 'red'}, {})
    """
    first, _, rest = label.partition(" ")
    return {"noun": rest, "attribute": first} if _SPELT.get(first.lower(), first.lower()) in COLORS and rest else {}


def queries_of(asked: Asked, rivals: bool = True) -> tuple[Query, ...]:
    """Queries for the labels of a row, followed by rivals: the same nouns with other attributes.

    A detection takes the query that fits it best, so that a blue car is not found as a red one. Rivals of a colour are all
    other colours; rivals of another attribute are the attributes of the row's other objects.

    Args:
        asked: What one picture was asked to show.
        rivals: Whether to add rivals.
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
