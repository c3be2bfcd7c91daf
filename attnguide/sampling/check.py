"""What only a model can tell about rows, found before anything is sampled."""

from __future__ import annotations

from collections.abc import Iterable

from attnguide.attention.sites import select
from attnguide.methods import build_methods
from attnguide.models.base import ModelAdapter
from attnguide.models.schedulers import scheduler_class
from attnguide.prompt.targets import Targets
from attnguide.sampling.best_of_k import build_baseline
from attnguide.sampling.branches import common_source, source_prompts
from attnguide.sampling.replay import check_replay, pictured_rows
from attnguide.sampling.source_maps import check_sources
from attnguide.sampling.texts import read_source, read_whole
from attnguide.types import Sample


def check_rows(model: ModelAdapter, samples: Iterable[Sample]) -> None:
    """Refuse rows that a model cannot sample.

    Raises:
        ValueError: With the row's id, if a prompt is longer than the text encoder reads, a phrase has no token, a method finds
            no attention site, or a region is too small for the maps its method reads.
    """
    for sample in samples:
        try:
            with model.exclusive():
                _check_row(model, sample)
        except ValueError as error:
            raise ValueError(f"Row {sample.id!r}: {error}") from error


def _check_row(model: ModelAdapter, sample: Sample) -> None:
    tokenized = read_whole(model, sample)
    model.check_row(sample)
    if sample.scheduler is not None:
        scheduler_class(sample.scheduler)
    guidances, injections = build_methods([sample])
    build_baseline(sample)
    sample = check_sources(model, sample)
    others = [read_source(model, text) for text in source_prompts(common_source([*guidances, *injections]), [sample])]
    if pictured_rows(common_source([*guidances, *injections]), 1):
        check_replay(model, model.make_scheduler(sample.scheduler, sample.steps), sample.steps)
    targets = Targets.build([sample], [tokenized], "cpu", others)
    for name, text in [(injection.name, text) for injection in injections for text in injection.negative_prompts(targets)]:
        read_source(model, text, f"negative prompt of {name}")
    if not guidances and not injections:
        return
    height, width = sample.height or model.default_size[0], sample.width or model.default_size[1]
    sites = model.attention_modules(height, width)
    every = {**sites, **model.feature_modules(height, width)}
    for guidance in guidances:
        guidance.check(targets, select(sites, guidance.sites_at(model.guidance_level)))
        if guidance.features is not None:
            select(every, guidance.features)
    edits = [edit for injection in injections for edit in injection.edits(targets)]
    edits += [edit for guidance in guidances for edit in guidance.edits(targets, model.guidance_level)]
    for edit in edits:
        select(every, edit.sites)
