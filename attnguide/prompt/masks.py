"""Masks from files, pictures and arrays, as numbers in [0, 1]: white is inside, black outside."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnguide.text.fields import MOST_CELLS
from attnguide.text.parsing import shown

if TYPE_CHECKING:  # torch loads where a tensor is made
    from jaxtyping import Float
    from torch import Tensor

Cells = NDArray[np.float64]

_GREY = 24
"""Largest difference between 8-bit channels of a picture that counts as grey."""


def load_mask(path: str | Path) -> Float[Tensor, "height width"]:
    """Read a picture as a mask in [0, 1]: its alpha if that varies, else its luminance; or an attention map kept as ``.npy``.

    A map is a file of :class:`~attnguide.callbacks.AttentionMapsLogger` or ``attnguide maps``: numbers of any range, which are
    stretched to [0, 1], after averaging over steps where it has them (``steps height width``).

    Args:
        path: Picture in any format that Pillow reads, any size, 8 or 16 bits; or ``.npy`` array.

    Returns:
        float32 on the CPU, at the picture's size.

    Raises:
        ValueError: If the file is missing, not a picture, or zero everywhere.
    """
    import torch

    return torch.from_numpy(_read_mask(Path(path)).astype(np.float32))


def mask_values(phrase: str, place: Any) -> Cells:
    """A region's mask as numbers in [0, 1], ``height width``.

    Args:
        phrase: The region's phrase, for error messages.
        place: Path, Pillow picture, or array ``height width``: numbers in [0, 1], bools, or ``uint8``, where 255 is inside (or
            1, if the largest value is 1).

    Raises:
        ValueError: If the mask cannot be read, has other axes, or leaves [0, 1].
    """
    if isinstance(place, str | Path):
        return _read_mask(Path(place))
    if hasattr(place, "getbands"):
        return _picture_values(place)
    try:
        mask = np.asarray(_on_cpu(place))
    except (RuntimeError, TypeError, ValueError) as error:  # a tensor that holds no values, or not as rows and columns
        raise ValueError(f"Region {phrase!r}: mask must be an array of numbers; got {shown(place)}.") from error
    if mask.ndim != 2 or not mask.size or mask.dtype.kind not in "biuf":
        raise ValueError(
            f"Region {phrase!r}: mask must have axes height width; got the shape {tuple(mask.shape)} of {mask.dtype}."
        )
    bytes_ = mask.dtype == np.uint8 and mask.max() > 1
    mask = mask.astype(np.float64) / (255 if bytes_ else 1)
    if not (mask.min() >= 0 and mask.max() <= 1):
        raise ValueError(f"Region {phrase!r}: mask must lie in [0, 1]; got {mask.min():g} to {mask.max():g}.")
    return mask


def _on_cpu(place: Any) -> Any:
    """A tensor on the CPU in a dtype that numpy has (no bfloat16); other values as they are."""
    if not hasattr(place, "detach"):
        return place
    return place.detach().cpu().double() if place.is_floating_point() else place.detach().cpu()


def check_mask(phrase: str, place: Any) -> None:
    """Warn of a mask picture that is probably a mistake: coloured paint, or dark paint on a white sheet.

    Raises:
        ValueError: If the mask is unusable.
    """
    if isinstance(place, Path):
        if place.suffix.lower() == ".npy":
            return
        name, place = f"Mask file '{place}'", open_picture(place, "Mask")
    elif hasattr(place, "getbands"):
        name = f"Region {phrase!r}: its mask"
    else:
        return
    if (told := _odd(place)) is not None:
        warnings.warn(f"{name} {told}", UserWarning, stacklevel=2)


def _odd(picture: Any) -> str | None:
    """Warning about a picture as a mask; ``None`` if nothing is odd."""
    if picture.mode.startswith(("I", "F")) or _has_shape(picture):
        return None
    small = picture.convert("RGB").resize((min(picture.width, 256), min(picture.height, 256)), 0)
    colours = np.asarray(small, dtype=np.int16)
    if (spread := colours.max(2) - colours.min(2)).max() > _GREY:
        return (
            f"has colours on {(spread > _GREY).mean():.0%} of it; how bright a colour is says how far it is inside: white is "
            "inside, black outside."
        )
    grey = colours[..., 0]
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if (border > 200).all() and (grey < 56).any():
        return "looks inverted, dark paint on a white sheet; white is inside, black outside."
    return None


def open_picture(path: Path, what: str = "Picture") -> Any:
    """Read a picture with Pillow, turned upright by its EXIF orientation.

    Args:
        path: Path of a file in any format that Pillow reads.
        what: Name of the picture in error messages.

    Raises:
        ValueError: If the file is missing or not a picture.
    """
    from PIL import Image, ImageOps

    try:
        if path.is_dir():
            raise ValueError(f"{what} file '{path}' is a folder; expected a picture.")
        if not path.is_file():
            raise ValueError(f"{what} file '{path}' does not exist.")
    except OSError as error:
        raise ValueError(f"{what} file {shown(str(path))} cannot be read: {error.strerror}.") from error
    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if file.width * file.height > MOST_CELLS:
                raise _TooLarge(
                    f"{what} file '{path}' must have at most {MOST_CELLS:,} pixels; got {file.width}x{file.height}."
                )
            return ImageOps.exif_transpose(file)
    except _TooLarge:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"{what} file '{path}' must have at most {MOST_CELLS:,} pixels; got more.") from error
    except (OSError, SyntaxError, ValueError, MemoryError, OverflowError) as error:
        raise ValueError(f"{what} file '{path}' is not a picture that can be read ({type(error).__name__}).") from error


class _TooLarge(ValueError):
    """A picture of too many pixels, which is not decoded."""


def _read_map(path: Path) -> Cells:
    """Read a ``.npy`` attention map, stretched to [0, 1]; a flat map becomes 1 everywhere."""
    try:
        # mmap checks the header against the file's size before any values are read.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(values, np.ndarray) or values.size > MOST_CELLS:
            raise ValueError("no single array of a map's size")
        if values.dtype.kind not in "biuf":
            raise TypeError(f"numbers of the type {values.dtype}")
        cells = np.asarray(values, dtype=np.float64)
    except (OSError, ValueError, EOFError, TypeError, OverflowError, MemoryError, SyntaxError) as error:
        raise ValueError(f"Map file '{path}' is not an array that can be read ({type(error).__name__}).") from error
    cells = cells.mean(0) if cells.ndim == 3 and len(cells) else cells
    if cells.ndim != 2 or not cells.size or not np.isfinite(cells).all():
        raise ValueError(
            f"Map file '{path}' must hold finite numbers with axes height width or steps height width; got {values.shape}."
        )
    low, high = cells.min(), cells.max()
    flat = high - low <= 1e-6 * max(abs(high), abs(low))  # but for single precision
    return np.ones_like(cells) if flat else (cells - low) / (high - low)


def _read_mask(path: Path) -> Cells:
    if path.suffix.lower() == ".npy" and path.is_file():
        return _read_map(path)
    mask = _picture_values(open_picture(path, "Mask"))
    if not mask.any():
        raise ValueError(f"Mask file '{path}' is empty: neither its alpha nor its luminance is above 0 anywhere.")
    return mask


def _picture_values(picture: Any) -> Cells:
    if picture.mode.startswith("I"):  # Pillow would clip 16 bits to 8
        return np.clip(np.asarray(picture, dtype=float) / 65535, 0, 1)
    if picture.mode == "F":
        return np.clip(np.nan_to_num(np.asarray(picture, dtype=float)), 0, 1)
    if _has_shape(picture):
        return np.asarray(picture.convert("RGBA").getchannel("A"), dtype=float) / 255
    return np.asarray(picture.convert("RGB").convert("L"), dtype=float) / 255


def _has_shape(picture: Any) -> bool:
    """Whether a picture's alpha varies, so that it is the mask."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return False
    low, high = picture.convert("RGBA").getchannel("A").getextrema()
    return bool(low < high)
