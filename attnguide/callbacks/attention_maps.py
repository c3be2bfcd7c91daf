"""Heat maps of each word's cross-attention over the final picture, as a mean over steps and step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site, SiteSelector
from attnguide.callbacks.base import SamplingCallback, run_folder
from attnguide.engine.observer import BatchInfo
from attnguide.prompt.regions import prompt_words
from attnguide.prompt.targets import Targets, region_maps
from attnguide.run_folder.files import replacing, write_atomic
from attnguide.sheets.grid import contact_sheet, strip
from attnguide.sheets.overlays import draw_regions, heat_map
from attnguide.sources.files import map_bytes, map_names
from attnguide.types import PassContext, Region, Sample, SampleResult, Step

OVERVIEW = "_overview.png"
"""File of a row's overview: the picture with its regions, beside the heat map of every word."""

_SMALLEST = 256
"""Side in pixels to which smaller pictures are enlarged before maps or regions are drawn on them."""

_STRIP_CELL = 128


class AttentionMapsLogger(SamplingCallback):
    """Draws the map of every region's phrase, or of every word for a row without regions.

    Files, in ``maps/<row id>/``: ``<phrase>.png`` (mean over steps, over the picture), ``<phrase>-steps.png`` (a strip over
    steps, one scale for all), ``<phrase>.npy`` (raw maps, ``steps height width``), ``_overview.png`` (the picture with its
    regions, and all words).

    Args:
        sites: Sites whose maps are averaged; the cross-attention sites of the model's guidance level when ``None``.
        steps: Range of progress whose mean map is drawn, start included, end excluded.
        strip: Number of steps shown in the strip.

    Raises:
        ValueError: If ``steps`` is not a range within [0, 1], or ``strip`` is below 1.
    """

    only_shows = True

    def __init__(self, sites: SiteSelector | None = None, steps: tuple[float, float] = (0.0, 1.0), strip: int = 8) -> None:
        if not 0 <= steps[0] < steps[1] <= 1:
            raise ValueError(f"steps must be a range within [0, 1]; got {steps}.")
        if strip < 1:
            raise ValueError(f"strip must be at least 1; got {strip}.")
        self.sites = sites
        self.steps = steps
        self.strip = strip
        self._targets: Targets | None = None
        self._rows: tuple[Sample, ...] = ()
        self._progress: list[float] = []
        self._current: dict[Site, Tensor] = {}
        self._maps: list[Tensor] = []

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        self._rows = tuple(
            sample if sample.regions else replace(sample, regions=prompt_words(sample.text)) for sample in info.samples
        )
        self._targets = Targets.build(self._rows, info.targets.tokenized, info.targets.device)
        chosen = self.sites or SiteSelector(kind="cross", levels=(info.model.guidance_level,))
        return (Probe("probs", self._record, chosen),)

    def _record(self, site: Site, probs: Tensor, context: PassContext) -> None:
        assert self._targets is not None
        maps = region_maps(probs.detach()[context.positions("cond")].mean(1), self._targets.tokens)
        self._current[site] = maps.unflatten(2, (site.height, site.width))

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        self._progress, self._maps = [], []
        self._current.clear()

    def on_denoise_step_end(
        self, trainer: L.Trainer, module: L.LightningModule, step: Step, latents: Tensor, noise_pred: Tensor
    ) -> None:
        self._maps.append(_mean_of_sites(list(self._current.values())).cpu())
        self._progress.append(step.progress)
        self._current.clear()

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        maps = torch.stack(self._maps, 2).numpy()
        self._maps = []
        first, last = self.steps
        chosen = [index for index, progress in enumerate(self._progress) if first <= progress < last]
        for result, sample, values in zip(results, self._rows, maps, strict=True):
            draw_maps(run_folder(trainer) / "maps", result, sample.regions, values, chosen, self.strip)


def draw_maps(
    folder: Path,
    result: SampleResult,
    regions: Sequence[Region],
    maps: Float[NDArray[np.float32], "regions steps height width"],
    chosen: Sequence[int] = (),
    cells: int = 8,
) -> None:
    """Write a row's maps as :class:`AttentionMapsLogger` says, to ``folder/<row id>``.

    Args:
        folder: Folder of all rows' maps.
        result: The finished row.
        regions: Regions whose phrases the maps are of, in the same order.
        maps: Mean attention of each region's words at every step.
        chosen: Indices of the steps whose mean is drawn; all steps when empty.
        cells: Number of steps shown in the strip.
    """
    folder, pictures = folder / result.sample.id, []
    for name, values in zip(map_names(regions), maps, strict=False):
        write_atomic(folder / f"{name}.npy", map_bytes(values))
        if result.image is not None:
            picture = heat_map(enlarged(result.image), values[list(chosen)].mean(0) if chosen else values.mean(0))
            _save(folder / f"{name}.png", picture)
            _save(folder / f"{name}-steps.png", _over_steps(result.image, values, cells))
            pictures.append(picture)
    if result.image is not None and pictures:
        _save(folder / OVERVIEW, _overview(result, [region.phrase for region in regions], pictures))


def _over_steps(image: Image.Image, values: NDArray[np.float32], cells: int) -> Image.Image:
    """Strip of maps ``steps height width`` over a small picture, at most ``cells`` of them, with one colour scale."""
    at = np.unique(np.linspace(0, len(values) - 1, min(cells, len(values))).round().astype(int))
    top = float(values[at].max())
    small = image.copy()
    small.thumbnail((_STRIP_CELL, _STRIP_CELL))
    small = enlarged(small, _STRIP_CELL)
    return strip([heat_map(small, values[index], alpha=0.8, top=top) for index in at], [f"step {index}" for index in at])


def _mean_of_sites(maps: Sequence[Float[Tensor, "batch regions height width"]]) -> Tensor:
    """Mean of the sites' maps, each resized to the largest map's size."""
    height, width = max(tuple(site.shape[-2:]) for site in maps)
    resized = [
        site if site.shape[-2:] == (height, width) else torch.nn.functional.interpolate(site, (height, width), mode="bilinear")
        for site in maps
    ]
    return torch.stack(resized).mean(0)


def enlarged(image: Image.Image, side: int = _SMALLEST) -> Image.Image:
    """The picture, enlarged if its shorter side is below ``side``."""
    scale = side / min(image.size)
    if scale <= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _overview(result: SampleResult, phrases: Sequence[str], pictures: Sequence[Image.Image]) -> Image.Image:
    assert result.image is not None
    drawn = draw_regions(enlarged(result.image), result.sample.regions)
    return contact_sheet([[drawn, *pictures]], column_labels=[result.sample.method, *phrases], cell=max(drawn.size))


def _save(path: Path, picture: Image.Image) -> None:
    with replacing(path) as temporary:
        picture.save(temporary)
