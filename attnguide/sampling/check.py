"""What only a model can tell about rows, found before anything is sampled."""

from __future__ import annotations

from collections.abc import Iterable

from attnguide.attention.sites import SiteSelector, select
from attnguide.methods import build_methods
from attnguide.models.base import ModelAdapter
from attnguide.models.schedulers import scheduler_class
from attnguide.prompt.targets import Targets
from attnguide.types import Sample


def check_rows(model: ModelAdapter, samples: Iterable[Sample]) -> None:
    """Refuse rows that a model cannot sample.

    Raises:
        ValueError: With the row's id, if a prompt is longer than the text encoder reads, a phrase has no token, a method finds
            no attention site, or a region is too small for the maps its method reads.
    """
    for sample in samples:
        try:
            _check_row(model, sample)
        except ValueError as error:
            raise ValueError(f"Row {sample.id!r}: {error}") from error


def _check_row(model: ModelAdapter, sample: Sample) -> None:
    tokenized = model.tokenize(sample.prompt)
    if tokenized.truncated:
        raise ValueError(
            f"prompt {sample.prompt!r} is longer than the text encoder reads ({len(tokenized.tokens)} tokens); "
            f"lost words: {tokenized.truncated!r}."
        )
    if sample.scheduler is not None:
        scheduler_class(sample.scheduler)
    targets = Targets.build([sample], [tokenized], "cpu")
    guidances, injections = build_methods([sample])
    if not guidances and not injections:
        return
    height, width = sample.height or model.default_size[0], sample.width or model.default_size[1]
    sites = model.attention_modules(height, width)
    for guidance in guidances:
        own = guidance.sites or SiteSelector(kind="cross", levels=(model.guidance_level,))
        guidance.check(targets, select(sites, own))
    for injection in injections:
        for edit in injection.edits(targets):
            select(sites, edit.sites)
