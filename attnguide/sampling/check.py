"""Checks of rows against the model, before sampling: prompt lengths, tokens, attention sites, sizes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from attnguide.batching import build_methods
from attnguide.engine.branches import common_source, read_rows, source_prompts
from attnguide.engine.fitting import check_fit, check_hidden
from attnguide.engine.inversion import check_replay, pictured_rows
from attnguide.methods import check_methods
from attnguide.models.base import ModelAdapter
from attnguide.models.schedulers import scheduler_class
from attnguide.prompt.targets import Targets
from attnguide.sampling.best_of_k import build_baseline
from attnguide.sampling.foreign import check_foreign
from attnguide.sampling.problems import require_rows, with_problem
from attnguide.sampling.source_maps import check_sources
from attnguide.types import Sample


def check_rows(model: ModelAdapter, samples: Iterable[Sample]) -> None:
    """Refuse rows if the model cannot sample one of them.

    Raises:
        ValueError: With the row's id, if a prompt is longer than the text encoder reads, a phrase has no token, a method finds
            no attention site, or a region is too small for the maps its method reads.
    """
    for sample in samples:
        (marked,) = mark_rows(model, [sample])
        if marked.problem is not None:
            raise ValueError(f"Row {sample.id!r}: {marked.problem}")


def mark_rows(model: ModelAdapter, samples: Iterable[Sample]) -> list[Sample]:
    """Copies of the rows; :attr:`~attnguide.types.Sample.problem` is the reason in each that the model cannot sample.

    Raises:
        ValueError: With the row's id, if a method, an option or a scheduler does not exist, which is no single row's problem.
    """
    marked = []
    schedule = cache(partial(_check_schedule, model))
    passed = set[str]()
    for sample in samples:
        alike = _but_for_seed(sample)
        if alike in passed:
            marked.append(sample)
            continue
        try:
            if sample.scheduler is not None:
                scheduler_class(sample.scheduler)
            build_methods([sample])
            build_baseline(sample)
        except ValueError as error:
            raise ValueError(f"Row {sample.id!r}: {error}") from error
        with model.exclusive():
            fitting = with_problem(sample, lambda row: schedule(row.scheduler, row.steps, row.height, row.width))
            marked.append(with_problem(fitting, partial(_check_row, model)))
        if alike is not None and marked[-1].problem is None:
            passed.add(alike)
    return marked


def _but_for_seed(sample: Sample) -> str | None:
    """Key of a row without id, seed and tags, so that rows that differ in their seed alone are checked once.

    ``None`` for a row with an array or a picture as mask, or an array among options, whose ``repr`` is abridged.
    """
    masks = [region.mask for region in sample.regions]
    if not all(isinstance(mask, Path | None) for mask in masks) or any(_has_array(one.options) for one in sample.methods):
        return None
    return repr(replace(sample, id="row", seed=0, tags={}))


def _has_array(value: Any) -> bool:
    """Whether plain values hold an array of numpy or torch."""
    if isinstance(value, Mapping | list | tuple):
        return any(map(_has_array, value.values() if isinstance(value, Mapping) else value))
    return hasattr(value, "dtype")


def sampleable(model: ModelAdapter, samples: Iterable[Sample], *, strict: bool = False) -> list[Sample]:
    """Mark rows as :func:`mark_rows` does, and refuse a table none of whose rows can be sampled.

    The model's remarks on rows (:meth:`ModelAdapter.remarks`) become warnings, each once.

    Args:
        model: The adapter.
        samples: The rows.
        strict: Refuse the table if one row cannot be sampled.

    Raises:
        ValueError: As :func:`mark_rows`; with the first problem if every row has one, or ``strict`` is set.
    """
    marked = mark_rows(model, samples)
    require_rows(marked, strict=strict)
    with model.exclusive():
        remarks = [remark for row in marked if row.problem is None for remark in model.remarks(row)]
    for remark in dict.fromkeys(remarks):
        warnings.warn(remark, stacklevel=2)
    return marked


def _check_schedule(model: ModelAdapter, scheduler: str | None, steps: int, height: int | None, width: int | None) -> None:
    """Refuse a number of steps that the noise scheduler cannot make, and a picture size that the model cannot."""
    shape = model.latent_shape(height or model.default_size[0], width or model.default_size[1])
    model.make_scheduler(scheduler, steps, shape)


def _check_row(model: ModelAdapter, sample: Sample) -> None:
    check_methods(sample)
    height, width = sample.height or model.default_size[0], sample.width or model.default_size[1]
    shape = model.latent_shape(height, width)
    if (baseline := build_baseline(sample)) is not None:
        baseline.check(sample, model.make_scheduler(sample.scheduler, sample.steps, shape).steps)
    read_rows(model, [sample])
    model.check_row(sample)
    check_foreign(model, sample)
    guidances, injections = build_methods([sample])
    sample = check_sources(model, sample)
    (tokenized,), others = read_rows(model, [sample], source_prompts(common_source([*guidances, *injections]), [sample]))
    if guidances and injections:
        check_hidden(guidances, injections, model.make_scheduler(sample.scheduler, sample.steps, shape).steps)
    if pictured_rows(common_source([*guidances, *injections]), 1):
        check_replay(model, model.make_scheduler(sample.scheduler, sample.steps, shape), sample.steps, shape)
    targets = Targets.build([sample], [tokenized], "cpu", others, cuts_padding=model.cuts_padding)
    check_fit(model, targets, guidances, injections, (height, width), model.halves(sample))
