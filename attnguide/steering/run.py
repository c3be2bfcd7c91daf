"""The object that ``steer`` yields: maps, costs and results of the pipeline's newest call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.noise import generators, initial_noise
from attnguide.engine.observer import UpdateEvent
from attnguide.models.base import ModelAdapter
from attnguide.prompt.targets import Targets, region_maps
from attnguide.text.parsing import as_whole, shown
from attnguide.types import Cost, PassContext, Sample, SampleResult


class Maps(dict[str, Tensor]):
    """Maps by phrase; a missing phrase is a ``KeyError`` that names the phrases with maps."""

    def __missing__(self, phrase: str) -> Tensor:
        known = ", ".join(map(repr, self)) or "none, before a call has ended, without regions, or with maps=False"
        raise KeyError(f"There is no map of {phrase!r}; there are {known}.")


@dataclass(eq=False)
class SteerRun:
    """Results of a steered pipeline's newest call, filled while it runs.

    Attributes:
        maps: Mean attention map of each region's phrase over all denoising passes, ``rows height width`` in float32 on the
            CPU, at the model's guidance level; zeros in rows without the phrase.
        step_maps: Maps of every evaluation, ``rows regions evaluations height width``; ``None`` where no map is kept.
        cost: Network passes, time and memory of each row.
        samples: The rows, as in a table.
        updates: Guidance updates, in order.
        stopped: Reason for each row that was stopped.
        notes: Remarks on deviations from the request, of the whole block and of the newest call.
        calls: Number of pipeline calls that were followed to their end.
        statuses: Status of each row (:attr:`~attnguide.types.SampleResult.status`).
        model: An adapter of the pipeline.
        standing: Number of leading :attr:`notes` that concern the whole block.
        seed: Seed of the first picture's noise.
    """

    seed: int = 0
    maps: dict[str, Tensor] = field(default_factory=Maps)
    cost: list[Cost] = field(default_factory=list)
    samples: tuple[Sample, ...] = ()
    updates: list[UpdateEvent] = field(default_factory=list)
    stopped: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    calls: int = 0
    statuses: list[str] = field(default_factory=list)
    standing: int = 0
    model: ModelAdapter | None = None
    step_maps: Tensor | None = None
    _pictures: Callable[[], Sequence[Image.Image | None]] | None = field(default=None, repr=False)
    _final: Tensor | None = field(default=None, repr=False)
    _results: list[SampleResult] | None = field(default=None, repr=False)
    _noise: tuple[Tensor, list[torch.Generator]] | None = field(default=None, repr=False)

    @property
    def results(self) -> list[SampleResult]:
        """One result for each picture of the newest call that has ended.

        Pictures are the pipeline's own; where it returned latents, the model decodes them.
        """
        if self._results is None:
            pictures = self._pictures() if self._pictures is not None else [None] * len(self.samples)
            self._results = [
                SampleResult(sample, picture, None if self._final is None else self._final[row].float().cpu(), cost, status)
                for row, (sample, picture, cost, status) in enumerate(
                    zip(self.samples, pictures, self.cost, self.statuses, strict=True)
                )
            ]
        return self._results

    def latents(self, rows: int = 1, *, height: int | None = None, width: int | None = None) -> Tensor:
        """Unit noise for the pipeline's ``latents`` argument, as :func:`attnguide.sample` draws it for the same seeds.

        Methods that draw further noise continue with the same generators, so that the picture equals
        :func:`attnguide.sample`'s.

        Args:
            rows: Number of pictures; their seeds are consecutive.
            height: Picture height in pixels; the model's default when ``None``.
            width: Picture width in pixels; the model's default when ``None``.

        Returns:
            ``rows channels height width``.

        Raises:
            ValueError: If ``rows`` or a size is no whole number from 1 on.
        """
        assert self.model is not None
        default = self.model.default_size
        number = _from_one("rows", rows)
        tall = _from_one("height", default[0] if height is None else height)
        wide = _from_one("width", default[1] if width is None else width)
        sources = generators([self.seed + row for row in range(number)])
        shape = self.model.latent_shape(tall, wide)
        noise = initial_noise(sources, shape, self.model.latents_dtype, self.model.device)
        self._noise = noise, sources
        return noise.clone()

    def drawn(self, rows: int) -> tuple[Tensor | None, list[torch.Generator]]:
        """The noise of :meth:`latents` if it was drawn for as many rows, else ``None``, and generators for further noise."""
        if self._noise is not None and len(self._noise[1]) == rows:
            noise, sources = self._noise
            return noise, [torch.Generator().set_state(source.get_state()) for source in sources]
        sources = generators([self.seed + row for row in range(rows)])
        return None, sources

    def began(self, samples: Sequence[Sample]) -> None:
        """Begin a call: reset the results of the one before."""
        del self.notes[self.standing :]
        self.samples, self.stopped, self.updates, self.maps, self.step_maps = tuple(samples), {}, [], Maps(), None
        self.cost, self.statuses, self._results, self._pictures, self._final = [], [], [], None, None

    def ended(
        self, pictures: Callable[[], Sequence[Image.Image | None]], final: Tensor | None, cost: list[Cost], statuses: list[str]
    ) -> None:
        """Store the results of a call."""
        self._pictures, self._final, self._results = pictures, final, None
        self.cost, self.statuses = cost, statuses
        self.calls += 1


def _from_one(name: str, value: Any) -> int:
    number = as_whole(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a whole number from 1 on; got {shown(value)}.")
    return number


class MapRecord:
    """Records attention maps of every region in the denoising passes of one call, averaged over sites.

    Args:
        targets: Words of the rows.
        level: Map level of the cross-attention that is read, 0 the largest.
    """

    def __init__(self, targets: Targets, level: int) -> None:
        self._targets = targets
        self._steps: dict[int, list[Tensor]] = {}
        sites = SiteSelector(kind="cross", levels=(level,))
        self.probe = Probe("probs", self._record, sites, frozenset({"denoise"}))

    def _record(self, site: Site, tensor: Tensor, context: PassContext) -> None:
        cond = tensor[context.positions("cond")].mean(1)
        found = region_maps(cond, self._targets.tokens).unflatten(-1, (site.height, site.width))
        self._steps.setdefault(context.step.index, []).append(found.float())

    def steps(self) -> Tensor | None:
        """Maps of every evaluation, ``rows regions evaluations height width`` on the CPU; ``None`` before the first."""
        if not self._steps:
            return None
        return torch.stack([torch.stack(sites).mean(0) for sites in self._steps.values()], 2).cpu()

    def by_phrase(self, steps: Tensor | None) -> dict[str, Tensor]:
        """Map of each phrase averaged over evaluations, ``rows height width``."""
        found = Maps()
        if steps is None:
            return found
        mean = steps.mean(2)
        for row, regions in enumerate(self._targets.regions):
            for index, region in enumerate(regions):
                found.setdefault(region.phrase, torch.zeros_like(mean[:, 0]))[row] = mean[row, index]
        return found


class Pictures:
    """The pipeline's pictures: newest argument and result of its image processor's ``postprocess``."""

    def __init__(self) -> None:
        self._pixels: Any = None
        self._made: Any = None
        self._process: Callable[..., Any] | None = None
        self._options: Any = None

    def hold(self, process: Callable[..., Any], pixels: Any, made: Any, options: Any) -> None:
        """Remember one call of ``postprocess``."""
        self._process, self._pixels, self._made, self._options = process, pixels, made, options

    def pictures(self, model: ModelAdapter, latents: Tensor | None, rows: int) -> Sequence[Image.Image | None]:
        """One picture per row; decoded from latents where the pipeline made no pictures."""
        if isinstance(self._made, list) and all(isinstance(one, Image.Image) for one in self._made):
            return self._made
        if self._process is not None and isinstance(self._pixels, Tensor) and self._pixels.shape[1] == 3:
            options = {} if self._options is None else {"do_denormalize": self._options}
            return list(self._process(self._pixels.detach(), output_type="pil", **options))
        if latents is None:
            return [None] * rows
        with torch.no_grad(), torch.inference_mode(False):
            return [picture.image for picture in model.decode(latents.clone())]
