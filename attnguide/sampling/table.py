"""Rows in, results out: the table of samples on one model, batch by batch, in plain torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attnguide.methods import batch_key, build_methods, check_methods
from attnguide.models.base import ModelAdapter
from attnguide.sampling.best_of_k import build_baseline
from attnguide.sampling.observer import Observer
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.source_maps import Sourced, record_sources, with_cost
from attnguide.types import Sample, SampleResult


def plan_batches(samples: Sequence[Sample], batch_size: int) -> list[list[Sample]]:
    """Group rows that can share a batch, in the order their first rows come, at most ``batch_size`` together.

    Raises:
        ValueError: If ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(batch_key(sample), []).append(sample)
    return [rows[i : i + batch_size] for rows in groups.values() for i in range(0, len(rows), batch_size)]


def sample_batch(model: ModelAdapter, samples: Sequence[Sample], observer: Observer | None = None) -> list[SampleResult]:
    """Sample rows that share a batch, after the pictures that their places come from."""
    recorded = record_sources(model, samples)
    samples = [row.sample for row in recorded]
    watching = Observer() if observer is None else Sourced(observer, recorded)
    guidances, injections = build_methods(samples)

    def run(rows: Sequence[Sample], watching: Observer) -> list[SampleResult]:
        return Sampler(model, guidances, injections, watching).run(rows)

    baseline = build_baseline(samples[0])
    results = run(samples, watching) if baseline is None else baseline.sample(run, samples, watching)
    return with_cost(results, recorded)


def sample_rows(
    model: ModelAdapter, samples: Sequence[Sample], *, batch_size: int = 8, observer: Observer | None = None
) -> Iterator[SampleResult]:
    """Sample any rows; results come batch by batch.

    Args:
        model: The adapter.
        samples: Rows; those that can share a batch are sampled together.
        batch_size: Most rows in one batch.
        observer: Told of everything.

    Raises:
        ValueError: If a row asks for what cannot be done; before anything is sampled where possible.
    """
    for sample in samples:
        check_methods(sample)
    for rows in plan_batches(samples, batch_size):
        yield from sample_batch(model, rows, observer)
