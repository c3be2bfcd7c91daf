"""Attention sites and how to choose among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

SiteKind = Literal["cross", "self", "joint", "feature"]
KINDS: tuple[SiteKind, ...] = ("cross", "self", "joint")


@dataclass(frozen=True, order=True)
class Site:
    """One attention module, or one module whose output is a feature map.

    Attributes:
        name: Module path inside the network.
        kind: ``cross`` (queries are image positions, keys are tokens), ``self`` (both are image positions) or ``joint``
            (both are both); ``feature`` is no attention at all, and chosen only by its name of a kind.
        height: Of its map, in cells.
        width: Of its map, in cells.
        heads: Attention heads; 0 for features.
        place: ``down``, ``mid`` or ``up`` in a UNet, ``block`` in a transformer.
        level: Halvings of the latent on the way to this map; 0 is the latent's own size.
    """

    name: str
    kind: SiteKind
    height: int
    width: int
    heads: int
    place: str = "block"
    level: int = 0


@dataclass(frozen=True)
class SiteSelector:
    """Which sites; every condition that is given must hold.

    Attributes:
        kind: ``cross``, ``self``, ``joint`` or ``feature``; any of the first three when ``None``.
        levels: Halvings of the latent, so that a choice means the same for every picture size (0 is the largest map).
        resolutions: Map sizes ``(height, width)``.
        places: ``down``, ``mid``, ``up``, ``block``.
        names: Glob patterns over module paths.
        where: Any further condition.
        counted: Whether ``levels`` count among those that the sites of this kind have, so that 0 is the largest map that
            exists (the largest maps of SDXL's UNet have no attention); :func:`select` counts them.

    Example:
        >>> select([Site("up.attn2", "cross", 8, 8, 4, "up", 1)], SiteSelector(kind="cross", levels=(1,)))[0].name
        'up.attn2'
    """

    kind: SiteKind | None = None
    levels: tuple[int, ...] | None = None
    resolutions: tuple[tuple[int, int], ...] | None = None
    places: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    where: Callable[[Site], bool] | None = field(default=None, repr=False)
    counted: bool = False

    def matches(self, site: Site) -> bool:
        """Whether ``site`` fulfils every condition."""
        return (
            (site.kind == self.kind if self.kind is not None else site.kind != "feature")
            and (self.levels is None or site.level in self.levels)
            and (self.resolutions is None or (site.height, site.width) in self.resolutions)
            and (self.places is None or site.place in self.places)
            and (self.names is None or any(fnmatchcase(site.name, pattern) for pattern in self.names))
            and (self.where is None or self.where(site))
        )


def select(sites: Iterable[Site], selector: SiteSelector) -> tuple[Site, ...]:
    """The sites that ``selector`` matches, in the order given.

    Raises:
        ValueError: If nothing matches; the message says what exists.
    """
    sites = tuple(sites)
    meant = _counted(sites, selector)
    chosen = tuple(site for site in sites if meant.matches(site))
    if not chosen:
        alike = [site for site in sites if (site.kind == "feature") == (selector.kind == "feature")]
        raise ValueError(f"No attention site matches {selector}; {_describe(alike)}.")
    return chosen


def _counted(sites: Sequence[Site], selector: SiteSelector) -> SiteSelector:
    """The selector with the sites' own levels in the place of counted ones."""
    if not selector.counted or selector.levels is None:
        return selector
    there = levels_of(
        site for site in sites if replace(selector, levels=None, places=None, names=None, where=None).matches(site)
    )
    return replace(selector, levels=tuple(there[number] for number in selector.levels if number < len(there)), counted=False)


def levels_of(sites: Iterable[Site]) -> tuple[int, ...]:
    """The distinct levels, largest maps first."""
    return tuple(sorted({site.level for site in sites}))


def _describe(sites: Sequence[Site]) -> str:
    if not sites:
        return "the model has none"
    kinds = {kind: sum(site.kind == kind for site in sites) for kind in (*KINDS, "feature")}
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    sizes = ", ".join(f"{h}x{w} (level {level})" for level, h, w in sorted({(s.level, s.height, s.width) for s in sites}))
    return f"{counts} sites exist on maps of {sizes}, e.g. {sites[0].name!r}"
