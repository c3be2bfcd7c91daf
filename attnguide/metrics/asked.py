"""Derives what a row asks its picture to show, from its tag ``asked``, its caption or its regions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from attnguide.judges.attributes import color_words
from attnguide.judges.base import RELATIONS, Asked, AskedObject
from attnguide.judges.names import ASKED_TAG as ASKED_TAG
from attnguide.judges.names import RELATION_TAG as RELATION_TAG
from attnguide.judges.shapes import asked_from_caption
from attnguide.prompt.regions import rasterise
from attnguide.text.parsing import as_whole, shown
from attnguide.types import Box, Region, Sample

_CELLS = 64
"""Side of the grid on which the bounds of a source's map are found."""

_ARTICLE = re.compile(r"^(a|an|the|one)\s+", re.IGNORECASE)
_WORDS = {
    "left of": r"(?:(?:to|on) )?(?:the )?left of",
    "right of": r"(?:(?:to|on) )?(?:the )?right of",
    "above": r"above|over|on top of",
    "below": r"below|under|beneath|underneath",
}
_STATED = re.compile("|".join(rf"(?P<r{place}> (?:{words}) )" for place, words in enumerate(_WORDS.values())), re.IGNORECASE)


def asked_of(sample: Sample) -> Asked:
    """What a row asks its picture to show: objects with counts and boxes, and relations.

    The first of these that the row has: the tag ``asked``, ``{"objects": [{"label": "dog", "count": 2, "noun": ...,
    "attribute": ..., "phrase": ...}, ...], "relations": [[0, "left of", 1]]}``; a prompt that is a caption of the shapes world;
    its regions, one object for each phrase, counted as often as regions have it, with the relations that the prompt states
    between two phrases. Boxes are those of the regions whose phrase names the object. A colour at the start of a label is its
    attribute.

    Raises:
        ValueError: If the tag ``asked`` is invalid.
    """
    told = sample.tags.get(ASKED_TAG)
    if told:
        return _from_tag(told, sample)
    caption = asked_from_caption(sample.text)
    if caption is not None:
        objects = tuple(replace(one, boxes=_boxes(one.label, sample.regions)) for one in caption.objects)
        return replace(caption, objects=objects)
    return _from_regions(sample)


def _from_regions(sample: Sample) -> Asked:
    labelled: dict[str, list[Region]] = {}
    for region in sample.regions:
        labelled.setdefault(label_of(region.phrase), []).append(region)
    objects = tuple(
        AskedObject(label, len(own), tuple(box for region in own if (box := _box(region)) is not None), **color_words(label))
        for label, own in labelled.items()
    )
    labels, named = list(labelled), sample.tags.get(RELATION_TAG)
    if isinstance(named, str) and named in RELATIONS and len(labels) > 1:
        return Asked(sample.text, objects, ((0, named, 1),))
    return Asked(sample.text, objects, tuple(stated_relations(sample.text, labels)))


def label_of(phrase: str) -> str:
    """A phrase without its article, as the label that a detector searches for."""
    return _ARTICLE.sub("", " ".join(phrase.split())) or phrase


def stated_relations(prompt: str, labels: Sequence[str]) -> list[tuple[int, str, int]]:
    """Relations that a prompt states word for word: ``a cat to the left of the dog``.

    Args:
        prompt: The row's prompt.
        labels: Labels of its objects.

    Example:
        >>> stated_relations("A fox under a table and an owl near it", ["fox", "table", "owl"])
        [(0, 'below', 1)]
    """
    text, found = " ".join(prompt.lower().split()), []
    for stated in _STATED.finditer(text):
        relation = list(_WORDS)[int(str(stated.lastgroup)[1:])]
        before, after = text[: stated.start()], _ARTICLE.sub("", text[stated.end() :])
        first = _longest(labels, r"(?:^|.*\W){}$", before)
        second = _longest(labels, r"{}(?:\W|$)", after)
        if first is not None and second is not None and first != second:
            found.append((first, relation, second))
    return found


def _longest(labels: Sequence[str], pattern: str, text: str) -> int | None:
    """Index of the longest label that matches the pattern in a lower-case text; ``None`` if none does."""
    spelt = [" ".join(label.lower().split()) for label in labels]
    fitting = [i for i, label in enumerate(spelt) if label in text and re.match(pattern.format(re.escape(label)), text)]
    return max(fitting, key=lambda index: len(spelt[index]), default=None)


def _from_tag(told: Any, sample: Sample) -> Asked:
    try:
        content = json.loads(told) if isinstance(told, str) else told
        objects = tuple(_object(one, sample.regions) for one in content["objects"])
        relations = tuple((int(a), str(relation), int(b)) for a, relation, b in content.get("relations", ()))
        return Asked(sample.text, objects, relations)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"tag {ASKED_TAG!r} of row {sample.id!r} says no objects and relations: {shown(told)} ({error})."
        ) from error


def _object(told: Mapping[str, Any], regions: Sequence[Region]) -> AskedObject:
    label, count = str(told["label"]), as_whole(told.get("count", 1))
    if count is None:
        raise ValueError(f"count must be a whole number; got {shown(told['count'])}")
    words = {key: str(told[key]) for key in ("noun", "attribute") if told.get(key)} or color_words(label)
    phrase = told.get("phrase")
    own = _boxes(label, regions) if phrase is None else _boxes_of([r for r in regions if r.phrase == phrase])
    return AskedObject(label, count, own, **words)


def _boxes(label: str, regions: Sequence[Region]) -> tuple[Box, ...]:
    """Boxes of the regions whose phrase contains a label: ``red circle`` also in ``a red circle`` and ``red circles``."""
    pattern = re.compile(rf"\b{re.escape(label)}(e?s)?\b", re.IGNORECASE)
    return _boxes_of([region for region in regions if pattern.search(region.phrase)])


def _boxes_of(regions: Sequence[Region]) -> tuple[Box, ...]:
    return tuple(box for region in regions if (box := _box(region)) is not None)


def _box(region: Region) -> Box | None:
    """A region's box; for a region with a source, the bounds of the largest connected part of its map at 0.5 or above."""
    if region.source is None or region.mask is None:
        return region.box
    parts, count = ndimage.label(rasterise(region, _CELLS, _CELLS).numpy() >= 0.5)
    if not count:
        return None
    largest = 1 + int(np.argmax(ndimage.sum_labels(parts > 0, parts, range(1, count + 1))))
    rows, columns = np.nonzero(parts == largest)
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    x0, y0, x1, y1 = (float(edge) / _CELLS for edge in edges)
    return x0, y0, x1, y1
