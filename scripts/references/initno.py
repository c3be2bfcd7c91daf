"""InitNO, with quirks="reference": losses of the initial noise and of the updates, and the noise under Adam.

Its blur kernel is computed in float32, and it adds 1e-6 to a sum of 2 before it divides by it; hence up to 1e-6.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.guidance.initno import InitNO
from attnguide.guidance.noise_distribution import NoiseDistribution
from attnguide.types import Region
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import CROSS_16, HEADS, mean_map, random_maps, step, targets

MAPS = ("fn_get_topk", "fn_smoothing_func", "fn_get_otsu_mask", "fn_clean_mask")
ROUND = "fn_initno"
LOSSES = (ROUND, "fn_compute_loss", "fn_augmented_compute_losss", "fn_calc_kld_loss_func")  # as published
SITES = (*CROSS_16, *(Site(f"{place}.attn1", "self", 16, 16, HEADS, place, 2) for place in ("down", "up")))


def compare(clone: Path) -> Iterator[Comparison]:
    """Maps of six sharpnesses, in two passes, of which the second reads the running mean of the maps."""
    blur = load(clone / "utils/gaussian_smoothing.py", ["GaussianSmoothing"])
    helpers = load(clone / "utils/attn_utils.py", MAPS, {**blur, "cv2": importlib.import_module("cv2")})
    helpers.update(tqdm=iter, Adam=torch.optim.Adam)
    theirs = load(clone / "initno/pipelines/pipeline_sd_initno.py", LOSSES, helpers)
    aim = targets([Region("cat"), Region("ball")])
    for seed, sharpness in enumerate((0.5, 1, 2, 3, 4, 5)):
        ours = InitNO(quirks="reference")
        ours.start(aim)
        pipeline = SimpleNamespace(cross_attention_maps_cache=None, _execution_device="cpu")
        for number in range(2):
            maps, case = random_maps(SITES, 2 * seed + number, sharpness), f"pass {number}, seed {seed}"
            leaves = list(maps.probs.values())
            pipeline.attention_store = _Store(maps)
            refining, cross, _, _ = theirs["fn_augmented_compute_losss"](pipeline, [3, 7])
            opening, _, _ = theirs["fn_compute_loss"](pipeline, [3, 7])
            found = ours.loss(maps, aim, step(number / 50))
            assert found.refining is not None
            yield compared(f"loss of a refinement, {case}", refining, found.refining, leaves)
            yield compared(f"loss, {case}", cross, found.loss, leaves)
            yield compared(f"loss of the noise, {case}", opening, ours.opening(ours.terms(maps, aim)), leaves)
            yield compared(f"score of a round, {case}", *_scores(theirs, pipeline, ours, maps))
    for seed in range(3):
        yield _optimised(theirs, seed)


def _scores(theirs: dict[str, Any], pipeline: Any, ours: InitNO, maps: AttentionMaps) -> tuple[Tensor, Tensor]:
    """What rounds are compared by, of a round of one pass; published, and attnguide's."""
    pipeline.fn_compute_loss = functools.partial(theirs["fn_compute_loss"], pipeline)
    pipeline.fn_calc_kld_loss_func = functools.partial(theirs["fn_calc_kld_loss_func"], pipeline)
    pipeline.prepare_extra_step_kwargs = lambda *_: {}
    pipeline.scheduler = SimpleNamespace(set_timesteps=lambda *_, **__: None, timesteps=[999])
    pipeline.unet = _Network()
    latents = torch.zeros(1, 4, 8, 8)
    *_, score = theirs[ROUND](pipeline, latents=latents, indices=[3, 7], text_embeddings=torch.zeros(2, 1), max_step=1)
    return score.detach(), torch.tensor(ours.judged(maps, targets([Region("cat"), Region("ball")])).scores)


class _Network:
    """Stands for the network: the maps of its pass are in the store already."""

    def __call__(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(sample=None)

    def zero_grad(self) -> None:
        return


class _Store:
    """Stands for the published attention store."""

    def __init__(self, maps: AttentionMaps) -> None:
        self.maps = maps

    def aggregate_attention(self, from_where: object, is_cross: bool) -> Tensor:
        return mean_map(self.maps, "cross" if is_cross else "self")


def _optimised(theirs: dict[str, Any], seed: int) -> Comparison:
    """Noise after ten steps of Adam on random linear losses, each followed by steps on the published divergence."""
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 4, 8, 8, generator=source)
    ours = NoiseDistribution(noise, learning_rate=0.01, kl_limit=0.001)
    log_variance, mean = (torch.zeros_like(noise).requires_grad_(True) for _ in range(2))
    adam = torch.optim.Adam([log_variance, mean], lr=0.01, eps=1e-3)

    def sample() -> Tensor:
        return noise * (log_variance / 2).exp() + mean

    def move(loss: Tensor) -> None:
        adam.zero_grad()
        loss.backward()
        adam.step()

    for _ in range(10):
        slope = 0.3 * torch.randn(noise.shape, generator=source)
        move((sample() * slope).sum())
        while (divergence := theirs["fn_calc_kld_loss_func"](None, log_variance, mean)).mean() > ours.kl_limit:
            move(divergence.mean())
        ours.move(slope)
    return compared(f"optimised noise, seed {seed}", sample().detach(), ours.sample())


REFERENCE = Reference("initno", "xiefan-guo/initno", compare, packages={"cv2": "opencv-python-headless"})
