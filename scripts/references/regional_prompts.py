"""Regional-Prompting-FLUX: its mask over joint attention, as the pipeline makes it before it draws noise.

The published code draws masks by nearest cells, and has no row's prompt in the masked half; ours is compared without it, on
masks of the size of the map.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attnguide.injection.regional_masks import joint_mask
from attnguide.injection.regional_prompts import RegionalPrompts
from attnguide.types import Region
from references.base import Comparison, Reference, compared
from references.boxes import Watched, random_boxes
from references.foreign import load
from references.tensors import targets

SIDE, LENGTH = 12, 5
"""Of the map, and positions of a text."""


def _pipeline() -> SimpleNamespace:
    """Stands for theirs as far as its masks; what comes after them ends the call."""

    def states(**_: object) -> tuple[Tensor, None, None]:
        return torch.zeros(1, LENGTH, 4), None, None

    def enough(*_: object) -> None:
        raise RuntimeError("the masks are made")

    network = SimpleNamespace(device="cpu", dtype=torch.float32, config=SimpleNamespace(in_channels=64))
    return SimpleNamespace(transformer=network, vae_scale_factor=1, encode_prompt=states, prepare_latents=enough)


def _published(clone: Path, masks: list[Tensor]) -> Tensor:
    """Their mask for these regions, bool, ``positions positions``."""
    watched = Watched()
    call = load(clone / "pipeline_flux_regional.py", ["__call__"], {"torch": watched})["__call__"]
    given: dict[str, Any] = {"regional_prompts": ["a"] * len(masks), "regional_masks": masks}
    made = watched.during(lambda: call(_pipeline(), prompt="a", width=SIDE, height=SIDE, joint_attention_kwargs=given))
    return next(made)


def _ours(regions: list[Region], background: str | None) -> Tensor:
    """The same, whose first text is the row's prompt."""
    method, aim = RegionalPrompts(background=background), targets(regions)
    texts = len(regions) + (background is not None)
    method._lengths = (LENGTH,) * (1 + texts)
    found = method.texts_of(aim, [0], SIDE, SIDE, torch.device("cpu"))
    positions, cells = LENGTH * (1 + texts), SIDE * SIDE
    return joint_mask(found, positions + cells, range(positions, positions + cells), range(positions), "own")[0, 0]


def compare(clone: Path) -> Iterator[Comparison]:
    """Boxes that may meet, with a text for what they leave and without."""
    for seed in range(8):
        boxes = random_boxes(2, seed)
        regions = [Region(phrase, box=box) for phrase, box in zip(("red cat", "blue ball"), boxes, strict=True)]
        drawn = list(targets(regions).binary_masks(SIDE, SIDE)[0].float())
        for background in (None, "a photo"):
            outside = [] if background is None else [1 - torch.stack(drawn).amax(0)]
            theirs, ours = _published(clone, [*drawn, *outside]), _ours(regions, background)[LENGTH:, LENGTH:]
            name = "with" if outside else "without"
            yield compared(f"mask, boxes {seed}, {name} a background", theirs.double(), ours.double())


REFERENCE = Reference("regional_prompts", "antonioo-c/Regional-Prompting-FLUX", compare)
