"""Runs sampling in a thread that reports progress to the page and can be stopped."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.engine.observer import BatchInfo, Observer, UpdateEvent
from attnguide.figures.watch import Watch, Watched
from attnguide.types import Sample, SampleResult, Step

_PREVIEWS = 10
"""Number of previews of a row, evenly spread over its steps."""


WORKER = "attnguide-ui-run"
"""Name of the thread of a run."""


class StoppedByUserError(Exception):
    """The page was closed, or its stop button pressed."""


@dataclass(frozen=True)
class News:
    """Progress of a run.

    Attributes:
        done: Number of steps done, over all batches.
        total: Estimated number of steps of the run.
        previews: Decoded latents of the current batch's rows.
        samples: Rows of the current batch.
        losses: ``(step, loss, row)`` of every update of the current batch so far.
        rows: Finished rows with their maps.
        problem: Why the run ended early, ``stopped`` or an error; ``None`` if it did not.
    """

    done: int
    total: int
    previews: Sequence[Image.Image] = ()
    samples: Sequence[Sample] = ()
    losses: Sequence[tuple[int, float, str]] = ()
    rows: Sequence[Watched] = ()
    problem: str | None = None


class Live(Observer):
    """Observer that queues progress for the page, and raises at the next step once ``stop`` is set.

    Args:
        stop: Event that ends the run.
        total: Number of steps of the whole run.
    """

    def __init__(self, stop: threading.Event, total: int) -> None:
        self.news: queue.Queue[News] = queue.Queue()
        self.watch = Watch()
        self._stop, self._total, self._done = stop, total, 0
        self._info: BatchInfo | None = None
        self._losses: list[tuple[int, float, str]] = []
        self._images: list[Image.Image] = []

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        return self.watch.probes(info)

    def on_sample_start(self, info: BatchInfo) -> None:
        self.watch.on_sample_start(info)
        self._info, self._losses, self._images = info, [], []

    def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
        if self._stop.is_set():
            raise StoppedByUserError

    def on_guidance_update(self, event: UpdateEvent) -> None:
        self.watch.on_guidance_update(event)
        if self._stop.is_set():
            raise StoppedByUserError
        assert self._info is not None
        rows = [f"seed {self._info.samples[row].seed}" for row in event.rows]
        self._losses += [(event.step.index, loss, row) for loss, row in zip(event.losses, rows, strict=True)]

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        self.watch.on_denoise_step_end(step, latents, noise_pred)
        self._done += 1
        info = self._info
        assert info is not None
        every = max(1, step.count // _PREVIEWS)
        if step.index % every == 0:
            self._images = [picture.image for picture in info.model.decode(latents) if picture.image is not None]
        images, losses, rows = tuple(self._images), tuple(self._losses), tuple(self.watch.rows)
        self.news.put(News(self._done, self._total, images, info.samples, losses, rows))

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        self.watch.on_sample_end(results)
        self.news.put(self.ended(None))

    def ended(self, problem: str | None) -> News:
        """Progress at the end of a batch, or of the run."""
        rows = tuple(self.watch.rows)
        return News(self._done, self._total, losses=tuple(self._losses), rows=rows, problem=problem)


def run_rows(model: Any, rows: Sequence[Sample], stop: threading.Event) -> Iterator[News]:
    """Sample rows in a thread and yield its newest progress, skipping what came between; the last item has all rows.

    Args:
        model: The model adapter.
        rows: Rows to make, batch by batch.
        stop: Event that ends the run; closing the iterator sets it.
    """
    from attnguide.sampling.check import check_rows
    from attnguide.sampling.table import plan_batches, sample_rows

    batches = len(plan_batches(rows, max(1, len(rows))))
    live = Live(stop, batches * max(row.steps for row in rows))
    problem: list[str] = []

    def work() -> None:
        try:
            check_rows(model, rows)
            for _ in sample_rows(model, rows, batch_size=len(rows), observer=live):
                pass
        except StoppedByUserError:
            problem.append("stopped")
        except Exception as error:  # any error is shown on the page, which stays usable
            problem.append(" ".join(str(error).split()) or type(error).__name__)

    worker = threading.Thread(target=work, name=WORKER, daemon=True)
    worker.start()
    try:
        while worker.is_alive() or not live.news.empty():
            if (found := _newest(live.news)) is not None:
                yield found
        worker.join()
    finally:
        stop.set()
    yield live.ended(problem[0] if problem else None)


def _newest(news: queue.Queue[News]) -> News | None:
    """The newest item of the queue, after a short wait; older ones are dropped. ``None`` if there is none."""
    try:
        found = news.get(timeout=0.2)
    except queue.Empty:
        return None
    while not news.empty():
        found = news.get_nowait()
    return found
