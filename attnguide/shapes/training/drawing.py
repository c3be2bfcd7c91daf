"""Draws training scenes: pictures, captions as token ids, and labels of image tokens.

It imports no torch, so that drawing processes start quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int8, Int16, UInt8
from tokenizers import Tokenizer

from attnguide.shapes.captions import caption
from attnguide.shapes.renderer import object_masks, render
from attnguide.shapes.scene import BACKGROUNDS, COLORS, SHAPES, Scene, random_scene

FIRST_TRAINING_SEED = 1_000_000
"""First scene seed of training; lower seeds are for tests, layouts and examples."""

WORDINGS = 8
"""Captions per scene; training draws one of them each time."""

TOKENS_A_SIDE = 8
"""Image tokens along a side of the joint-attention model's latents."""

NAMES = (("none", *SHAPES), (*COLORS, *BACKGROUNDS))
"""Class names of :func:`token_contents`: of shapes, and of colours."""

Tokenize = Callable[[list[str]], Int16[np.ndarray, "captions tokens"]]


def token_contents(scene: Scene) -> Int8[np.ndarray, "tokens 2"]:
    """Shape and colour class of the object that covers each image token, as indices into :data:`NAMES`.

    A token has the classes of the object that covers most of it, if that is a quarter or more, else those of the background.
    """
    masks = object_masks(scene, 4 * TOKENS_A_SIDE)
    cover = masks.reshape(len(masks), TOKENS_A_SIDE, 4, TOKENS_A_SIDE, 4).mean((2, 4)).reshape(len(masks), -1)
    most, share = cover.argmax(0), cover.max(0)
    shapes = np.array([1 + SHAPES.index(obj.shape) for obj in scene.objects])[most]
    colors = np.array([[*COLORS].index(obj.color) for obj in scene.objects])[most]
    ground = len(COLORS) + [*BACKGROUNDS].index(scene.background)
    found: np.ndarray = np.stack([np.where(share < 0.25, 0, shapes), np.where(share < 0.25, ground, colors)], -1)
    return found.astype(np.int8)


def captions_of(scenes: list[Scene], first: int) -> list[str]:
    """:data:`WORDINGS` captions of each scene; ``first`` is the number of the first scene."""
    return [caption(scene, WORDINGS * (first + index) + way) for index, scene in enumerate(scenes) for way in range(WORDINGS)]


def training_scenes(start: int, stop: int) -> list[Scene]:
    """Training scenes with numbers from ``start`` to below ``stop``."""
    return [random_scene(FIRST_TRAINING_SEED + number) for number in range(start, stop)]


class Reader:
    """Converts captions to token ids, padded or truncated to one length; can be pickled to other processes.

    Args:
        tokenizer: A fast tokenizer of transformers, whose ``model_max_length`` is the length.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer: Tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        length = tokenizer.model_max_length
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)

    def __call__(self, captions: list[str]) -> Int16[np.ndarray, "captions tokens"]:
        return np.array([read.ids for read in self._tokenizer.encode_batch(captions)], dtype=np.int16)


@dataclass(frozen=True)
class Drawn:
    """Consecutive training scenes, drawn but not encoded.

    Attributes:
        pixels: Pictures.
        contents: :func:`token_contents` of each scene.
        ids: Name of a tokenizer's ids -> token ids, ``scenes wordings tokens``.
    """

    pixels: UInt8[np.ndarray, "scenes height width 3"]
    contents: Int8[np.ndarray, "scenes tokens 2"]
    ids: dict[str, Int16[np.ndarray, "scenes wordings tokens"]]


def draw_scenes(stretch: tuple[int, int], tokenize: Mapping[str, Tokenize]) -> Drawn:
    """Draw consecutive training scenes.

    Args:
        stretch: First scene number, and the number after the last.
        tokenize: Name of the ids -> function from captions to ids.
    """
    scenes = training_scenes(*stretch)
    said = captions_of(scenes, stretch[0])
    return Drawn(
        np.stack([np.asarray(render(scene)) for scene in scenes]),
        np.stack([token_contents(scene) for scene in scenes]),
        {name: make(said).reshape(len(scenes), WORDINGS, -1) for name, make in tokenize.items()},
    )
