"""A batch of which only some rows are watched, because the others were finished before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site
from attnguide.injection.by_row import Part
from attnguide.sampling.observer import BatchInfo, Observer, UpdateEvent
from attnguide.types import PassContext, SampleResult, Step


class SomeRows(Observer):
    """Shows an observer some rows of a batch as if there were no others.

    A resumed run samples a batch of which a part is missing as it was, since a row's last bits depend on its neighbours; what
    watches must see the missing rows alone.

    Args:
        observer: Told of these rows.
        rows: Their numbers in the batch, in the order that the observer counts them.
    """

    def __init__(self, observer: Observer, rows: Sequence[int]) -> None:
        self.observer, self.rows = observer, list(rows)
        self._part = Part(rows)
        self._numbers = {row: number for number, row in enumerate(rows)}

    def _info(self, info: BatchInfo) -> BatchInfo:
        targets = replace(info.targets.select(self.rows), rows=tuple(range(len(self.rows))))
        measured = tuple(info.measured[row] for row in self.rows) if info.measured else ()
        return replace(info, samples=tuple(info.samples[row] for row in self.rows), targets=targets, measured=measured)

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        return [self._narrowed(probe) for probe in self.observer.probes(self._info(info))]

    def _narrowed(self, probe: Probe) -> Probe:
        def record(site: Site, tensor: Tensor, context: PassContext) -> None:
            at, own = self._part.of(context)
            if at:
                probe.record(site, tensor[at], own)

        return replace(probe, record=record)

    def on_sample_start(self, info: BatchInfo) -> None:
        self.observer.on_sample_start(self._info(info))

    def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
        self.observer.on_denoise_step_start(step, latents[self.rows])

    def on_guidance_update(self, event: UpdateEvent) -> None:
        at = [place for place, row in enumerate(event.rows) if row in self._numbers]
        if not at:
            return
        self.observer.on_guidance_update(
            replace(
                event,
                rows=tuple(self._numbers[event.rows[place]] for place in at),
                losses=tuple(event.losses[place] for place in at),
                indicators=tuple(event.indicators[place] for place in at),
                moved=tuple(event.moved[place] for place in at),
                gradient_norms=tuple(event.gradient_norms[place] for place in at),
            )
        )

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        self.observer.on_denoise_step_end(step, latents[self.rows], noise_pred[self.rows])

    def on_row_stopped(self, row: int, reason: str) -> None:
        if row in self._numbers:
            self.observer.on_row_stopped(self._numbers[row], reason)

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        self.observer.on_sample_end([results[row] for row in self.rows])
