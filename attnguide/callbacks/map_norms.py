"""Statistics of every region's attention map at every site and step, before and after injections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from attnguide.attention.capture import Probe, Record
from attnguide.attention.sites import Site, SiteSelector
from attnguide.callbacks.base import SamplingCallback, run_folder
from attnguide.engine.observer import BatchInfo
from attnguide.methods import method_info
from attnguide.prompt.targets import Targets, region_maps
from attnguide.run_folder.records import NORMS_FILE
from attnguide.run_folder.tables import append_table
from attnguide.types import PassContext, SampleResult, Step

STATISTICS: tuple[str, ...] = ("mean", "l1", "l2", "max", "entropy", "inside")
"""Statistics of a map, in the order of :func:`map_statistics`."""

_COLUMNS = ("id", "step", "stage", "site", "height", "width", "region", "phrase", *STATISTICS)


def map_statistics(
    maps: Float[Tensor, "batch regions query"], masks: Float[Tensor, "batch regions query"]
) -> Float[Tensor, "batch regions statistics"]:
    """Statistics of attention maps: the columns of :data:`STATISTICS`, in that order.

    ``mean``, ``l1`` (sum), ``l2`` (Euclidean norm) and ``max`` over the cells; ``entropy`` in nats of the map scaled to sum 1,
    from 0 (one cell) to the logarithm of the number of cells (flat); ``inside``, the share of the map's sum that lies in the
    mask, in [0, 1], NaN for a region without a place.

    Args:
        maps: Attention probs, averaged over each region's tokens, at least 0.
        masks: Soft masks of the regions in [0, 1]; zero everywhere for a region without a place.
    """
    total = maps.sum(-1).clamp_min(1e-12)
    share = maps / total[..., None]
    entropy = -(share * share.clamp_min(1e-12).log()).sum(-1)
    placed = masks.amax(-1) > 0
    inside = torch.where(placed, (share * masks).sum(-1), torch.nan)
    return torch.stack([maps.mean(-1), maps.sum(-1), maps.norm(dim=-1), maps.amax(-1), entropy, inside], -1)


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        if value == value:
            self.total += value
            self.count += 1


class MapNorms(SamplingCallback):
    """Writes ``map_norms.csv``: a line per row, step, site, region and stage (``before`` and ``after`` injections).

    Maps are the conditional half's, averaged over heads and over the tokens of the region's phrase. Adds the metric ``inside``:
    the share of attention inside the regions after injections, as the mean over measured steps, sites and placed regions.

    Args:
        sites: Sites to measure; all cross-attention sites when ``None``.
        every: Measure at network evaluations 0, ``every``, 2 ``every``, ...
    """

    only_shows = True

    def __init__(self, sites: SiteSelector | None = None, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1; got {every}.")
        self.sites = sites or SiteSelector(kind="cross")
        self.every = every
        self._info: BatchInfo | None = None
        self._found: dict[tuple[Site, str], tuple[tuple[int, ...], Tensor]] = {}
        self._lines: list[dict[str, object]] = []
        self._inside: dict[str, _Mean] = {}

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        if not info.targets.count:
            return ()
        injected = any(method_info(config.name).family == "injection" for sample in info.samples for config in sample.methods)
        if not injected:  # one softmax instead of two
            return (Probe("probs", self._recorder(("before", "after"), info.targets), self.sites),)
        before = Probe("original_probs", self._recorder(("before",), info.targets), self.sites)
        return before, Probe("probs", self._recorder(("after",), info.targets), self.sites)

    def _recorder(self, stages: Sequence[str], targets: Targets) -> Record:
        def record(site: Site, probs: Tensor, context: PassContext) -> None:
            if context.step.index % self.every:
                return
            positions = context.positions("cond")
            rows = [context.rows[position] for position in positions]
            maps = region_maps(probs.detach()[positions].mean(1), targets.tokens[rows])
            masks = targets.masks(site.height, site.width)[rows].flatten(2)
            found = map_statistics(maps, masks.to(maps))
            self._found.update({(site, stage): (tuple(rows), found) for stage in stages})

        return record

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        self._info = info
        self._found.clear()
        self._lines.clear()
        self._inside = {sample.id: _Mean() for sample in info.samples}

    def on_denoise_step_end(
        self, trainer: L.Trainer, module: L.LightningModule, step: Step, latents: Tensor, noise_pred: Tensor
    ) -> None:
        for (site, stage), (rows, statistics) in self._found.items():
            for row, values in zip(rows, statistics.tolist(), strict=True):
                self._keep(row, step, stage, site, values)
        self._found.clear()

    def _keep(self, row: int, step: Step, stage: str, site: Site, values: list[list[float]]) -> None:
        assert self._info is not None
        sample = self._info.samples[row]
        where = {"id": sample.id, "step": step.index, "stage": stage, "site": site.name}
        size = {"height": site.height, "width": site.width}
        for index, (region, numbers) in enumerate(zip(sample.regions, values, strict=False)):
            named = dict(zip(STATISTICS, numbers, strict=True))
            shown = {name: value for name, value in named.items() if value == value}
            self._lines.append({**where, **size, "region": index, "phrase": region.phrase, **shown})
            if stage == "after":
                self._inside[sample.id].add(named["inside"])

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        if self._lines:
            append_table(run_folder(trainer) / NORMS_FILE, _COLUMNS, self._lines)
        self._lines.clear()

    def row_metrics(self, result: SampleResult) -> Mapping[str, float]:
        mean = self._inside.get(result.sample.id)
        return {"inside": mean.total / mean.count} if mean and mean.count else {}
