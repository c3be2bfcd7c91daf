"""Files of a row's input pictures: found, looked at before a model is loaded, and read. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from attnguide.prompt.masks import open_picture
from attnguide.prompt.regions import absolute_region
from attnguide.types import Sample

if TYPE_CHECKING:
    from PIL import Image

Sizes = dict[str, tuple[int, int]]
"""Path -> width and height of pictures that were looked at."""


def absolute_row(sample: Sample, folder: Path | None = None) -> Sample:
    """The row with the paths of its masks and pictures made absolute, so that a kept configuration works from any folder.

    Args:
        sample: Any.
        folder: What relative paths start from; the working directory when ``None``.
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
    """Refuse input pictures that cannot be read, a mask of another size than its picture, and a strength without a step.

    Args:
        sample: The row.
        sizes: Of pictures that were read before; filled in here.

    Raises:
        ValueError: Naming the field and the file.
    """
    for name, path in _files(sample):
        if path not in sizes:
            sizes[path] = open_picture(Path(path), name).size
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
    """A picture's file in colour, stretched to a row's size.

    Args:
        path: Any format Pillow reads.
        size: ``(height, width)`` in pixels.
        what: Begins the error messages.

    Raises:
        ValueError: If the file is missing or not a picture.
    """
    from PIL import Image

    picture: Image.Image = open_picture(Path(path), what).convert("RGB")
    height, width = size
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)


def mask_at(path: str, size: tuple[int, int]) -> Image.Image:
    """A mask's file in black and white at a row's size: white where a pixel is drawn anew.

    Args:
        path: Any format Pillow reads; at half of its brightness and above a pixel is drawn anew.
        size: ``(height, width)`` in pixels.

    Raises:
        ValueError: If the file is missing or not a picture.
    """
    grey = picture_at(path, size, "inpaint_mask").convert("L")
    return grey.point(lambda value: 255 if value >= 128 else 0)
