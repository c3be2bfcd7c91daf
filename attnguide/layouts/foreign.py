"""Converts rows of other projects' layout files, known by their keys, to rows of a table. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from attnguide.layouts.boxes import BoxFormat, box_format
from attnguide.layouts.geneval import geneval_row
from attnguide.layouts.words import asked_tag, bare_name, phrase_of, placed_regions
from attnguide.text.parsing import shown


class Boxes:
    """Box format that the user gave for a file, if any; the rest is the file format's default.

    Args:
        format: Name of a :func:`~attnguide.layouts.boxes.box_format`.
        size: ``(height, width)`` in pixels of the pictures that boxes refer to.

    Attributes:
        read: Whether a reader used it, that is, whether the file has boxes.
    """

    def __init__(self, format: str | None = None, size: tuple[int, int] | None = None) -> None:
        self.format, self.size = format, size
        self.read = False

    def over(self, default: BoxFormat) -> BoxFormat:
        """The user's format, completed by the file format's ``default``."""
        self.read = True
        found = box_format(self.format, default) if self.format else default
        return replace(found, size=self.size) if self.size is not None else found


def foreign_row(values: Mapping[str, Any], boxes: Boxes) -> dict[str, Any] | None:
    """Convert a row of another project's file to a row of a table; ``None`` if its keys are those of no known project.

    Raises:
        ValueError: If the row is malformed.
    """
    for keys, read in _READERS.items():
        if all(key in values for key in keys):
            return read(values, boxes)
    return None


def _geneval(values: Mapping[str, Any], boxes: Boxes) -> dict[str, Any]:
    if not isinstance(values["include"], list):
        raise ValueError(f"include must be a list of classes; got {shown(values['include'])}.")
    return geneval_row(values)


def _gligen(values: Mapping[str, Any], boxes: Boxes) -> dict[str, Any]:
    """Row of GLIGEN (https://arxiv.org/abs/2301.07093): ``phrases`` with ``locations``, corners in fractions."""
    phrases, places = _lists(values, "phrases", "locations")
    prompt = _text(values, "prompt", "caption")
    return _row(prompt, phrases, places, boxes.over(BoxFormat("xyxy", "auto")), "locations")


def _llm_grounded(values: Mapping[str, Any], boxes: Boxes) -> dict[str, Any]:
    """Row of LLM-grounded diffusion (https://arxiv.org/abs/2305.13655): ``gen_boxes`` as corner, width, height of 512x512."""
    key = "gen_boxes" if "gen_boxes" in values else "bounding boxes"
    entries = values[key]
    if not isinstance(entries, list):
        raise ValueError(f"{key} must be a list of names with boxes; got {shown(entries)}.")
    pairs = [_named_box(key, entry) for entry in entries]
    format = boxes.over(BoxFormat("xywh", "pixels")).of_size(512, 512)
    prompt = _text(values, "prompt", "caption")
    return _row(prompt, [name for name, _ in pairs], [box for _, box in pairs], format, key)


def _named_box(key: str, entry: Any) -> tuple[str, Any]:
    if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
        return entry["name"], entry.get("bounding_box", entry.get("box"))
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
        return entry[0], entry[1]
    raise ValueError(f"{key} must be names with boxes, like ['a dog', [x, y, width, height]]; got {shown(entry)}.")


def _layout_sam(values: Mapping[str, Any], boxes: Boxes) -> dict[str, Any]:
    """Row of LayoutSAM (https://arxiv.org/abs/2412.03859): captions of the picture and of its boxes."""
    captions, places = _lists(values, "region_captions", "bbox_list")
    prompt = _text(values, "global_caption")
    format = boxes.over(BoxFormat("xyxy", "auto"))
    height, width = values.get("height"), values.get("width")
    if format.size is None and isinstance(height, int) and isinstance(width, int) and _in_pixels(places):
        format = format.of_size(height, width)
    return _row(prompt, captions, places, format, "bbox_list")


def _in_pixels(places: Sequence[Any]) -> bool:
    numbers = [number for place in places if isinstance(place, list) for number in place if isinstance(number, int | float)]
    return max(numbers, default=0) > 1


_READERS: dict[tuple[str, ...], Callable[[Mapping[str, Any], Boxes], dict[str, Any]]] = {
    ("include", "prompt"): _geneval,
    ("phrases", "locations"): _gligen,
    ("gen_boxes",): _llm_grounded,
    ("bounding boxes",): _llm_grounded,
    ("global_caption", "bbox_list", "region_captions"): _layout_sam,
}
"""Keys that a row must have -> its reader."""


def _row(prompt: str, names: Sequence[str], places: Sequence[Any], format: BoxFormat, key: str) -> dict[str, Any]:
    phrases = [phrase_of(prompt, name) for name in names]
    placed = [(phrase, format.fractions(key, place)) for phrase, place in zip(phrases, places, strict=True)]
    return {"prompt": prompt, "regions": placed_regions(prompt, placed), "tags": {"asked": asked_tag(_asked(names, phrases))}}


def _asked(names: Sequence[str], phrases: Sequence[str]) -> list[dict[str, Any]]:
    """One asked object for each phrase, counted as often as it occurs; its label is the name of the first occurrence."""
    found: dict[str, dict[str, Any]] = {}
    for name, phrase in zip(names, phrases, strict=True):
        if phrase in found:
            found[phrase]["count"] += 1
        else:
            found[phrase] = {"label": _label(name, found), "count": 1, "phrase": phrase}
    return list(found.values())


def _label(name: str, others: Mapping[str, Mapping[str, Any]]) -> str:
    label = bare_name(name) or name
    return label if label not in {one["label"] for one in others.values()} else f"{label} ({len(others) + 1})"


def _text(values: Mapping[str, Any], *keys: str) -> str:
    found = next((values[key] for key in keys if isinstance(values.get(key), str)), None)
    if found is None:
        raise ValueError(f"{' or '.join(keys)} must be text; got {shown(values.get(keys[0]))}.")
    return found


def _lists(values: Mapping[str, Any], names: str, places: str) -> tuple[list[str], list[Any]]:
    first, second = values[names], values[places]
    if not isinstance(first, list) or not isinstance(second, list) or not all(isinstance(name, str) for name in first):
        raise ValueError(f"{names} must be a list of texts and {places} one of boxes; got {shown(first)} and {shown(second)}.")
    if len(first) != len(second):
        raise ValueError(f"{names} and {places} must be equally long; got {len(first)} and {len(second)}.")
    return first, second
