"""CLIP or SigLIP as judge: similarity of texts and pictures, and picture quality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from attnguide.judges.base import Asked, Judge, Seen, check_equally_many
from attnguide.judges.hub import opened
from attnguide.types import Box

_ANTONYMS = ("Good photo.", "Bad photo.")
"""Pair of prompts of CLIP-IQA (https://arxiv.org/abs/2207.12396)."""

_SMALLEST = 0.03
"""Least side of a box, as a fraction, whose crop is scored."""


class ClipJudge(Judge):
    """Cosine similarity of texts and pictures under a dual encoder, and picture quality as CLIP-IQA has it.

    * ``clip``: prompt against picture, ``max(cos, 0)``: CLIPScore (https://arxiv.org/abs/2104.08718) without its factor.
    * ``clip_region``: each label against the crop of the picture to its box, ``max(cos, 0)``, mean over boxes.
    * ``clip_iqa``: share of "Good photo." against "Bad photo." for the picture, a softmax over the two at temperature 0.01.

    Args:
        model: Folder or hub id of a CLIP or SigLIP model.
        quality: Whether to give ``clip_iqa``.

    Raises:
        ValueError: If the model cannot be opened or has no encoders of texts and pictures.
    """

    name = "clip"

    def __init__(self, model: str, *, quality: bool = False) -> None:
        self.network, self.processor = opened(self.name, model, _load)
        self.quality = quality

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    def look(self, pictures: Sequence[Image.Image], asked: Sequence[Asked]) -> list[Seen | None]:
        check_equally_many(pictures, asked)
        return [Seen(scores=dict(self._scores(picture, one))) for picture, one in zip(pictures, asked, strict=True)]

    def _scores(self, picture: Image.Image, asked: Asked) -> Iterable[tuple[str, float]]:
        placed = [(one.label, box) for one in asked.objects for box in one.boxes if _can_be_told(box)]
        crops = self._pictures([picture, *(cropped(picture, box) for _, box in placed)])
        if asked.prompt.strip():
            yield "clip", max(0.0, float(crops[0] @ self._texts([asked.prompt])[0]))
        if placed:
            fits = (crops[1:] * self._texts([label for label, _ in placed])).sum(1)
            yield "clip_region", fmean(max(0.0, value) for value in fits.tolist())
        if self.quality:
            yield "clip_iqa", float((100 * crops[:1] @ self._texts(_ANTONYMS).T).softmax(-1)[0, 0])

    @torch.no_grad()
    def _pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit vectors of pictures, ``batch features``."""
        inputs = self.processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
        return _unit(self.network.get_image_features(**inputs.to(self.network.device)))

    @torch.no_grad()
    def _texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts, ``batch features``; long ones are cut at the model's length."""
        inputs = self.processor(text=list(texts), return_tensors="pt", padding="max_length", truncation=True)
        return _unit(self.network.get_text_features(**inputs.to(self.network.device)))


def cropped(picture: Image.Image, box: Box) -> Image.Image:
    """The part of a picture in a box of fractions, at least one pixel."""
    x0, y0, x1, y1 = box
    left, top = min(int(x0 * picture.width), picture.width - 1), min(int(y0 * picture.height), picture.height - 1)
    right, bottom = max(round(x1 * picture.width), left + 1), max(round(y1 * picture.height), top + 1)
    return picture.crop((left, top, right, bottom))


def _can_be_told(box: Box) -> bool:
    return min(box[2] - box[0], box[3] - box[1]) >= _SMALLEST


def _unit(features: Any) -> Tensor:
    """Features normalised to length 1; newer versions of transformers return them inside an output object."""
    tensor: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(tensor.float(), dim=-1)


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoProcessor

    network = AutoModel.from_pretrained(name).float().eval()
    for method in ("get_image_features", "get_text_features"):
        if not hasattr(network, method):
            raise ValueError(f"{type(network).__name__} compares no texts with pictures")
    return network, AutoProcessor.from_pretrained(name)
