"""An observer that keeps the maps and losses of every row in memory, for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.observer import BatchInfo, Observer, UpdateEvent
from attnguide.figures.finished import FinishedRows
from attnguide.prompt.regions import prompt_words
from attnguide.prompt.targets import Targets, region_maps
from attnguide.sheets.overlays import heat_map
from attnguide.text.html import figure
from attnguide.types import PassContext, Sample, SampleResult, Step

_SIDE = 192


@dataclass(frozen=True, eq=False)
class Watched:
    """Maps and losses of a finished row.

    Attributes:
        result: The row's result.
        maps: Phrase (of a region; each word for a row without regions) -> attention after injections, ``steps height width``:
            the mean over heads and over the sites of the model's guidance level.
        losses: Guidance -> step index and loss of every update, in order.
    """

    result: SampleResult
    maps: Mapping[str, NDArray[np.float32]]
    losses: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """HTML of the picture, and of each phrase's mean map over it."""
        image = self.result.image
        if image is None:
            return self.result._repr_html_()
        scale = max(1.0, _SIDE / max(image.size))
        large = image.resize((round(image.width * scale), round(image.height * scale)))
        drawn = "".join(figure(heat_map(large, maps.mean(0)), phrase) for phrase, maps in self.maps.items())
        return self.result._repr_html_() + drawn


class Watch(FinishedRows[Watched], Observer):
    """Observer that keeps maps and losses of every row, to be shown or plotted afterwards.

    Example:
        >>> import attnguide
        >>> watch = attnguide.Watch()
        >>> places = {"red circle": (0, 0.2, 0.45, 0.8)}
        >>> _ = attnguide.sample("a red circle and a blue square", regions=places, steps=2, observer=watch)
        >>> watch.rows[0].maps["red circle"].shape
        (2, 16, 16)

    Attributes:
        rows: Finished rows, in the order in which they ended.
    """

    def __init__(self) -> None:
        self.rows: list[Watched] = []
        self._targets: Targets | None = None
        self._samples: tuple[Sample, ...] = ()
        self._current: dict[Site, Tensor] = {}
        self._maps: list[Tensor] = []
        self._losses: list[dict[str, list[tuple[int, float]]]] = []

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        self._samples = tuple(s if s.regions else replace(s, regions=prompt_words(s.text)) for s in info.samples)
        self._targets = Targets.build(self._samples, info.targets.tokenized, info.targets.device)
        return (Probe("probs", self._record, SiteSelector(kind="cross", levels=(info.model.guidance_level,))),)

    def _record(self, site: Site, probs: Tensor, context: PassContext) -> None:
        assert self._targets is not None
        maps = region_maps(probs.detach()[context.positions("cond")].mean(1), self._targets.tokens)
        self._current[site] = maps.unflatten(2, (site.height, site.width))

    def on_sample_start(self, info: BatchInfo) -> None:
        self._current.clear()
        self._maps = []
        self._losses = [{} for _ in info.samples]

    def on_guidance_update(self, event: UpdateEvent) -> None:
        for row, loss in zip(event.rows, event.losses, strict=True):
            self._losses[row].setdefault(event.method, []).append((event.step.index, loss))

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        if self._current:
            self._maps.append(torch.stack(list(self._current.values())).mean(0).float().cpu())
        self._current.clear()

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        maps = torch.stack(self._maps, 2).numpy() if self._maps else None  # batch regions steps height width
        for row, (result, sample) in enumerate(zip(results, self._samples, strict=True)):
            phrases = [region.phrase for region in sample.regions]
            found = dict(zip(phrases, maps[row], strict=False)) if maps is not None else {}
            self.rows.append(Watched(result, found, self._losses[row]))
        self._maps = []
