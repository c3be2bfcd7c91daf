"""Parses what a picture should show from a caption of the shapes world or a row of a layout file."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from attnguide.shapes.captions import NUMBERS, RELATION_WORDS, plural
from attnguide.shapes.layouts import Layout
from attnguide.shapes.scene import BACKGROUNDS, COLORS, RELATIONS, SHAPES, Relation
from attnguide.types import Box


@dataclass(frozen=True)
class Expectation:
    """Objects, counts, boxes, relation and background that a picture of the shapes world is asked to show.

    Attributes:
        objects: Distinct ``(colour, shape)`` pairs, in the order of the prompt.
        counts: Number of instances of each object, at least 1; 1 each by default.
        relation: Relation of the first object to the second, if the prompt states one.
        background: Key of ``BACKGROUNDS``, if the prompt names a background.
        boxes: Boxes of each object's instances, as fractions; empty if no places are asked for.

    Raises:
        ValueError: If a word is not of this world, or the lengths disagree.
    """

    objects: tuple[tuple[str, str], ...]
    counts: tuple[int, ...] = ()
    relation: Relation | None = None
    background: str | None = None
    boxes: tuple[tuple[Box, ...], ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.counts:
            object.__setattr__(self, "counts", (1,) * len(self.objects))
        if not self.objects or len(set(self.objects)) != len(self.objects):
            raise ValueError(f"objects must be distinct (colour, shape) pairs, at least one; got {self.objects}.")
        for color, shape in self.objects:
            if color not in COLORS or shape not in SHAPES:
                raise ValueError(f"objects must be (colour, shape) pairs of this world; got {(color, shape)}.")
        if len(self.counts) != len(self.objects) or min(self.counts) < 1:
            raise ValueError(f"counts must be one positive number per object ({len(self.objects)}); got {self.counts}.")
        if self.boxes and len(self.boxes) != len(self.objects):
            raise ValueError(f"boxes must be one tuple per object ({len(self.objects)}); got {len(self.boxes)}.")
        if self.relation is not None and (self.relation not in RELATIONS or len(self.objects) != 2):
            raise ValueError(f"relation must be one of {', '.join(RELATIONS)}, of 2 objects; got {self.relation!r}.")
        if self.background is not None and self.background not in BACKGROUNDS:
            raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}; got {self.background!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """``"colour shape"`` of each distinct object."""
        return tuple(f"{color} {shape}" for color, shape in self.objects)


_AMOUNTS = {"a": 1, "an": 1} | {word: number for number, word in NUMBERS.items()}
_SINGULARS = {shape: shape for shape in SHAPES} | {plural(shape): shape for shape in SHAPES}
_RELATIONS: dict[str, Relation] = {words: relation for relation in RELATIONS for words in RELATION_WORDS[relation]}
_BACKGROUND = re.compile(rf"^(.*) on an? ({'|'.join(BACKGROUNDS)}) background$")
# The longest wording first: "left of" also ends "to the left of".
_RELATION = re.compile(rf"^(.*?) ({'|'.join(sorted(_RELATIONS, key=len, reverse=True))}) (.*)$")
_GROUP = re.compile(rf"^({'|'.join(_AMOUNTS)}) ({'|'.join(COLORS)}) ({'|'.join(_SINGULARS)})$")


def _group(phrase: str) -> tuple[tuple[str, str], int] | None:
    found = _GROUP.match(phrase.strip())
    if found is None:
        return None
    amount, color, shape = found.groups()
    return (color, _SINGULARS[shape]), _AMOUNTS[amount]


def expectation_from_prompt(text: str) -> Expectation | None:
    """Read a caption of this world, the inverse of :func:`attnguide.shapes.captions.caption`.

    Args:
        text: Prompt; case, spaces and a final full stop do not matter.

    Returns:
        ``None`` for text that is not a caption of this world.

    Example:
        >>> expectation_from_prompt("three green stars on a white background").counts
        (3,)
        >>> expectation_from_prompt("a photo of a cat") is None
        True
    """
    text = " ".join(text.lower().split()).removesuffix(".")
    text = re.sub(r"^a (picture|drawing) of ", "", text)
    background = None
    if found := _BACKGROUND.match(text):
        text, background = found.groups()
    relation = None
    if found := _RELATION.match(text):
        phrases = [found.group(1), found.group(3)]
        relation = _RELATIONS[found.group(2)]
    else:
        phrases = re.split(r", and | and | with |, ", text)
    groups = [_group(phrase) for phrase in phrases]
    counts: Counter[tuple[str, str]] = Counter()
    for group in groups:
        if group is None:
            return None
        counts[group[0]] += group[1]
    if relation is not None and len(counts) != 2:
        return None
    return Expectation(tuple(counts), tuple(counts.values()), relation, background)


def expectation_from_layout(row: Layout) -> Expectation:
    """Expectation of a row of a layout file: objects, counts, boxes and relation from its columns, background from its prompt.

    Raises:
        ValueError: If an object of the row is not of this world.
    """
    boxes: dict[str, list[Box]] = {}
    for name, box in zip(row.names, row.boxes, strict=True):
        boxes.setdefault(name, []).append(box)
    said = expectation_from_prompt(row.prompt)
    objects = [tuple(name.split(" ", 1)) for name in boxes]
    if any(len(pair) != 2 for pair in objects):
        raise ValueError(f"Row {row.id!r} must name objects by colour and shape; got {', '.join(boxes)}.")
    return Expectation(
        objects=tuple(objects),  # type: ignore[arg-type]
        counts=tuple(len(own) for own in boxes.values()),
        relation=row.relation,
        background=said.background if said else None,
        boxes=tuple(tuple(own) for own in boxes.values()),
    )
