"""Observers of the sampling loop: their hooks, and when each is called."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site
from attnguide.injection.by_row import Part
from attnguide.prompt.targets import Targets
from attnguide.types import PassContext, Sample, SampleResult, Step

if TYPE_CHECKING:
    from attnguide.models.base import ModelAdapter


@dataclass(frozen=True, eq=False)
class BatchInfo:
    """Description of a batch before its first step.

    Attributes:
        samples: The rows.
        targets: Phrases and places of the rows, resolved.
        sites: The network's attention sites at this picture size.
        steps: One entry per network evaluation.
        model: The adapter, to read and to decode with.
        measured: Measurements of each row before its first step, by name: reconstruction errors of inverted source pictures.
            Empty where there are none.
    """

    samples: tuple[Sample, ...]
    targets: Targets
    sites: tuple[Site, ...]
    steps: tuple[Step, ...]
    model: ModelAdapter
    measured: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class UpdateEvent:
    """One guidance update.

    Attributes:
        step: Evaluation of the schedule.
        method: Name of the guidance.
        iteration: Number of the update within the step, from 0.
        rows: Rows of the batch whose loss was evaluated.
        losses: Loss of each of ``rows``.
        indicators: Indicator of each of ``rows``, which decides on refinement.
        moved: Which of ``rows`` made an update.
        gradient_norms: Euclidean norm of each row's gradient; 0 where it made no update.
    """

    step: Step
    method: str
    iteration: int
    rows: tuple[int, ...]
    losses: tuple[float, ...]
    indicators: tuple[float, ...]
    moved: tuple[bool, ...]
    gradient_norms: tuple[float, ...]


class Observer:
    """Base of observers, which see everything and change nothing. Override the hooks you need; they are called in this order.

    ::

        probes(info)                         # returns probes, which record during the passes below
        on_sample_start(info)
        for step in steps:
            on_denoise_step_start(step, latents)
            on_guidance_update(event)        # zero or more times, guidance after guidance
            on_denoise_step_end(step, latents, noise_pred)
        on_sample_end(results)

    ``on_row_stopped(row, reason)`` comes the moment a row is given up: before the ``on_guidance_update`` of the update that
    found a loss or gradient not finite, or before the ``on_denoise_step_end`` of a step whose latents are not. When no row is
    left the remaining steps are not run. ``on_rows_given_up(results)`` stands outside of all this.
    """

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        """Probes to attach for this batch; called once, before ``on_sample_start``.

        Probes of denoising passes get all branches in one pass, except in steps where a guidance is fused with the conditional
        half (:mod:`attnguide.engine.fused`), where they get that half alone.
        """
        return ()

    def on_sample_start(self, info: BatchInfo) -> None:
        """Called when a batch is ready, before its first step."""

    def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
        """Called before guidance and the network's evaluation; ``latents`` is ``batch channels height width``."""

    def on_guidance_update(self, event: UpdateEvent) -> None:
        """Called after each guide pass."""

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        """Called after the scheduler's step, with the new latents and the noise prediction that it was given."""

    def on_row_stopped(self, row: int, reason: str) -> None:
        """Called when a row is stopped (on NaN, for example); the others go on."""

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        """Called with the finished rows."""

    def on_rows_given_up(self, results: Sequence[SampleResult]) -> None:
        """Called with rows that end without :meth:`on_sample_end`: refused before their batch began, or lost with it."""


class Observers(Observer):
    """Several observers as one, called in the order given."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        return [probe for observer in self.observers for probe in observer.probes(info)]

    def on_sample_start(self, info: BatchInfo) -> None:
        for observer in self.observers:
            observer.on_sample_start(info)

    def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
        for observer in self.observers:
            observer.on_denoise_step_start(step, latents)

    def on_guidance_update(self, event: UpdateEvent) -> None:
        for observer in self.observers:
            observer.on_guidance_update(event)

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        for observer in self.observers:
            observer.on_denoise_step_end(step, latents, noise_pred)

    def on_row_stopped(self, row: int, reason: str) -> None:
        for observer in self.observers:
            observer.on_row_stopped(row, reason)

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        for observer in self.observers:
            observer.on_sample_end(results)

    def on_rows_given_up(self, results: Sequence[SampleResult]) -> None:
        for observer in self.observers:
            observer.on_rows_given_up(results)


class SomeRows(Observer):
    """Restricts an observer to some rows of a batch, renumbered from 0.

    A resumed run samples a partly finished batch again as a whole, since a row's last bits depend on its neighbours; observers
    must see the missing rows alone.

    Args:
        observer: Observer of these rows.
        rows: Positions of the rows in the batch, in the observer's order.
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


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)


@contextmanager
def guarded(watcher: Any) -> Iterator[None]:
    """Turn an exception of a watcher that declares ``only_shows`` into one warning; all other exceptions pass through.

    A watcher that failed has ``failed`` set to True, so that it is skipped until the next batch. Errors of a full or read-only
    disk pass through, as a row may be recorded as finished only when all of its files are written.
    """
    try:
        yield
    except Exception as error:
        if not getattr(watcher, "only_shows", False) or getattr(error, "errno", None) in _OF_THE_DISK:
            raise
        watcher.failed = True
        warnings.warn(
            f"Callback {type(watcher).__name__} failed and shows nothing of this batch; the run goes on "
            f"({type(error).__name__}: {error}).",
            stacklevel=3,
        )


def guarded_probe(watcher: Any, probe: Probe) -> Probe:
    """The probe, guarded, and skipped once its watcher has failed."""
    if not getattr(watcher, "only_shows", False):
        return probe

    def record(site: Site, tensor: Tensor, context: PassContext) -> None:
        if not watcher.failed:
            with guarded(watcher):
                probe.record(site, tensor, context)

    return replace(probe, record=record)
