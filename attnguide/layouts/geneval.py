"""GenEval's rows (https://arxiv.org/abs/2310.11513): classes, counts, colours and positions, without boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnguide.layouts.words import asked_tag, phrase_of
from attnguide.text.parsing import as_whole, shown

Place = tuple[float, float, float, float]

_MARGIN = 0.05
_SIDES = {
    "left of": ((0.0, 0.15, 0.5, 0.85), (0.5, 0.15, 1.0, 0.85)),
    "right of": ((0.5, 0.15, 1.0, 0.85), (0.0, 0.15, 0.5, 0.85)),
    "above": ((0.15, 0.0, 0.85, 0.5), (0.15, 0.5, 0.85, 1.0)),
    "below": ((0.15, 0.5, 0.85, 1.0), (0.15, 0.0, 0.85, 0.5)),
}
"""Relation -> cells of its first and its second object."""

MOST_COUNT = 16


def geneval_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a row of GenEval to a row of a table, with a box for each instance by rule.

    A single instance gets the middle of the picture, ``(0.2, 0.2, 0.8, 0.8)``. Two objects in a relation get the halves that
    fulfil it. Otherwise the picture is divided into a grid with as many columns as rows or one more, just large enough, whose
    cells the instances take in the order of the prompt. Boxes keep 0.05 from the edges of their cells.

    Raises:
        ValueError: If the row is malformed.
    """
    objects = [_object(one) for one in values["include"]]
    if not objects or not isinstance(values.get("prompt"), str):
        raise ValueError(f"a row of GenEval has a prompt and includes at least one class; got {shown(dict(values))}.")
    relations = [(index, *one["position"]) for index, one in enumerate(objects) if one["position"]]
    boxes = boxes_by_rule([one["count"] for one in objects], relations)
    prompt = values["prompt"]
    asked, regions = [], []
    for one, own in zip(objects, boxes, strict=True):
        phrase = phrase_of(prompt, f"{one['attribute']} {one['noun']}".strip())
        label = f"{one['attribute']} {one['noun']}".strip()
        regions += [{"phrase": phrase, "box": box} for box in own]
        words = {"noun": one["noun"], "attribute": one["attribute"]} if one["attribute"] else {}
        asked.append({"label": label, "count": one["count"], "phrase": phrase, **words})
    stated = [(index, relation, other) for index, relation, other in relations]
    tags = {"category": str(values.get("tag", "")), "asked": asked_tag(asked, stated)}
    return {"prompt": prompt, "regions": regions, "tags": tags}


def _object(told: Any) -> dict[str, Any]:
    name = told.get("class") if isinstance(told, Mapping) else None
    count = as_whole(told.get("count", 1)) if isinstance(told, Mapping) else None
    if not isinstance(name, str) or count is None or not 1 <= count <= MOST_COUNT:
        raise ValueError(f"include must be classes, each with a count from 1 to {MOST_COUNT}; got {shown(told)}.")
    position = told.get("position")
    if position is not None and not (
        isinstance(position, list) and len(position) == 2 and position[0] in _SIDES and as_whole(position[1]) is not None
    ):
        raise ValueError(f"position must be [{'|'.join(_SIDES)}, index of another class]; got {shown(position)}.")
    return {"noun": name, "attribute": str(told.get("color") or ""), "count": count, "position": position}


def boxes_by_rule(counts: Sequence[int], relations: Sequence[tuple[int, str, int]] = ()) -> list[list[Place]]:
    """Boxes for each object's instances; see :func:`geneval_row`.

    Args:
        counts: Number of instances of each object.
        relations: ``(object, relation, other object)``.

    Raises:
        ValueError: If a relation names an object that does not exist.
    """
    for first, _, second in relations:
        if not 0 <= second < len(counts) or first == second:
            raise ValueError(f"position must be that of another of the {len(counts)} classes; got {second}.")
    total = sum(counts)
    if total == 1:
        return [[(0.2, 0.2, 0.8, 0.8)]]
    if total == 2 and len(relations) == 1:
        first, relation, second = relations[0]
        cells = dict(zip((first, second), _SIDES[relation], strict=True))
        return [[_inset(cells[index])] for index in range(2)]
    columns = next(side for side in range(1, total + 1) if side * side >= total)
    rows = -(-total // columns)
    cells_left = [(i % columns / columns, i // columns / rows) for i in range(total)]
    found, start = [], 0
    for count in counts:
        own = cells_left[start : start + count]
        found.append([_inset((x, y, x + 1 / columns, y + 1 / rows)) for x, y in own])
        start += count
    return found


def _inset(cell: Place) -> Place:
    x0, y0, x1, y1 = cell
    a, b, c, d = (round(edge, 6) for edge in (x0 + _MARGIN, y0 + _MARGIN, x1 - _MARGIN, y1 - _MARGIN))
    return a, b, c, d
