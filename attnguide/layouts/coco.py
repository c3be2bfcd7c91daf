"""COCO's instances (https://arxiv.org/abs/1405.0312): boxes and classes, from which prompts are made by rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attnguide.layouts.boxes import BoxFormat
from attnguide.layouts.words import amount, asked_tag, listed, plural
from attnguide.text.parsing import as_whole, shown

DEFAULT = BoxFormat("xywh", "pixels")


def coco_rows(content: Mapping[str, Any], boxes: BoxFormat) -> Iterator[dict[str, Any]]:
    """One row for each picture that has instances, with a prompt such as ``two dogs and a ball`` and a region per instance.

    Crowds are left out. Annotations without a box, such as captions, are ignored.

    Args:
        content: Parsed file with ``images``, ``annotations`` and ``categories``.
        boxes: Format of the boxes; the size is taken from each picture unless given.

    Raises:
        ValueError: If an entry is malformed.
    """
    try:
        names = {one["id"]: str(one["name"]) for one in content.get("categories", ())}
        instances: dict[Any, list[tuple[str, Any]]] = {}
        for one in content["annotations"]:
            if "bbox" in one and not one.get("iscrowd"):
                instances.setdefault(one["image_id"], []).append((names[one["category_id"]], one["bbox"]))
        pictures = [(one["id"], as_whole(one.get("height")), as_whole(one.get("width"))) for one in content["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"COCO's instances need images, annotations and categories that agree; missing {error}.") from error
    for id, height, width in pictures:
        if id in instances:
            sized = boxes.of_size(height, width) if height and width else boxes
            yield _row(id, instances[id], sized)


def _row(id: Any, instances: list[tuple[str, Any]], boxes: BoxFormat) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for name, _ in instances:
        counts[name] = counts.get(name, 0) + 1
    prompt = listed([amount(name, count) for name, count in counts.items()])
    phrases = {name: name if count == 1 else plural(name) for name, count in counts.items()}
    regions = [{"phrase": phrases[name], "box": boxes.fractions(f"bbox of image {shown(id)}", box)} for name, box in instances]
    asked = [{"label": name, "count": count, "phrase": phrases[name]} for name, count in counts.items()]
    return {"id": f"coco{id}", "prompt": prompt, "regions": regions, "tags": {"asked": asked_tag(asked)}}
