"""Choice of the occurrence that a region means, where one region's phrase is part of another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnguide.prompt.tokens import TokenizedPrompt, find_phrase
from attnguide.prompt.words import Span, occurrences
from attnguide.types import Region


def settle(prompt: str, regions: Sequence[Region], tokenized: TokenizedPrompt | None = None) -> tuple[Region, ...]:
    """The regions of a row, each with the occurrence of its phrase that it means.

    A region that names none takes the first occurrence that shares no character with another region's phrase: in ``a hot dog
    and a dog``, regions ``hot dog`` and ``dog`` mean the first and the second dog. Longer phrases choose first, so the order of
    the regions makes no difference. Regions of one phrase mean the same occurrence. Where every occurrence is covered, regions
    that only name words share the first; two places would pull the same words to both, and are refused.

    Args:
        prompt: The row's prompt.
        regions: The row's regions.
        tokenized: The tokenized prompt, to find the words of a region's ``token_indices``.

    Raises:
        ValueError: If a phrase does not occur, or stands only inside another region's phrase and both have a place.
    """
    for region in regions:
        if region.token_indices is None:
            find_phrase(prompt, region.phrase, region.occurrence)
    taken = [(region, _given(prompt, region, tokenized)) for region in regions]
    chosen: dict[str, int] = {}
    waiting = [region for region in regions if region.token_indices is None and region.occurrence is None]
    for region in sorted(waiting, key=lambda region: (-len(region.phrase), region.phrase.lower())):
        if _name(region) not in chosen:
            chosen[_name(region)] = _choose(prompt, [r for r in waiting if _name(r) == _name(region)], taken)
        taken.append((region, [occurrences(prompt, region.phrase)[chosen[_name(region)]]]))
    return tuple(replace(region, occurrence=chosen[_name(region)]) if region in waiting else region for region in regions)


def free_occurrences(prompt: str, phrase: str, others: Sequence[str]) -> list[int]:
    """Indices of a phrase's occurrences outside all longer phrases of ``others``; all occurrences where there are none."""
    longer = [span for other in others if len(other) > len(phrase) for span in occurrences(prompt, other)]
    spans = occurrences(prompt, phrase)
    free = [i for i, (a, b) in enumerate(spans) if not any(first <= a and b <= stop for first, stop in longer)]
    return free or list(range(len(spans)))


def _name(region: Region) -> str:
    return " ".join(region.phrase.lower().split())


def _given(prompt: str, region: Region, tokenized: TokenizedPrompt | None) -> list[Span]:
    """Characters of a region with explicit ``token_indices`` or ``occurrence``; empty for others."""
    if region.token_indices is not None:
        offsets = tokenized.offsets if tokenized is not None else ()
        return [span for i in region.token_indices if 0 <= i < len(offsets) and (span := offsets[i]) is not None]
    return [] if region.occurrence is None else [find_phrase(prompt, region.phrase, region.occurrence)]


def _choose(prompt: str, same: Sequence[Region], taken: Sequence[tuple[Region, list[Span]]]) -> int:
    """The first free occurrence of a phrase; the first of all where sharing it does no harm."""
    spans = occurrences(prompt, same[0].phrase)
    others = [(other, places) for other, places in taken if _name(other) != _name(same[0])]
    for number, span in enumerate(spans):
        if not any(_disturbs(other, places, span) for other, places in others):
            return number
    placed = [region for region in same if region.has_place]
    for other, places in others:
        if placed and other.has_place and any(_disturbs(other, places, span) for span in spans):
            raise ValueError(
                f"Regions {other.phrase!r} and {same[0].phrase!r} have a place each and share words of the prompt {prompt!r}: "
                f"{same[0].phrase!r} stands nowhere else. Leave one out, or say which is meant ({same[0].phrase}[0])."
            )
    return 0


def _disturbs(other: Region, places: Sequence[Span], span: Span) -> bool:
    """Whether a span shares characters with another region, unless that one explicitly names a part of the span."""
    if not any(first < span[1] and span[0] < stop for first, stop in places):
        return False
    inside = all(span[0] <= first and stop <= span[1] for first, stop in places)
    part = inside and sum(stop - first for first, stop in places) < span[1] - span[0]
    return not part or (other.occurrence is None and other.token_indices is None)
