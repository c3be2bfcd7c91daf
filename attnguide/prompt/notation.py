"""Regions parsed from text, mappings and plain values, and written back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from attnguide.text.parsing import as_real, as_whole, real_number, shown, unpacked, whole_number
from attnguide.types import SOURCE_KINDS, MapSource, Region


def parse_region(text: str) -> Region:
    """Parse a region in the notation of the command line.

    ``PHRASE=x0,y0,x1,y1`` (fractions from the top left), ``PHRASE=mask.png`` (or a map, ``map.npy``), or ``PHRASE`` alone;
    ``PHRASE[1]`` means the phrase's second occurrence. The last ``=`` divides. ``PHRASE=seed:7``, ``PHRASE=prompt:TEXT``,
    ``PHRASE=invert:picture.png`` and ``PHRASE=noise:picture.png`` take the phrase's attention in another picture
    (:class:`~attnguide.types.MapSource`).

    Raises:
        ValueError: If the text has another form, or the box is out of range.
    """
    named = re.fullmatch(rf"(.*?)=\s*({'|'.join(SOURCE_KINDS)}):(.*)", text, re.DOTALL)
    phrase, divider, place = (named[1], "=", named[3]) if named else text.rpartition("=")
    if not divider:
        phrase, place = text, ""
    phrase, place = phrase.strip(), place.strip()
    occurrence: int | None = None
    if picked := re.fullmatch(r"(.*?)\s*\[([0-9]{1,9})\]", phrase, re.DOTALL):
        phrase, occurrence = picked[1], int(picked[2])
    if not phrase or (divider and not place):
        raise ValueError(f"A region is written PHRASE, PHRASE=x0,y0,x1,y1 or PHRASE=mask.png; got {shown(text)}.")
    if not divider:
        return Region(phrase, occurrence=occurrence)
    if named:
        return Region(phrase, source=_parse_source(phrase, named[2], place), occurrence=occurrence)
    numbers = [real_number(part) for part in place.split(",")]
    if all(number is None for number in numbers) or re.search(r"\.[A-Za-z]\w*$", place):
        return Region(phrase, mask=Path(place).expanduser(), occurrence=occurrence)
    if len(numbers) != 4 or None in numbers:
        raise ValueError(f"Region {phrase!r}: box must be four numbers x0,y0,x1,y1; got {shown(place)}.")
    x0, y0, x1, y1 = (number for number in numbers if number is not None)
    return Region(phrase, box=(x0, y0, x1, y1), occurrence=occurrence)


def _parse_source(phrase: str, kind: str, place: str) -> MapSource:
    values: dict[str, Any] = {"kind": kind, ("image" if kind in ("invert", "noise") else kind): place}
    if kind == "seed":
        seed = whole_number(place)
        if seed is None or seed < 0:
            raise ValueError(f"Region {phrase!r}: seed: must be followed by a whole number of at least 0; got {shown(place)}.")
        values["seed"] = seed
    return _read_source(phrase, "source", values)


def region_to_dict(region: Region) -> dict[str, Any]:
    """A region as plain values for YAML or JSON, without defaults; :func:`region_from_dict` reads it back.

    A mask recorded from a source is left out, since the source is written.

    Raises:
        ValueError: If the mask is a tensor: only the path of a picture can be written down.
    """
    if region.source is None and region.mask is not None and not isinstance(region.mask, str | Path):
        raise ValueError(
            f"Region {region.phrase!r}: a mask tensor cannot be written to a file; save it as a picture, give its path."
        )
    plain: dict[str, Any] = {"phrase": region.phrase}
    for name in ("box", "blob", "token_indices"):
        if getattr(region, name) is not None:
            plain[name] = list(getattr(region, name))
    if region.polygon is not None:
        plain["polygon"] = [list(corner) for corner in region.polygon]
    if region.source is not None:
        given = {name: getattr(region.source, name) for name, default in _SOURCE_DEFAULTS.items()}
        told = {name: value for name, value in given.items() if value != _SOURCE_DEFAULTS[name]}
        plain["source"] = {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}
    elif region.mask is not None:
        plain["mask"] = str(region.mask)
    if region.weight != 1:
        plain["weight"] = region.weight
    for name in ("occurrence", "prompt", "negative_prompt"):
        if getattr(region, name) is not None:
            plain[name] = getattr(region, name)
    return plain


def region_from_dict(values: Mapping[str, Any]) -> Region:
    """A region from plain values, as :func:`region_to_dict` writes them.

    Raises:
        ValueError: If a key is unknown or a value has the wrong type, length or range.
    """
    known = ("phrase", *_READERS)
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise ValueError(f"A region has no key {shown(unknown[0])}; it has {', '.join(known)}.")
    given = {key: value for key, value in values.items() if value is not None}
    phrase = given.get("phrase", "")
    if not isinstance(phrase, str):
        raise ValueError(f"A region's phrase must be text; got {shown(phrase)}.")
    read: dict[str, Any] = {key: _READERS[key](phrase, key, value) for key, value in given.items() if key != "phrase"}
    return Region(phrase, **read)


def regions_from_places(places: Mapping[str, Any]) -> tuple[Region, ...]:
    """Regions of a mapping from phrases to places.

    Args:
        places: Phrase -> a box ``(x0, y0, x1, y1)`` as fractions, the path of a mask, a picture or array as mask, a
            :class:`~attnguide.types.MapSource`, a region, a mapping as :func:`region_from_dict` reads it without its phrase,
            ``None`` for no place; or a list of these, each for a further occurrence of the phrase where it has them.

    Raises:
        ValueError: Naming phrase and place.
    """
    return tuple(_placed(phrase, place) for phrase, given in places.items() for place in _several(given))


def _several(given: Any) -> list[Any]:
    """Places of a phrase: a list of boxes, paths or masks is several places, a list of numbers one box."""
    if isinstance(given, list) and not all(as_real(item) is not None for item in given):
        return given
    return [given]


def _placed(phrase: str, place: Any) -> Region:
    if not isinstance(phrase, str):
        raise ValueError(f"regions must be a mapping from phrases to places; got the phrase {shown(phrase)}.")
    if place is None or isinstance(place, Region):
        return Region(phrase) if place is None else place
    if isinstance(place, MapSource):
        return Region(phrase, source=place)
    if isinstance(place, Mapping):
        return region_from_dict({"phrase": phrase, **place})
    if isinstance(place, str) and not _is_path(place):
        return parse_region(f"{phrase}={place}")
    if isinstance(place, str | Path):
        return Region(phrase, mask=Path(place).expanduser())
    if hasattr(place, "getbands") or (hasattr(place, "shape") and getattr(place, "ndim", 0) != 1):
        return Region(phrase, mask=place)
    numbers: Any = unpacked(place)
    if isinstance(numbers, list | tuple) and len(numbers) == 4 and all(as_real(number) is not None for number in numbers):
        return Region(phrase, box=(numbers[0], numbers[1], numbers[2], numbers[3]))
    raise ValueError(f"Region {phrase!r}: a place must be x0,y0,x1,y1, a path, a mask or None; got {shown(place)}.")


def _is_path(text: str) -> bool:
    """Whether a text is a path, and neither a box nor a source in the command line's notation."""
    return re.match(rf"({'|'.join(SOURCE_KINDS)}):", text) is None and any(real_number(x) is None for x in text.split(","))


def _read_numbers(phrase: str, key: str, value: Any, length: int) -> tuple[float, ...]:
    if isinstance(value, list | tuple) and len(value) == length:
        found = tuple(map(as_real, value))
        if None not in found:
            return tuple(number for number in found if number is not None)
    raise ValueError(f"Region {phrase!r}: {key} must be a list of {length} numbers; got {shown(value)}.")


def _read_four(phrase: str, key: str, value: Any) -> tuple[float, ...]:
    return _read_numbers(phrase, key, value, 4)


def _read_polygon(phrase: str, key: str, value: Any) -> tuple[tuple[float, ...], ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"Region {phrase!r}: {key} must be a list of corners [x, y]; got {shown(value)}.")
    return tuple(_read_numbers(phrase, "polygon corner", corner, 2) for corner in value)


def _read_mask_path(phrase: str, key: str, value: Any) -> Path:
    if isinstance(value, str | Path) and str(value):
        return Path(value).expanduser()
    raise ValueError(f"Region {phrase!r}: {key} must be the path of a picture; got {shown(value)}.")


def _read_integer(phrase: str, key: str, value: Any) -> int:
    if (number := as_whole(value)) is not None:
        return number
    raise ValueError(f"Region {phrase!r}: {key} must be a whole number; got {shown(value)}.")


def _read_weight(phrase: str, key: str, value: Any) -> float:
    if (number := as_real(value)) is not None:
        return number
    raise ValueError(f"Region {phrase!r}: {key} must be a number; got {shown(value)}.")


def _read_integers(phrase: str, key: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, list | tuple):
        return tuple(_read_integer(phrase, key, item) for item in value)
    raise ValueError(f"Region {phrase!r}: {key} must be a list of whole numbers; got {shown(value)}.")


_SOURCE_DEFAULTS = {f.name: None if f.default is MISSING else f.default for f in fields(MapSource)}


def _read_text(phrase: str, key: str, value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError(f"Region {phrase!r}: {key} must be text; got {shown(value)}.")


def _read_prompt(phrase: str, key: str, value: Any) -> str:
    """A prompt, which may be the empty text."""
    return value if value == "" else _read_text(phrase, key, value)


_SOURCE_READERS = {
    "kind": _read_text,
    "seed": _read_integer,
    "prompt": _read_text,
    "phrase": _read_text,
    "image": _read_mask_path,
    "start": _read_weight,
    "stop": _read_weight,
    "threshold": _read_weight,
    "cfg_scale": _read_weight,
    "iterations": _read_integer,
}


def _read_source(phrase: str, key: str, value: Any) -> MapSource:
    if isinstance(value, MapSource):
        return value
    if not isinstance(value, Mapping) or "kind" not in value:
        raise ValueError(
            f"Region {phrase!r}: source must be a mapping with a kind of {', '.join(SOURCE_KINDS)}; got {shown(value)}."
        )
    unknown = [str(name) for name in value if name not in _SOURCE_READERS]
    if unknown:
        raise ValueError(f"Region {phrase!r}: a source has no key {shown(unknown[0])}; it has {', '.join(_SOURCE_READERS)}.")
    given = {name: item for name, item in value.items() if item is not None}
    read: dict[str, Any] = {name: _SOURCE_READERS[name](phrase, f"source {name}", item) for name, item in given.items()}
    try:
        return MapSource(**read)
    except ValueError as error:
        raise ValueError(f"Region {phrase!r}: {error}") from error


_READERS = {
    "box": _read_four,
    "polygon": _read_polygon,
    "blob": _read_four,
    "mask": _read_mask_path,
    "source": _read_source,
    "occurrence": _read_integer,
    "token_indices": _read_integers,
    "weight": _read_weight,
    "prompt": _read_prompt,
    "negative_prompt": _read_prompt,
}
