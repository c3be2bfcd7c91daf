"""Converts the page's drawing to regions, files and a command line, and checks everything that the browser sends."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import shlex
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnguide.prompt.pairs import find_groups
from attnguide.prompt.regions import prompt_words, rasterise
from attnguide.text.html import png_bytes
from attnguide.text.parsing import parse_json, shown
from attnguide.text.yaml12 import dump_yaml
from attnguide.types import MapSource, Region

MOST_BYTES = 4 * 2**20
"""Most bytes of the drawing that the page sends, and of a file of regions."""

MOST_REGIONS = 32
MOST_PIXELS = 4096 * 4096
"""Most pixels of an uploaded picture."""

_MASK_SIDE = 1024
_PNG = "data:image/png;base64,"
REGIONS_FILE, CONFIG_FILE = "regions.json", "config.yaml"


def phrases(prompt: str) -> list[str]:
    """Phrases of a prompt that the page offers: nouns with their modifiers as the prompt has them, then every single word."""
    spans = [(min(word[0] for word in g.words), max(word[1] for word in g.words)) for g in find_groups(prompt) if g.modifiers]
    groups = [prompt[first:last] for first, last in spans]
    return list(dict.fromkeys([*groups, *(region.phrase for region in prompt_words(prompt))]))


def read_drawing(text: str | None) -> list[Region]:
    """Parse the drawing that the page sends into regions, lowest layer first.

    Raises:
        ValueError: If it is too large, has too many regions or is malformed.
    """
    if not text:
        return []
    if len(text) > MOST_BYTES:
        raise ValueError(f"The drawing must have at most {MOST_BYTES >> 20} MiB; got {len(text) >> 20} MiB.")
    content = parse_json(text)
    given = content.get("regions") if isinstance(content, dict) else None
    if not isinstance(given, list) or len(given) > MOST_REGIONS:
        raise ValueError(f"A drawing has a list of at most {MOST_REGIONS} regions; got {shown(content)}.")
    return [_region(one) for one in given]


def _region(given: Any) -> Region:
    if not isinstance(given, dict) or not isinstance(given.get("phrase"), str):
        raise ValueError(f"A region has a phrase; got {shown(given)}.")
    box, mask = given.get("box"), given.get("mask")
    if mask is not None:
        return Region(given["phrase"], mask=_mask(mask))  # type: ignore[arg-type]
    if box is not None and (not isinstance(box, list) or len(box) != 4):
        raise ValueError(f"A box has four numbers; got {shown(box)}.")
    return Region(given["phrase"], box=tuple(box) if box is not None else None)


def _mask(text: Any) -> NDArray[np.uint8]:
    if not isinstance(text, str) or not text.startswith(_PNG):
        raise ValueError(f"A mask is a PNG as a data URL; got {shown(text)}.")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text[len(_PNG) :], validate=True)), formats=("PNG",)) as picture:
            if max(picture.size) > _MASK_SIDE:
                raise ValueError(f"A mask has at most {_MASK_SIDE} pixels a side; got {picture.width}x{picture.height}.")
            return np.asarray(picture.convert("L"))
    except (binascii.Error, OSError) as error:
        raise ValueError(f"A mask is a PNG as a data URL; this one cannot be read ({error}).") from error


def without_overlaps(regions: Sequence[Region], side: int = 128) -> list[Region]:
    """Regions without overlaps: each loses the cells that later regions cover, and becomes a mask if it loses any.

    Args:
        regions: Regions, lowest layer first.
        side: Side of the masks in cells.
    """
    kept: list[Region] = []
    above = np.zeros((side, side), dtype=np.float32)
    for region in reversed(regions):
        if not region.has_place or region.source is not None:
            kept.append(region)
            continue
        own = rasterise(region, side, side).numpy()
        left = own * (1 - above)
        kept.append(region if np.allclose(left, own) else Region(region.phrase, mask=left))  # type: ignore[arg-type]
        above = np.maximum(above, own)
    return kept[::-1]


def with_source(regions: Sequence[Region], prompt: str, picture: str | None, way: str) -> list[Region]:
    """The regions, those without a place with their attention in a picture as their source.

    Args:
        regions: Regions as drawn; if empty, the noun phrases of several words in the prompt become regions.
        prompt: The prompt.
        picture: Path of the picture; ``None`` leaves the regions as they are.
        way: ``invert`` or ``noise``; any other value leaves the regions as they are.

    Raises:
        ValueError: If the file is too large, or no picture.
    """
    if picture is None or way not in ("invert", "noise"):
        return list(regions)
    check_picture(picture)
    source = MapSource(kind=way, image=Path(picture))  # type: ignore[arg-type]
    chosen = list(regions) or [Region(phrase) for phrase in phrases(prompt) if " " in phrase]
    return [region if region.has_place else Region(region.phrase, source=source) for region in chosen]


def check_picture(path: str) -> None:
    """Check that a file is a picture of a common format with at most :data:`MOST_PIXELS` pixels.

    Raises:
        ValueError: If it is not.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP")) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"A picture has at most {MOST_PIXELS:,} pixels; got {picture.width}x{picture.height}.")
            picture.verify()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"The file is no picture that can be read ({error}).") from error


# ------------------------------------------------------------------------------------------------------------- to take away


def _names(regions: Iterable[Region]) -> list[str | None]:
    """File names of the masks, ``None`` for regions without one."""
    from attnguide.sources.files import map_names

    listed = list(regions)
    names = map_names(listed)
    drawn = [region.mask is not None and region.source is None for region in listed]
    return [f"{name}.png" if is_mask else None for name, is_mask in zip(names, drawn, strict=True)]


def _place(region: Region, mask: str | None) -> str:
    """A region as a value of ``--region``; ``mask`` is the name of its mask's file, if it has one."""
    if mask is not None:
        return f"{region.phrase}={mask}"
    if region.box is not None:
        return f"{region.phrase}={','.join(f'{edge:g}' for edge in region.box)}"
    if region.source is not None:
        return f"{region.phrase}={region.source.kind}:{region.source.image.name if region.source.image else ''}"
    return region.phrase


def config_of(settings: Mapping[str, Any], regions: Sequence[Region]) -> dict[str, Any]:
    """Settings of the page as a configuration of ``attnguide sample``, with masks as files beside it.

    Args:
        settings: ``prompt``, ``model``, ``method``, ``options``, ``seeds``, ``steps``, ``cfg_scale``, ``negative_prompt``.
        regions: Regions as drawn.
    """
    method = [{"name": settings["method"], **settings["options"]}] if settings["method"] != "plain" else []
    return {
        "prompt": settings["prompt"],
        "regions": [_place(region, name) for region, name in zip(regions, _names(regions), strict=True)],
        "methods": method,
        "seed": list(settings["seeds"]),
        "steps": settings["steps"],
        "cfg_scale": settings["cfg_scale"],
        "model": settings["model"],
        **({"negative_prompt": settings["negative_prompt"]} if settings["negative_prompt"] else {}),
    }


def command_line(config: Mapping[str, Any]) -> str:
    """A configuration of :func:`config_of` as a command line of ``attnguide sample``."""
    words = ["attnguide", "sample", config["prompt"]]
    for region in config["regions"]:
        words += ["--region", region]
    for method in config["methods"] or [{"name": "plain"}]:
        words += ["--method", method["name"]]
        for option, value in method.items():
            if option != "name":
                words += [f"--method.{option}", value if isinstance(value, str) else json.dumps(value)]
    words += ["--seed", *map(str, config["seed"]), "--steps", str(config["steps"]), "--cfg-scale", f"{config['cfg_scale']:g}"]
    words += ["--negative-prompt", config["negative_prompt"]] if "negative_prompt" in config else []
    return shlex.join([*words, "--model", config["model"]])


def as_yaml(config: Mapping[str, Any]) -> str:
    """A configuration of :func:`config_of` as YAML for ``attnguide sample --config``."""
    return dump_yaml(dict(config))


def save_drawing(path: Path, drawing: str, config: Mapping[str, Any], regions: Sequence[Region]) -> None:
    """Write a zip file with the drawing, which :func:`load_drawing` reads, the configuration, and the masks that it names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(REGIONS_FILE, drawing or '{"regions": []}')
        archive.writestr(CONFIG_FILE, as_yaml(config))
        for region, name in zip(regions, _names(regions), strict=True):
            if name is not None:
                cells = np.asarray(rasterise(region, 256, 256).numpy() * 255).round().astype(np.uint8)
                archive.writestr(name, png_bytes(Image.fromarray(cells)))


def load_drawing(path: Path) -> str:
    """Read and check the drawing in a file of :func:`save_drawing`, or in a bare ``regions.json``.

    Raises:
        ValueError: If the file holds no valid drawing.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entry = archive.getinfo(REGIONS_FILE)
                if entry.file_size > MOST_BYTES:
                    raise ValueError(f"{REGIONS_FILE} must have at most {MOST_BYTES >> 20} MiB.")
                text = archive.read(entry).decode()
        elif path.stat().st_size > MOST_BYTES:
            raise ValueError(f"A file of regions has at most {MOST_BYTES >> 20} MiB.")
        else:
            text = path.read_text(encoding="utf-8")
    except (KeyError, OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise ValueError(f"The file holds no drawing ({error}).") from error
    read_drawing(text)
    return text


def read_seeds(text: str, most: int = 16) -> list[int]:
    """Parse seeds as typed: ``0 1 2``, ``0, 4`` or ``0..3``.

    Raises:
        ValueError: If a word is no seed or range, or there are more than ``most``.
    """
    found: list[int] = []
    for word in re.split(r"[\s,]+", text.strip()):
        match = re.fullmatch(r"(\d{1,18})(?:\.\.(\d{1,18}))?", word)
        if match is None:
            raise ValueError(f"Seeds are whole numbers or ranges like 0..3; got {shown(word)}.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= most or len(found) + last - first >= most or last < first:
            raise ValueError(f"Seeds are at most {most} numbers; got {shown(text)}.")
        found += range(first, last + 1)
    return found
