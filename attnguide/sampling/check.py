"""Checks of rows that need the model: prompt lengths, tokens, attention sites, sizes; made before anything is sampled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, partial

from attnguide.attention.complaints import check_readable
from attnguide.attention.sites import Site, SiteSelector, select
from attnguide.batching import build_methods
from attnguide.engine.branches import common_source, read_source, read_whole, source_prompts
from attnguide.engine.inversion import check_replay, pictured_rows
from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection
from attnguide.methods import check_methods
from attnguide.models.base import ModelAdapter
from attnguide.models.schedulers import scheduler_class
from attnguide.prompt.targets import Targets
from attnguide.sampling.best_of_k import build_baseline
from attnguide.sampling.problems import require_rows, with_problem
from attnguide.sampling.source_maps import check_sources
from attnguide.types import Sample


def check_rows(model: ModelAdapter, samples: Iterable[Sample]) -> None:
    """Refuse rows if a model cannot sample one of them.

    Raises:
        ValueError: With the row's id, if a prompt is longer than the text encoder reads, a phrase has no token, a method finds
            no attention site, or a region is too small for the maps its method reads.
    """
    for sample in samples:
        (marked,) = mark_rows(model, [sample])
        if marked.problem is not None:
            raise ValueError(f"Row {sample.id!r}: {marked.problem}")


def mark_rows(model: ModelAdapter, samples: Iterable[Sample]) -> list[Sample]:
    """The rows, each that a model cannot sample with the reason as its :attr:`~attnguide.types.Sample.problem`.

    Raises:
        ValueError: With the row's id, if a method, an option or a scheduler does not exist, which is no row's own affair.
    """
    marked = []
    schedule = cache(partial(_check_schedule, model))
    for sample in samples:
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
    return marked


def sampleable(model: ModelAdapter, samples: Iterable[Sample], *, strict: bool = False) -> list[Sample]:
    """Mark rows as :func:`mark_rows` does, and refuse a table none of whose rows can be sampled.

    Args:
        model: The adapter.
        samples: The rows.
        strict: Refuse all rows on account of one.

    Raises:
        ValueError: As :func:`mark_rows`; with the first problem if every row has one, or ``strict`` is set.
    """
    marked = mark_rows(model, samples)
    require_rows(marked, strict=strict)
    return marked


def _check_schedule(model: ModelAdapter, scheduler: str | None, steps: int, height: int | None, width: int | None) -> None:
    """Refuse a number of steps that a noise scheduler cannot make, and a size that the model cannot."""
    shape = model.latent_shape(height or model.default_size[0], width or model.default_size[1])
    model.make_scheduler(scheduler, steps, shape)


def _check_row(model: ModelAdapter, sample: Sample) -> None:
    check_methods(sample)
    tokenized = read_whole(model, sample)
    model.check_row(sample)
    height, width = sample.height or model.default_size[0], sample.width or model.default_size[1]
    guidances, injections = build_methods([sample])
    sample = check_sources(model, sample)
    others = [read_source(model, text) for text in source_prompts(common_source([*guidances, *injections]), [sample])]
    if pictured_rows(common_source([*guidances, *injections]), 1):
        shape = model.latent_shape(height, width)
        check_replay(model, model.make_scheduler(sample.scheduler, sample.steps, shape), sample.steps, shape)
    targets = Targets.build([sample], [tokenized], "cpu", others, cuts_padding=model.cuts_padding)
    for injection in injections:
        _check_texts(model, injection, targets)
    if not guidances and not injections:
        return
    if guidances:
        model.check_gradients()
    sites = model.attention_modules(height, width)
    every = {**sites, **model.feature_modules(height, width)}
    for guidance in guidances:
        read = _select(guidance, sites, guidance.sites_at(model.guidance_level))
        check_readable(sites, read)
        guidance.check(targets, read)
        _check_places(guidance, targets, read)
        if guidance.features is not None:
            _select(guidance, every, guidance.features)
    for injection in injections:
        injection.check(targets, tuple(sites))
        edited = [_select(injection, every, edit.sites) for edit in injection.edits(targets)]
        check_readable(sites, [site for found in edited for site in found])
        _check_places(injection, targets, [site for sites in edited for site in sites])
    for guidance in guidances:
        for edit in guidance.edits(targets, model.guidance_level):
            _select(guidance, every, edit.sites)
    _check_lengths(model, sample, [*guidances, *injections], targets)


def _select(method: Guidance | Injection, sites: Iterable[Site], selector: SiteSelector) -> tuple[Site, ...]:
    """The sites that a method asks for.

    Raises:
        ValueError: Naming the method, if the network has none of them.
    """
    try:
        return select(sites, selector)
    except ValueError as error:
        raise ValueError(f"Method {method.name!r} finds nothing to act on: {error}") from error


def _check_lengths(model: ModelAdapter, sample: Sample, methods: Sequence[Guidance | Injection], targets: Targets) -> None:
    """Refuse methods that compare elements of a pass, where texts of different lengths are read in passes of their own."""
    if not model.one_length or len(model.halves(sample)) == 1:
        return
    for method in methods:
        edits = method.edits(targets) if isinstance(method, Injection) else method.edits(targets, model.guidance_level)
        if method.source is not None or any(edit.remembers for edit in edits):
            raise ValueError(
                f"Method {method.name!r} compares elements of a pass, but {model.name} reads texts of different lengths in "
                "passes of their own; set cfg_scale to 1, or use another method."
            )


def _check_texts(model: ModelAdapter, injection: Injection, targets: Targets) -> None:
    """Refuse texts of a method's own that are longer than the text encoder reads, or cannot stand behind the prompt."""
    if injection.extends_text and model.repacks_text:
        raise ValueError(
            f"Method {injection.name!r} puts further texts behind the prompt, which {model.name} would read without the "
            "padding between them, at other places."
        )
    for text in injection.negative_prompts(targets):
        read_source(model, text, f"negative prompt of {injection.name}")
    for text in injection.further_prompts(targets):
        read_source(model, text, f"prompt of a region of {injection.name}")


def _check_places(method: Guidance | Injection, targets: Targets, sites: Sequence[Site]) -> None:
    """Refuse a region that vanishes at the largest of the maps at which a method uses places."""
    sizes = [(site.height, site.width) for site in sites if site.kind != "feature"]
    if method.needs_regions == "place" and sizes:
        targets.require_cells(*max(sizes))
