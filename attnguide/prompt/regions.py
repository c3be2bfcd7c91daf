"""A region's place to a mask at any map size, and a region's place from text, file or mapping."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnguide.prompt.tokens import find_phrase
from attnguide.prompt.words import find_words, occurrences
from attnguide.types import SOURCE_KINDS, Blob, Box, MapSource, Region

if TYPE_CHECKING:  # torch loads where a tensor is made, so that bad places are reported without waiting for it
    from jaxtyping import Float
    from torch import Tensor

_Cells = NDArray[np.float64]

_STRIPS = 8
"""Horizontal strips per map cell when a polygon is filled."""


def rasterise(region: Region, height: int, width: int) -> Float[Tensor, "height width"]:
    """Draw a region's place as a soft mask: the mean of the place over each cell, in [0, 1].

    Boxes are exact: values times cell area sum to the box's area. Polygons are filled by the even-odd rule. A blob is the cell
    mean of a Gaussian whose peak is 1. Masks are stretched to the size, by area averaging where they shrink and bilinearly
    where they grow, each axis for itself.

    Args:
        region: With a place.
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        float32 on the CPU.

    Raises:
        ValueError: If the region has no place, its source has not been recorded, a side is not positive, or the mask is
            unusable (see :func:`load_mask`).
    """
    import torch

    return torch.from_numpy(_cells(region, height, width).astype(np.float32))


def load_mask(path: str | Path) -> Float[Tensor, "height width"]:
    """Read a picture as a mask in [0, 1]: its alpha if that varies, else its luminance; or an attention map kept as ``.npy``.

    A map is what :class:`~attnguide.callbacks.AttentionMapsLogger` or ``attnguide maps`` left behind: numbers of any range,
    stretched to [0, 1]; the mean over its steps where it has them (``steps height width``).

    Args:
        path: Any format Pillow reads, any size, 8 or 16 bits; or ``.npy``.

    Returns:
        float32 on the CPU, at the picture's size.

    Raises:
        ValueError: If the file is missing, not a picture, or zero everywhere.
    """
    import torch

    return torch.from_numpy(_read_mask(Path(path)).astype(np.float32))


def check_region(region: Region, prompt: str | None = None) -> None:
    """Find what is wrong with a region before any model is loaded.

    Args:
        region: With or without a place.
        prompt: If given, the phrase must occur in it (unless the region names token positions).

    Raises:
        ValueError: If the mask or the source's picture is unusable, the place has no area or leaves the picture, or the phrase
            does not occur.
    """
    if prompt is not None and region.token_indices is None:
        find_phrase(prompt, region.phrase, region.occurrence)
    if region.source is not None and region.mask is None:
        _check_source(region, region.source, prompt)
        return
    if region.polygon is not None:
        outside = [corner for corner in region.polygon if not all(0 <= value <= 1 for value in corner)]
        if outside:
            raise ValueError(f"Region {region.phrase!r}: polygon corners must lie in [0, 1]; got {outside[0]}.")
    if region.has_place and not _cells(region, 64, 64).any():
        raise ValueError(f"Region {region.phrase!r} has no area ({describe_place(region)}).")


def prompt_words(prompt: str) -> tuple[Region, ...]:
    """Every word of a prompt as a region without a place, each in its own occurrence."""
    regions = []
    for span in find_words(prompt):
        word = prompt[slice(*span)]
        found = occurrences(prompt, word)
        if span in found:  # not so behind a stray accent
            regions.append(Region(word, occurrence=found.index(span)))
    return tuple(regions)


def source_region(region: Region) -> Region:
    """The words whose map a region's source gives, as a region of the source's prompt without a place.

    Raises:
        ValueError: If the region has no source.
    """
    if region.source is None:
        raise ValueError(f"Region {region.phrase!r} has no source.")
    if region.source.phrase is not None:
        return Region(region.source.phrase)
    # Positions count in the region's own prompt.
    tokens = region.token_indices if region.source.prompt is None else None
    return Region(region.phrase, occurrence=region.occurrence, token_indices=tokens)


def absolute_region(region: Region, folder: Path | None = None) -> Region:
    """The region with the paths of its files made absolute, so that a kept configuration works from any folder.

    Args:
        region: Any.
        folder: What relative paths start from; the working directory when ``None``.
    """
    base = folder or Path()
    if isinstance(region.mask, Path):
        region = replace(region, mask=(base / region.mask).absolute())
    if region.source is not None and region.source.image is not None:
        region = replace(region, source=replace(region.source, image=(base / region.source.image).absolute()))
    return region


def parse_region(text: str) -> Region:
    """Read a region as it is written on a command line.

    ``PHRASE=x0,y0,x1,y1`` (fractions from the top left), ``PHRASE=mask.png`` (or a map, ``map.npy``), or ``PHRASE`` alone;
    ``PHRASE[1]`` means the phrase's second occurrence. The last ``=`` divides. ``PHRASE=seed:7``, ``PHRASE=prompt:TEXT``,
    ``PHRASE=invert:picture.png`` and ``PHRASE=noise:picture.png`` take the phrase's attention in another picture
    (:class:`~attnguide.types.MapSource`).

    Raises:
        ValueError: If the text is none of these, or the box is out of range.
    """
    named = re.fullmatch(rf"(.*?)=\s*({'|'.join(SOURCE_KINDS)}):(.*)", text, re.DOTALL)
    phrase, divider, place = (named[1], "=", named[3]) if named else text.rpartition("=")
    if not divider:
        phrase, place = text, ""
    phrase, place = phrase.strip(), place.strip()
    occurrence: int | None = None
    if picked := re.fullmatch(r"(.*?)\s*\[(\d+)\]", phrase, re.DOTALL):
        phrase, occurrence = picked[1], int(picked[2])
    if not phrase or (divider and not place):
        raise ValueError(f"A region is written PHRASE, PHRASE=x0,y0,x1,y1 or PHRASE=mask.png; got {text!r}.")
    if not divider:
        return Region(phrase, occurrence=occurrence)
    if named:
        return Region(phrase, source=_parse_source(phrase, named[2], place), occurrence=occurrence)
    numbers = [_number(part) for part in place.split(",")]
    if all(number is None for number in numbers) or re.search(r"\.[A-Za-z]\w*$", place):
        return Region(phrase, mask=Path(place).expanduser(), occurrence=occurrence)
    if len(numbers) != 4 or None in numbers:
        raise ValueError(f"Region {phrase!r}: box must be four numbers x0,y0,x1,y1; got {place!r}.")
    x0, y0, x1, y1 = (number for number in numbers if number is not None)
    return Region(phrase, box=(x0, y0, x1, y1), occurrence=occurrence)


def _parse_source(phrase: str, kind: str, place: str) -> MapSource:
    values: dict[str, Any] = {"kind": kind, ("image" if kind in ("invert", "noise") else kind): place}
    if kind == "seed":
        if not re.fullmatch(r"\d{1,18}", place):
            raise ValueError(f"Region {phrase!r}: seed: must be followed by a whole number of at least 0; got {place!r}.")
        values["seed"] = int(place)
    return _read_source(phrase, "source", values)


def region_to_dict(region: Region) -> dict[str, Any]:
    """A region as plain values for YAML or JSON, defaults left out; :func:`region_from_dict` undoes it.

    What was recorded from a source is left out: the source says it.

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
    if region.occurrence is not None:
        plain["occurrence"] = region.occurrence
    if region.weight != 1:
        plain["weight"] = region.weight
    return plain


def region_from_dict(values: Mapping[str, Any]) -> Region:
    """A region from plain values, as :func:`region_to_dict` writes them.

    Raises:
        ValueError: If a key is unknown or a value has the wrong type, length or range.
    """
    known = ("phrase", *_READERS)
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise ValueError(f"A region has no key {unknown[0]!r}; it has {', '.join(known)}.")
    given = {key: value for key, value in values.items() if value is not None}
    phrase = given.get("phrase", "")
    if not isinstance(phrase, str):
        raise ValueError(f"A region's phrase must be text; got {phrase!r}.")
    read: dict[str, Any] = {key: _READERS[key](phrase, key, value) for key, value in given.items() if key != "phrase"}
    return Region(phrase, **read)


def _cells(region: Region, height: int, width: int) -> _Cells:
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1; got {height}x{width}.")
    if region.box is not None:
        return _box_cells(region.box, height, width)
    if region.polygon is not None:
        return _polygon_cells(region.polygon, height, width)
    if region.blob is not None:
        return _blob_cells(region.blob, height, width)
    if region.mask is not None:
        mask = _mask_values(region, region.mask)
        rows, columns = _resampling(mask.shape[0], height), _resampling(mask.shape[1], width)
        return np.clip(rows @ mask @ columns.T, 0, 1)
    if region.source is not None:
        raise ValueError(
            f"Region {region.phrase!r}: the map of its source {region.source.kind!r} has not been recorded; "
            "sample the row with sample_rows, or record it with record_sources."
        )
    raise ValueError(f"Region {region.phrase!r} has no place; give it a box, polygon, blob or mask.")


def _box_cells(box: Box, height: int, width: int) -> _Cells:
    x0, y0, x1, y1 = box
    rows = _below(np.array([y0, y1]) * height, height)
    columns = _below(np.array([x0, x1]) * width, width)
    return np.outer(rows[1] - rows[0], columns[1] - columns[0])


def _below(cuts: NDArray[np.floating[Any]], count: int) -> _Cells:
    """Share of each of ``count`` unit cells that lies below each cut; ``cuts cells``."""
    return np.clip(cuts[:, None] - np.arange(count), 0, 1)


def _polygon_cells(corners: Sequence[tuple[float, float]], height: int, width: int) -> _Cells:
    """Sum exact horizontal extents over strips that are cut at every corner, which makes upright rectangles exact."""
    x0, y0 = np.array(corners, dtype=float).T * np.array([[width], [height]])
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    cuts = np.unique(np.concatenate([np.linspace(0, height, height * _STRIPS + 1), np.clip(y0, 0, height)]))
    middle = ((cuts[1:] + cuts[:-1]) / 2)[:, None]
    crosses = (y0 <= middle) != (y1 <= middle)
    slope = (x1 - x0) / np.where(y1 == y0, 1, y1 - y0)
    crossings = np.sort(np.where(crosses, x0 + (middle - y0) * slope, np.inf), axis=1)[:, : crosses.sum(axis=1).max()]
    filled = np.zeros((len(middle), width))
    for index, cut in enumerate(crossings.T):  # inside between the first and second crossing, third and fourth, ...
        filled += np.where(np.isfinite(cut)[:, None], _below(cut, width), 0) * (1 if index % 2 else -1)
    cells = np.zeros((height, width))
    np.add.at(cells, np.floor(middle[:, 0]).astype(int), filled * np.diff(cuts)[:, None])
    return np.clip(cells, 0, 1)


def _blob_cells(blob: Blob, height: int, width: int) -> _Cells:
    x, y, blur_x, blur_y = blob
    return np.outer(_gaussian_means(y, blur_y, height), _gaussian_means(x, blur_x, width))


def _gaussian_means(centre: float, blur: float, count: int) -> _Cells:
    integral = np.array([math.erf((edge / count - centre) / (blur * math.sqrt(2))) for edge in range(count + 1)])
    return np.diff(integral) * blur * math.sqrt(math.pi / 2) * count


def _resampling(size: int, count: int) -> _Cells:
    """Weights ``count size`` that bring an axis of ``size`` values to ``count``; each row sums to 1."""
    if count <= size:
        return np.diff(_below(np.arange(count + 1) * (size / count), size), axis=0) * (count / size)
    at = np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, size - 1)
    return np.clip(1 - np.abs(at[:, None] - np.arange(size)), 0, 1)


def _mask_values(region: Region, place: Tensor | Path) -> _Cells:
    if isinstance(place, str | Path):
        return _read_mask(Path(place))
    mask = np.asarray(place.detach().cpu().double() if hasattr(place, "detach") else place, dtype=np.float64)
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"Region {region.phrase!r}: mask must have axes height width; got the shape {mask.shape}.")
    if not (mask.min() >= 0 and mask.max() <= 1):
        raise ValueError(f"Region {region.phrase!r}: mask must lie in [0, 1]; got {mask.min():g} to {mask.max():g}.")
    return mask


def open_picture(path: Path, what: str = "Picture") -> Any:
    """A picture's file as Pillow reads it, turned upright.

    Args:
        path: Any format Pillow reads.
        what: Begins the error messages.

    Raises:
        ValueError: If the file is missing or not a picture.
    """
    from PIL import Image, ImageOps

    if not path.is_file():
        raise ValueError(f"{what} file '{path}' does not exist.")
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{what} file '{path}' is not a picture that can be read ({type(error).__name__}).") from error


def _check_source(region: Region, source: MapSource, prompt: str | None) -> None:
    words, text = source_region(region), source.prompt if source.prompt is not None else prompt
    try:
        if text is not None and words.token_indices is None:
            find_phrase(text, words.phrase, words.occurrence)
        if source.image is not None:
            open_picture(source.image)
    except ValueError as error:
        raise ValueError(f"Region {region.phrase!r}: source: {error}") from error


def _read_map(path: Path) -> _Cells:
    """An attention map's file, stretched to [0, 1]; a flat map is 1 everywhere."""
    try:
        values = np.load(path, allow_pickle=False)
        cells = np.asarray(values, dtype=np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"Map file '{path}' is not an array that can be read ({type(error).__name__}).") from error
    cells = cells.mean(0) if cells.ndim == 3 and len(cells) else cells
    if cells.ndim != 2 or not cells.size or not np.isfinite(cells).all():
        raise ValueError(
            f"Map file '{path}' must hold finite numbers with axes height width or steps height width; got {values.shape}."
        )
    low, high = cells.min(), cells.max()
    flat = high - low <= 1e-6 * max(abs(high), abs(low))  # but for single precision
    return np.ones_like(cells) if flat else (cells - low) / (high - low)


def _read_mask(path: Path) -> _Cells:
    if path.suffix.lower() == ".npy" and path.is_file():
        return _read_map(path)
    mask = _picture_values(open_picture(path, "Mask"))
    if not mask.any():
        raise ValueError(f"Mask file '{path}' is empty: neither its alpha nor its luminance is above 0 anywhere.")
    return mask


def _picture_values(picture: Any) -> _Cells:
    if picture.mode.startswith("I"):  # Pillow would clip 16 bits to 8
        return np.clip(np.asarray(picture, dtype=float) / 65535, 0, 1)
    if picture.mode == "F":
        return np.clip(np.nan_to_num(np.asarray(picture, dtype=float)), 0, 1)
    if "A" in picture.getbands() or "transparency" in picture.info:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"), dtype=float)
        if alpha.min() < alpha.max():
            return alpha / 255
    return np.asarray(picture.convert("RGB").convert("L"), dtype=float) / 255


def place_name(region: Region) -> str:
    """``box``, ``polygon``, ``blob``, ``mask`` or ``source``: how a region says its place."""
    return next(name for name in ("box", "polygon", "blob", "mask", "source") if getattr(region, name) is not None)


def describe_place(region: Region) -> str:
    """A region's place in a few words, for messages."""
    if region.box is not None or region.blob is not None:
        return f"{place_name(region)} ({', '.join(map(_digits, region.box or region.blob or ()))})"
    if region.polygon is not None:
        corners = " ".join(f"({_digits(x)}, {_digits(y)})" for x, y in region.polygon[:4])
        return f"polygon {corners}{' ...' if region.polygon[4:] else ''}"
    if isinstance(region.mask, str | Path):
        return f"mask '{region.mask}'"
    return f"mask of shape {tuple(getattr(region.mask, 'shape', ()))}"


def _digits(value: float) -> str:
    """Two decimals, or as many as keep the edges of a narrow place apart."""
    return f"{value:.2f}" if abs(value - round(value, 2)) < 1e-9 else f"{value:.5g}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_numbers(phrase: str, key: str, value: Any, length: int) -> tuple[float, ...]:
    if isinstance(value, list | tuple) and len(value) == length and all(_is_number(number) for number in value):
        return tuple(float(number) for number in value)
    raise ValueError(f"Region {phrase!r}: {key} must be a list of {length} numbers; got {value!r}.")


def _read_four(phrase: str, key: str, value: Any) -> tuple[float, ...]:
    return _read_numbers(phrase, key, value, 4)


def _read_polygon(phrase: str, key: str, value: Any) -> tuple[tuple[float, ...], ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"Region {phrase!r}: {key} must be a list of corners [x, y]; got {value!r}.")
    return tuple(_read_numbers(phrase, "polygon corner", corner, 2) for corner in value)


def _read_mask_path(phrase: str, key: str, value: Any) -> Path:
    if isinstance(value, str | Path) and str(value):
        return Path(value).expanduser()
    raise ValueError(f"Region {phrase!r}: {key} must be the path of a picture; got {value!r}.")


def _read_integer(phrase: str, key: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"Region {phrase!r}: {key} must be a whole number; got {value!r}.")


def _read_weight(phrase: str, key: str, value: Any) -> float:
    if _is_number(value):
        return float(value)
    raise ValueError(f"Region {phrase!r}: {key} must be a number; got {value!r}.")


def _read_integers(phrase: str, key: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, list | tuple):
        return tuple(_read_integer(phrase, key, item) for item in value)
    raise ValueError(f"Region {phrase!r}: {key} must be a list of whole numbers; got {value!r}.")


_SOURCE_DEFAULTS = {f.name: None if f.default is MISSING else f.default for f in fields(MapSource)}


def _read_text(phrase: str, key: str, value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError(f"Region {phrase!r}: {key} must be text; got {value!r}.")


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
            f"Region {phrase!r}: source must be a mapping with a kind of {', '.join(SOURCE_KINDS)}; got {value!r}."
        )
    unknown = [str(name) for name in value if name not in _SOURCE_READERS]
    if unknown:
        raise ValueError(f"Region {phrase!r}: a source has no key {unknown[0]!r}; it has {', '.join(_SOURCE_READERS)}.")
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
}
