"""Self-Cross for Stable Diffusion 3, with quirks="reference": the loss of a first step. Its kernel is float32, hence 1e-7."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.guidance.self_cross import SelfCross
from attnguide.types import Region
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import HEADS, mean_map, random_maps, step, targets

SIDE = 12
SITES = [Site("block", kind, SIDE, SIDE, HEADS, "block", 1) for kind in ("cross", "self")]  # type: ignore[arg-type]
HELPERS = ("fn_smoothing_func", "fn_get_topk", "fn_get_otsu_mask", "fn_clean_mask")


def _published(clone: Path) -> Any:
    """Their loss of a step, as a function of a pipeline."""
    smoothing = load(clone / "utils3" / "gaussian_smoothing.py", ["GaussianSmoothing"])
    known = load(clone / "utils3" / "attn_utils.py", HELPERS, {**smoothing, "cv2": importlib.import_module("cv2")})
    return load(clone / "pipelines" / "sd3pipline.py", ["fn_compute_loss"], {**known, "random": random})["fn_compute_loss"]


def _store(cross: Tensor, own: Tensor) -> SimpleNamespace:
    """Stands for what their pipeline keeps of attention."""
    return SimpleNamespace(aggregate_attention=lambda from_where, is_cross: cross if is_cross else own)


def _maps(seed: int, words: Sequence[int]) -> AttentionMaps:
    """Random maps; of even seeds each word has much of a quarter of the picture, so that what its cells look at counts."""
    maps = random_maps(SITES, seed, sharpness=2.0 + seed / 2, coarse=4)
    if seed % 2:
        return maps
    cross = SITES[0]
    raised = maps.probs[cross].detach().unflatten(2, (SIDE, SIDE)).clone()
    for number, position in enumerate(words):
        down, across = SIDE // 2 * (number // 2), SIDE // 2 * (number % 2)
        raised[:, :, down : down + SIDE // 2, across : across + SIDE // 2, position] += 0.1
    return AttentionMaps({**maps.probs, cross: raised.flatten(2, 3).requires_grad_(True)})


def compare(clone: Path) -> Iterator[Comparison]:
    """Two words and three; words that are absent, and words that are there."""
    theirs = _published(clone)
    for words in ({"cat": 3, "ball": 7}, {"red": 2, "cat": 3, "ball": 7}):
        aim = targets([Region(word) for word in words])
        for seed in range(6):
            maps = _maps(seed, list(words.values()))
            store = _store(mean_map(maps, size=SIDE), mean_map(maps, "self", SIDE))
            loss, _, _ = theirs(SimpleNamespace(attention_store=store), list(words.values()), True, 16, SIDE)
            found = SelfCross(quirks="reference").loss(maps, aim, step()).loss
            yield compared(f"{len(words)} words, seed {seed}", loss, found, maps.probs.values())


REFERENCE = Reference("self_cross", "mengtang-lab/selfcross-guidance", compare, packages={"cv2": "opencv-python-headless"})
