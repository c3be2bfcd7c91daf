"""Sampling of a table of rows on one model, batch by batch, in plain torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch

from attnguide.batching import batch_key, build_methods, mixes, picture_key
from attnguide.engine.branches import common_source, read_rows, source_prompts
from attnguide.engine.observer import Observer, Observers, SomeRows
from attnguide.models.base import ModelAdapter, halves
from attnguide.sampling.arguments import check_model, check_observer, instances, whole_batch_size
from attnguide.sampling.best_of_k import build_baseline
from attnguide.sampling.check import mark_rows, sampleable
from attnguide.sampling.foreign import sample_foreign
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.source_maps import SourceObserver, record_sources, with_cost
from attnguide.types import Cost, Sample, SampleResult

_LOG = logging.getLogger(__name__)


def plan_batches(samples: Sequence[Sample], batch_size: int) -> list[list[Sample]]:
    """Group rows that can share a batch, at most ``batch_size`` each, in the order of their first rows.

    Rows with the same methods fill whole batches. Left-over rows that are plain, or whose methods mix, share batches. Rows
    with and without an unconditional half are kept apart, as a batch costs every row the same. Rows with a
    :attr:`~attnguide.types.Sample.problem`, which will not be sampled, come first, in batches of their own.

    Raises:
        ValueError: If ``batch_size`` is below 1, or an option's value is out of range.
    """
    batch_size = whole_batch_size(batch_size)
    alike: dict[Hashable, list[Sample]] = {}
    for sample in (sample for sample in samples if sample.problem is None):
        alike.setdefault((batch_key(sample), _passes(sample)), []).append(sample)
    lines: list[list[Sample]] = [[sample for sample in samples if sample.problem is not None]]  # each is cut into batches
    left: dict[Hashable, list[Sample]] = {}
    for key, rows in alike.items():
        whole = len(rows) // batch_size * batch_size
        lines.append(rows[:whole])
        if rest := rows[whole:]:
            group: Hashable = (picture_key(rest[0]), _passes(rest[0])) if mixes(rest) else key
            if group not in left:
                left[group] = []
                lines.append(left[group])
            left[group] += rest
    return [line[start : start + batch_size] for line in lines for start in range(0, len(line), batch_size)]


def _passes(sample: Sample) -> tuple[int, int]:
    """Number of halves of a row's pass, on a model that combines both and on one that is distilled for guidance."""
    return len(halves(sample)), len(halves(sample, distilled=True))


def fitting_batch_size(model: ModelAdapter, samples: Collection[Sample], devices: int = 1) -> int:
    """Default batch size: 8, and up to 16 for small pictures.

    Beyond 8, a batch has no more latent cells than 8 Stable Diffusion pictures of 512x512 pixels.

    Args:
        model: The adapter.
        samples: The rows; the largest picture among them counts.
        devices: Number of devices that share the rows; batches are small enough that each gets some.

    Raises:
        ValueError: If a picture's size does not fit the model.
    """
    height, width = model.default_size
    sizes = {(sample.height or height, sample.width or width) for sample in samples if sample.problem is None}
    cells = max((rows * columns for _, rows, columns in (model.latent_shape(*size) for size in sizes)), default=1)
    most = max(8, min(16, 8 * 64 * 64 // cells))
    return most if devices == 1 else min(most, max(1, math.ceil(len(samples) / devices)))


def sample_batch(model: ModelAdapter, samples: Sequence[Sample], observer: Observer | None = None) -> list[SampleResult]:
    """Sample rows that share a batch, after the source pictures of their places.

    Raises:
        ValueError: If one of the rows cannot be sampled; see :func:`sample_each` for rows that should not stop each other.
    """
    recorded = record_sources(model, _checked(model, samples, observer))
    samples = [row.sample for row in recorded]
    watching = Observer() if observer is None else SourceObserver(observer, recorded)
    guidances, injections = build_methods(samples)
    baseline = build_baseline(samples[0])

    def attempt(rows: Sequence[Sample], watching: Observer) -> list[SampleResult]:
        if rows[0].kind is not None:
            return sample_foreign(model, rows, watching)
        return Sampler(model, guidances, injections, watching).run(rows)

    if baseline is None:
        return with_cost(attempt(samples, watching), recorded)
    return with_cost(baseline.sample(attempt, samples, watching), recorded)


def sample_each(
    model: ModelAdapter,
    samples: Sequence[Sample],
    observer: Observer | None = None,
    *,
    wanted: Collection[int] | None = None,
    marked: bool = False,
) -> list[SampleResult]:
    """Sample rows that share a batch; a row that cannot be made does not stop the others.

    A row that the model or a method refuses is not sampled; its status is ``refused: `` and the reason. If sampling raises
    an error nevertheless, the rows are sampled one by one, and a row that raises again ends as ``failed: `` and the error.
    Errors of the observer, out-of-memory errors and interrupts are raised.

    Args:
        model: The adapter.
        samples: Rows that share a batch.
        observer: Observer of the wanted rows alone.
        wanted: Positions of rows without a result; the others are sampled too, because rows of a batch depend on each other
            in their last bits. All when ``None``.
        marked: Whether the rows have passed :func:`~attnguide.sampling.check.mark_rows`.

    Returns:
        One result per wanted row, in order.

    Raises:
        ValueError: If a method, an option or a scheduler does not exist.
    """
    rows = list(samples) if marked else mark_rows(model, _checked(model, samples, observer))
    asked = [row for row in range(len(rows)) if wanted is None or row in wanted]
    found = {row: _unmade(rows[row], f"refused: {rows[row].problem}") for row in asked if rows[row].problem is not None}
    _give_up(found, observer)
    good = [row for row, sample in enumerate(rows) if sample.problem is None]
    waiting = [part for part in _of_one_length(model, rows, good) if set(asked) & set(part)]
    while waiting:
        batch = waiting.pop(0)
        places = [place for place, row in enumerate(batch) if row in asked]
        witness = None if observer is None else _Witness(observer)
        partly = witness is not None and len(places) < len(batch)
        watching = SomeRows(witness, places) if witness is not None and partly else witness
        try:
            made = sample_batch(model, [rows[row] for row in batch], watching)
            found |= {batch[place]: made[place] for place in places}
        except Exception as error:  # whatever a method, a scheduler or the network raises
            _raise_if_fatal(error, witness, len(batch))
            _LOG.debug("rows %s", ", ".join(rows[row].id for row in batch), exc_info=True)
            if len(batch) > 1:
                waiting = [[batch[place]] for place in places]
                continue
            failed = {batch[0]: _unmade(rows[batch[0]], f"failed: {_told(error)}")}
            _give_up(failed, observer)
            found |= failed
    return [found[row] for row in asked]


def sample_rows(
    model: ModelAdapter,
    samples: Sequence[Sample],
    *,
    batch_size: int | None = None,
    observer: Observer | None = None,
    strict: bool = False,
) -> Iterator[SampleResult]:
    """Sample any rows; yields results batch by batch, rows that cannot be sampled first.

    A row that the model or a method refuses, or whose sampling raises an error, has no picture and the reason as its status
    (see :func:`sample_each`).

    Args:
        model: The adapter.
        samples: Rows; those that can share a batch are sampled together.
        batch_size: Most rows in one batch; :func:`fitting_batch_size` when ``None``.
        observer: Observer of all batches.
        strict: Refuse all rows, before anything is sampled, if one of them cannot be sampled.

    Raises:
        ValueError: Before anything is sampled, if a method, an option or a scheduler does not exist, no row can be sampled, or
            ``strict`` is set and one cannot.
    """
    given = _checked(model, samples, observer)
    batch_size = None if batch_size is None else whole_batch_size(batch_size)
    rows = sampleable(model, given, strict=strict)
    if batch_size is None:
        batch_size = fitting_batch_size(model, rows)
    for batch in plan_batches(rows, batch_size):
        yield from sample_each(model, batch, observer, marked=True)


def _of_one_length(model: ModelAdapter, rows: Sequence[Sample], chosen: Sequence[int]) -> list[list[int]]:
    """Rows of a batch grouped by the number of chunks of their texts; usually one group."""
    if all(rows[row].prompt_syntax == "plain" for row in chosen):
        return [list(chosen)]
    parts: dict[int, list[int]] = {}
    with model.exclusive():
        for row in chosen:
            guidances, injections = build_methods([rows[row]])
            others = source_prompts(common_source([*guidances, *injections]), [rows[row]])
            (tokenized,), _ = read_rows(model, [rows[row]], others)
            parts.setdefault(tokenized.chunks, []).append(row)
    return list(parts.values())


def _checked(model: Any, samples: Any, observer: Any) -> list[Sample]:
    """Check the arguments of a sampling function, and return the rows as a list.

    Raises:
        ValueError: Naming the wrong argument.
    """
    check_model(model)
    if observer is not None:
        check_observer(observer)
    return instances("samples", samples, Sample)


def _give_up(results: Mapping[int, SampleResult], observer: Observer | None) -> None:
    """Pass results of rows that ended without a batch to the observer, if there are any."""
    if results and observer is not None:
        observer.on_rows_given_up(list(results.values()))


def _raise_if_fatal(error: Exception, witness: _Witness | None, rows: int) -> None:
    """Raise errors that end the whole table: the observer's own, and out-of-memory errors, with advice."""
    if witness is not None and witness.error is error:
        raise error
    if (lack := _lack_of_memory(error, rows)) is not None:
        raise lack from error


def _told(error: Exception) -> str:
    """An error in one line, with its class unless it is a plain ValueError."""
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return f"{kind}{' '.join(str(error).split())}"


def _lack_of_memory(error: Exception, rows: int) -> Exception | None:
    """An out-of-memory error with advice, to raise in place of one; ``None`` for other errors."""
    if not isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) and "can't allocate memory" not in str(error):
        return None
    said = (str(error).splitlines() or [""])[0] or "out of memory"
    fewer = f"a batch size below {rows}, " if rows > 1 else ""
    kind = type(error) if isinstance(error, torch.cuda.OutOfMemoryError) else MemoryError
    return kind(f"{said.rstrip('.')}; what helps: {fewer}smaller pictures, or a dtype of half precision.")


def _unmade(sample: Sample, status: str) -> SampleResult:
    """Result without picture and cost, of a row that was not sampled."""
    return SampleResult(sample, None, None, Cost(0, 0, 0.0, 0.0), status)


class _Witness(Observers):
    """Forwards to an observer, and remembers an error that the observer raised."""

    def __init__(self, observer: Observer) -> None:
        super().__init__([observer])
        self.error: Exception | None = None
        for name in (name for name, found in vars(Observer).items() if callable(found) and name[0] != "_"):
            setattr(self, name, self._guarded(getattr(observer, name)))

    def _guarded(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def told(*arguments: Any) -> Any:
            try:
                return hook(*arguments)
            except Exception as error:
                self.error = error
                raise

        return told
