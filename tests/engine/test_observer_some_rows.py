"""What is seen of some rows of a batch is what is seen of them in the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.observer import BatchInfo, Observer, SomeRows, UpdateEvent
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, PassContext, Region, SampleResult, Step
from tests import tiny

STEERED = MethodConfig("mask_guidance", {"stop": 1.0})
ROWS = (
    tiny.row("a", methods=(STEERED,)),
    tiny.row("b", regions=(Region("blue ball", box=(0, 0, 0.5, 0.5)),), seed=1, methods=(STEERED,)),
    tiny.row("c", seed=2, methods=(MethodConfig("mask_guidance", {"stop": 1.0, "scale": 1e38}),)),
)


class Seen(Observer):
    """Everything, by row id."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.found: dict[str, list[Any]] = {}

    def _add(self, row: int, *what: Any) -> None:
        self.found.setdefault(self.ids[row], []).append(what)

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        def record(site: Site, probs: Tensor, context: PassContext) -> None:
            for position, row in enumerate(context.rows):
                self._add(row, site.name, context.kind, context.branches[position], probs[position].sum().item())

        return (Probe("probs", record, SiteSelector(kind="cross"), frozenset({"denoise", "guide"})),)

    def on_sample_start(self, info: BatchInfo) -> None:
        self.ids = [sample.id for sample in info.samples]
        masks = info.targets.masks(8, 8)
        for row, regions in enumerate(info.targets.regions):
            self._add(row, regions, info.targets.rows[row], masks[row][: len(regions)].sum().item())

    def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
        for row, own in enumerate(latents):
            self._add(row, "start", step.index, own.sum().item())

    def on_guidance_update(self, event: UpdateEvent) -> None:
        values = (event.losses, event.indicators, event.moved, event.gradient_norms)
        for place, row in enumerate(event.rows):
            self._add(row, "update", event.step.index, *(value[place] for value in values))

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        for row, pair in enumerate(zip(latents, noise_pred, strict=True)):
            self._add(row, "end", step.index, *(own.nansum().item() for own in pair))

    def on_row_stopped(self, row: int, reason: str) -> None:
        self._add(row, "stopped", reason)

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        for row, result in enumerate(results):
            self._add(row, result.sample.id, result.status, None if result.image is None else result.image.tobytes())


def test_some_rows_are_seen_as_in_the_whole_batch() -> None:
    whole, part = Seen(), Seen()
    sample_batch(tiny.model(), ROWS, whole)
    sample_batch(tiny.model(), ROWS, SomeRows(part, [2, 1]))
    assert part.ids == ["c", "b"] and set(whole.found) == {"a", "b", "c"}
    for id in part.ids:
        first, *rest = part.found[id]
        assert (first[0], first[2]) == (whole.found[id][0][0], whole.found[id][0][2])
        assert repr(rest) == repr(whole.found[id][1:]), id
    assert [entry for entry in part.found["c"] if entry[0] == "stopped"]
    assert torch.is_grad_enabled()
