"""Whether methods can act on a model: the sites they ask for, the places at these sites, the texts that they add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnguide.attention.complaints import check_readable
from attnguide.attention.sites import Site, SiteSelector, select
from attnguide.engine.branches import read_source
from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection
from attnguide.models.base import ModelAdapter
from attnguide.prompt.targets import Targets
from attnguide.types import Branch


def check_fit(
    model: ModelAdapter,
    targets: Targets,
    guidances: Sequence[Guidance],
    injections: Sequence[Injection],
    size: tuple[int, int],
    branches: Sequence[Branch],
) -> None:
    """Refuse a row that its methods cannot take on a model.

    Args:
        model: The adapter.
        targets: Words and places of the row.
        guidances: Methods that need gradients.
        injections: Methods that edit attention.
        size: Height and width of the picture in pixels.
        branches: Of a plain denoising pass of the row.

    Raises:
        ValueError: If a text is too long, the network gives no gradients, a method finds no site, or a region is too small for
            the maps that its method reads.
    """
    for injection in injections:
        _check_texts(model, injection, targets)
    if not guidances and not injections:
        return
    if guidances:
        model.check_gradients()
    sites = model.attention_modules(*size)
    every = {**sites, **model.feature_modules(*size)}
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
    _check_lengths(model, branches, [*guidances, *injections], targets)


def _select(method: Guidance | Injection, sites: Iterable[Site], selector: SiteSelector) -> tuple[Site, ...]:
    """The sites that a method asks for.

    Raises:
        ValueError: Naming the method, if the network has none of them.
    """
    try:
        return select(sites, selector)
    except ValueError as error:
        raise ValueError(f"Method {method.name!r} finds nothing to act on: {error}") from error


def _check_lengths(
    model: ModelAdapter, branches: Sequence[Branch], methods: Sequence[Guidance | Injection], targets: Targets
) -> None:
    """Refuse methods that compare elements of a pass, where texts of different lengths are read in passes of their own."""
    if not model.one_length or len(branches) == 1:
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
