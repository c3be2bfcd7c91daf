"""Rows in, results out: the table of samples on one model, batch by batch, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Sequence

from attnguide.methods import batch_key, build_methods, check_methods, mixes, picture_key
from attnguide.models.base import ModelAdapter, halves
from attnguide.sampling.best_of_k import build_baseline
from attnguide.sampling.observer import Observer
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.source_maps import Sourced, record_sources, with_cost
from attnguide.types import Sample, SampleResult


def plan_batches(samples: Sequence[Sample], batch_size: int) -> list[list[Sample]]:
    """Group rows that can share a batch, in the order their first rows come, at most ``batch_size`` together.

    Rows with the same methods fill whole batches. What is left over of methods that mix, and of plain rows, is sampled
    together. Rows with and without an unconditional half keep apart, as a batch costs every row the same.

    Raises:
        ValueError: If ``batch_size`` is below 1, or an option's value is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
    alike: dict[Hashable, list[Sample]] = {}
    for sample in samples:
        alike.setdefault((batch_key(sample), len(halves(sample.cfg_scale))), []).append(sample)
    lines: list[list[Sample]] = []  # each is cut into batches
    left: dict[Hashable, list[Sample]] = {}
    for key, rows in alike.items():
        whole = len(rows) // batch_size * batch_size
        lines.append(rows[:whole])
        if rest := rows[whole:]:
            group: Hashable = (picture_key(rest[0]), len(halves(rest[0].cfg_scale))) if mixes(rest) else key
            if group not in left:
                left[group] = []
                lines.append(left[group])
            left[group] += rest
    return [line[start : start + batch_size] for line in lines for start in range(0, len(line), batch_size)]


def fitting_batch_size(model: ModelAdapter, samples: Collection[Sample], devices: int = 1) -> int:
    """Most rows of a batch where nobody says how many: 8, and up to 16 of small pictures.

    Few small pictures leave a machine half idle. Beyond 8, a batch has no more latent cells than 8 pictures of 512x512
    pixels have under Stable Diffusion.

    Args:
        model: The adapter.
        samples: The rows; the largest picture among them counts.
        devices: How many share the rows; each should have some.

    Raises:
        ValueError: If a picture's size does not fit the model.
    """
    height, width = model.default_size
    sizes = {(sample.height or height, sample.width or width) for sample in samples}
    cells = max((rows * columns for _, rows, columns in (model.latent_shape(*size) for size in sizes)), default=1)
    most = max(8, min(16, 8 * 64 * 64 // cells))
    return most if devices == 1 else min(most, max(1, math.ceil(len(samples) / devices)))


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
    model: ModelAdapter, samples: Sequence[Sample], *, batch_size: int | None = None, observer: Observer | None = None
) -> Iterator[SampleResult]:
    """Sample any rows; results come batch by batch.

    Args:
        model: The adapter.
        samples: Rows; those that can share a batch are sampled together.
        batch_size: Most rows in one batch; as many as suit the pictures' size when ``None``.
        observer: Told of everything.

    Raises:
        ValueError: If a row asks for what cannot be done; before anything is sampled where possible.
    """
    for sample in samples:
        check_methods(sample)
    for rows in plan_batches(samples, fitting_batch_size(model, samples) if batch_size is None else batch_size):
        yield from sample_batch(model, rows, observer)
