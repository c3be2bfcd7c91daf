"""Files of a row's input pictures: paths, checks before a model is loaded, and reading. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attnguide.prompt.masks import mask_values, open_picture
from attnguide.prompt.regions import absolute_region
from attnguide.types import Sample

if TYPE_CHECKING:
    from PIL import Image

Sizes = dict[str, tuple[int, int]]
"""Width and height of checked pictures by path."""

_ANEW = 128
"""Smallest 8-bit value of a mask at which a pixel is drawn anew."""


def absolute_row(sample: Sample, folder: Path | None = None) -> Sample:
    """The row with absolute paths of masks and pictures, so that a saved configuration works from any folder.

    Args:
        sample: The row.
        folder: Base of relative paths; the working directory when ``None``.
    """
    changes: dict[str, object] = {}
    if any(region.mask is not None or region.source is not None for region in sample.regions):
        changes["regions"] = tuple(absolute_region(region, folder) for region in sample.regions)
    for name in ("init_image", "inpaint_mask"):
        if (path := getattr(sample, name)) is not None:
            changes[name] = _absolute(path, folder)
    if sample.control:
        changes["control"] = tuple(replace(one, image=_absolute(one.image, folder)) for one in sample.control)
    return replace(sample, **changes) if changes else sample  # type: ignore[arg-type]


def _absolute(path: str, folder: Path | None) -> str:
    return str(((folder or Path()) / path).absolute())


def check_inputs(sample: Sample, sizes: Sizes) -> None:
    """Refuse unreadable input pictures, a mask that is black or of another size, and a strength that leaves no step.

    Args:
        sample: The row.
        sizes: Sizes of pictures checked before; new ones are added.

    Raises:
        ValueError: Naming the field and the file.
    """
    for name, path in _files(sample):
        if path not in sizes:
            picture = open_picture(Path(path), name)
            if name == "inpaint_mask" and np.asarray(_grey(picture)).max() < _ANEW:
                raise ValueError(f"inpaint_mask file '{path}' is black everywhere: nothing would be drawn anew; white is.")
            sizes[path] = picture.size
    if sample.init_image is None:
        return
    if sample.inpaint_mask is not None and sizes[sample.inpaint_mask] != sizes[sample.init_image]:
        mask, picture = (f"{w}x{h}" for w, h in (sizes[sample.inpaint_mask], sizes[sample.init_image]))
        raise ValueError(f"inpaint_mask must have the size of its init_image, {picture} pixels; got {mask}.")
    if sample.denoising_steps < 1:
        raise ValueError(
            f"strength {sample.noised:g} of {sample.steps} steps leaves none to make; expected at least {1 / sample.steps:.2g}."
        )


def _files(sample: Sample) -> Iterator[tuple[str, str]]:
    for name in ("init_image", "inpaint_mask"):
        if (path := getattr(sample, name)) is not None:
            yield name, path
    for one in sample.control:
        yield f"control {one.type}", one.image


def picture_at(path: str, size: tuple[int, int], what: str) -> Image.Image:
    """Read a picture in RGB, stretched to a row's size.

    Args:
        path: Path of a file in any format that Pillow reads.
        size: ``(height, width)`` in pixels.
        what: Name of the picture in error messages.

    Raises:
        ValueError: If the file is missing or not a picture.
    """
    height, width = size
    return fitted(open_picture(Path(path), what), height, width)


def fitted(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The picture in RGB, stretched to a size in pixels; see :func:`in_rgb`."""
    return _stretched(in_rgb(picture), height, width)


def _stretched(picture: Image.Image, height: int, width: int) -> Image.Image:
    from PIL import Image

    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)


def in_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB of 8 bits: transparent parts become white, 16 bits and numbers in [0, 1] are scaled."""
    from PIL import Image

    if picture.mode.startswith(("I", "F")):  # Pillow would clip all above 255 to white
        return _grey(picture).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return picture.convert("RGB")


def _grey(picture: Image.Image) -> Image.Image:
    """A mask's values in 8 bits."""
    from PIL import Image

    return Image.fromarray(np.round(mask_values("", picture) * 255).astype(np.uint8))


def mask_at(path: str, size: tuple[int, int]) -> Image.Image:
    """Read an inpainting mask in black and white at a row's size, white where a pixel is drawn anew.

    Args:
        path: Path of a file in any format that Pillow reads; a pixel is drawn anew where the alpha (if it varies, else the
            luminance) is at least a half.
        size: ``(height, width)`` in pixels.

    Raises:
        ValueError: If the file is missing or not a picture.
    """
    grey = _stretched(_grey(open_picture(Path(path), "inpaint_mask")), *size)
    return grey.point(lambda value: 255 if value >= _ANEW else 0)
