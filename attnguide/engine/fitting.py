"""Checks that methods can act on a model: their sites, region places at these sites, and the texts that they add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnguide.attention.complaints import check_readable
from attnguide.attention.sites import Site, SiteSelector, select
from attnguide.engine.branches import read_source
from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection
from attnguide.models.base import ModelAdapter
from attnguide.prompt.targets import Targets
from attnguide.types import Branch, Step


def check_fit(
    model: ModelAdapter,
    targets: Targets,
    guidances: Sequence[Guidance],
    injections: Sequence[Injection],
    size: tuple[int, int],
    branches: Sequence[Branch],
) -> None:
    """Refuse a row on which its methods cannot act with this model.

    Args:
        model: The adapter.
        targets: Words and places of the row.
        guidances: Methods that need gradients.
        injections: Methods that edit attention.
        size: Height and width of the picture in pixels.
        branches: Branches of a plain denoising pass of the row.

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


def check_hidden(guidances: Sequence[Guidance], injections: Sequence[Injection], steps: Sequence[Step]) -> None:
    """Refuse place guidances if an injection masks the prompt's words inside regions at every step at which they act.

    Args:
        guidances: Guidances of a row.
        injections: Injections of the same row.
        steps: Steps of its scheduler.

    Raises:
        ValueError: Naming the guidance and the injection.
    """
    for guidance in guidances:
        acting = [step for step in steps if guidance.acts(step)]
        for injection in injections if guidance.needs_regions == "place" and acting else ():
            if all(injection.hides_words(step) for step in acting):
                raise ValueError(
                    f"Method {guidance.name!r} reads where words of the prompt look inside their regions, and while "
                    f"{injection.name!r} acts, cells there see the regions' own texts alone: nothing could move. Let "
                    f"{injection.name} stop before {guidance.name} does (stop), or leave one of them out."
                )


def _select(method: Guidance | Injection, sites: Iterable[Site], selector: SiteSelector) -> tuple[Site, ...]:
    """The sites that a method's selector matches.

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
    """Refuse methods that compare batch elements, where the model runs texts of different lengths in separate forwards.

    Both halves of classifier-free guidance are separate forwards; a row and its source share one if their prompts have equally
    many tokens.
    """
    if not model.one_length:
        return
    for method in methods:
        edits = method.edits(targets) if isinstance(method, Injection) else method.edits(targets, model.guidance_level)
        if len(branches) > 1 and any(edit.across_halves for edit in edits):
            raise ValueError(
                f"Method {method.name!r} masks both halves of a pass by what it saw of one, but {model.name} reads texts of "
                "different lengths in passes of their own; leave words and regions out, or use another method."
            )
        if method.source is None:
            continue
        own, other = (len(model.tokenize(read[0].text).tokens) for read in (targets.tokenized, targets.source_prompts))
        if own != other:
            raise ValueError(
                f"Method {method.name!r} compares a row with its source, but {model.name} reads texts of different lengths in "
                f"passes of their own: the prompt has {own} tokens and the source prompt {other}; word them with equally many."
            )


def _check_texts(model: ModelAdapter, injection: Injection, targets: Targets) -> None:
    """Refuse a method's further texts if they are longer than the text encoder reads, or cannot be appended to the prompt."""
    if injection.extends_text and model.repacks_text:
        raise ValueError(
            f"Method {injection.name!r} puts further texts behind the prompt, which {model.name} would read without the "
            "padding between them, at other places; layout_guidance and forward_layout place words there, and FLUX.1, Stable "
            "Diffusion 3 and Qwen-Image read further texts."
        )
    for text in injection.negative_prompts(targets):
        read_source(model, text, f"negative prompt of {injection.name}")
    for text in injection.further_prompts(targets):
        read_source(model, text, f"prompt of a region of {injection.name}")


def _check_places(method: Guidance | Injection, targets: Targets, sites: Sequence[Site]) -> None:
    """Refuse a region that covers no cell even of the largest maps at which a method uses places."""
    sizes = [(site.height, site.width) for site in sites if site.kind != "feature"]
    if method.needs_regions == "place" and sizes:
        targets.require_cells(*max(sizes))
