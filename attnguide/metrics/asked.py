"""What a row asks its picture to show: read from its caption, its regions, or what its table says."""

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
"""Side of the grid on which a map's bounds are found."""

_ARTICLE = re.compile(r"^(a|an|the|one)\s+", re.IGNORECASE)
_WORDS = {
    "left of": r"(?:(?:to|on) )?(?:the )?left of",
    "right of": r"(?:(?:to|on) )?(?:the )?right of",
    "above": r"above|over|on top of",
    "below": r"below|under|beneath|underneath",
}
_STATED = re.compile("|".join(rf"(?P<r{place}> (?:{words}) )" for place, words in enumerate(_WORDS.values())), re.IGNORECASE)


def asked_of(sample: Sample) -> Asked:
    """What a row asks for.

    In this order: the tag ``asked``, ``{"objects": [{"label": "dog", "count": 2, "noun": ..., "attribute": ..., "phrase": ...},
    ...], "relations": [[0, "left of", 1]]}``; a caption of the shapes world; else one object for each phrase of the regions, as
    many of it as regions have it, with relations that the prompt states between two phrases. Boxes are those of the regions
    whose phrase names the object. A label that begins with a colour has that as its attribute.

    Raises:
        ValueError: If the tag says something impossible.
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
    """A phrase without its article: what a detector is asked for."""
    return _ARTICLE.sub("", " ".join(phrase.split())) or phrase


def stated_relations(prompt: str, labels: Sequence[str]) -> list[tuple[int, str, int]]:
    """Relations that a prompt states word for word: ``a cat to the left of the dog``.

    Args:
        prompt: The row's.
        labels: Of its objects.

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
    """Position of the longest label that text in small letters has where the pattern says."""
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
    """Boxes of the regions that name an object: ``red circle`` is also ``a red circle`` and ``red circles``."""
    pattern = re.compile(rf"\b{re.escape(label)}(e?s)?\b", re.IGNORECASE)
    return _boxes_of([region for region in regions if pattern.search(region.phrase)])


def _boxes_of(regions: Sequence[Region]) -> tuple[Box, ...]:
    return tuple(box for region in regions if (box := _box(region)) is not None)


def _box(region: Region) -> Box | None:
    """A region's box; for a map taken from another picture, the bounds of its largest connected part above one half."""
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
