"""Attention sites and how to choose among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Literal

SiteKind = Literal["cross", "self", "joint", "feature"]
KINDS: tuple[SiteKind, ...] = ("cross", "self", "joint")

Span = tuple[int | None, int | None]
"""A range of positions of one attention call, as in a slice: a negative number counts from the end."""


@dataclass(frozen=True, order=True)
class Site:
    """One block of one attention module, or one module whose output is a feature map.

    In a UNet a block is the whole attention of a module. A module of joint attention carries several sites under one name:
    image queries on text keys (``cross``), image queries on image keys (``self``), and everything (``joint``).

    Attributes:
        name: Module path inside the network.
        kind: ``cross`` (queries are image positions, keys are text tokens), ``self`` (both are image positions), ``joint``
            (both are image positions and text tokens), or ``feature`` (no attention, a feature map).
        height: Map height in cells.
        width: Map width in cells.
        heads: Attention heads; 0 for features.
        place: ``down``, ``mid`` or ``up``; in a transformer by depth (:func:`place_at`).
        level: Number of times the latents were halved in size to reach this map; 0 is latent size.
        depth: 0 for the network's first attention, 1 for its last, in the order in which they run.
        queries: Query positions of the call that are the map's cells; all when ``None``.
        keys: Key positions of the call that are text (``cross``) or the map's cells (``self``); all when ``None``.
    """

    name: str
    kind: SiteKind
    height: int
    width: int
    heads: int
    place: str = "block"
    level: int = 0
    depth: float = 0.0
    queries: Span | None = None
    keys: Span | None = None

    @property
    def cells(self) -> int:
        """Number of cells of the site's map."""
        return self.height * self.width


def place_at(depth: float) -> str:
    """The part of a transformer that a depth lies in: ``down`` below 0.4, ``mid`` up to 0.6, ``up`` above.

    This gives a stack of equal blocks counterparts of a UNet's encoder, middle and decoder.
    """
    return "down" if depth < 0.4 else "mid" if depth <= 0.6 else "up"


def depths(count: int) -> tuple[float, ...]:
    """Depths in [0, 1] of ``count`` attention modules that run one after the other."""
    return tuple(index / max(count - 1, 1) for index in range(count))


@dataclass(frozen=True)
class SiteSelector:
    """A filter of sites; every condition that is given must hold.

    Attributes:
        kind: ``cross``, ``self``, ``joint`` or ``feature``; ``cross`` or ``self`` when ``None``.
        levels: Ranks of map sizes among the network's sites of the same kind: 0 is the largest, a number beyond the last is
            the smallest. A choice means the same for every picture size, and selects something on every network.
        resolutions: Map sizes ``(height, width)``.
        places: ``down``, ``mid``, ``up``.
        names: Glob patterns over module paths.
        where: Any further condition.
        depths: Smallest and largest depth, each in [0, 1].
        also: Further selectors, whose sites are added.

    Example:
        >>> select([Site("up.attn2", "cross", 8, 8, 4, "up", 1)], SiteSelector(kind="cross", levels=(0,)))[0].name
        'up.attn2'

    Raises:
        ValueError: If a level is negative, or the depths are no range within [0, 1].
    """

    kind: SiteKind | None = None
    levels: tuple[int, ...] | None = None
    resolutions: tuple[tuple[int, int], ...] | None = None
    places: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    where: Callable[[Site], bool] | None = field(default=None, repr=False)
    depths: tuple[float, float] | None = None
    also: tuple[SiteSelector, ...] = ()

    def __post_init__(self) -> None:
        if self.levels is not None and any(level < 0 for level in self.levels):
            raise ValueError(f"levels must be at least 0; got {self.levels}.")
        if self.depths is not None and not 0 <= self.depths[0] <= self.depths[1] <= 1:
            raise ValueError(f"depths must be two numbers in [0, 1], the smaller one first; got {self.depths}.")

    def __str__(self) -> str:
        """The given conditions in words."""
        shown = [(one.name, getattr(self, one.name)) for one in fields(self) if one.name not in ("where", "also")]
        said = [f"{name} {value}" for name, value in shown if value is not None]
        said += ["a further condition"] * (self.where is not None)
        return " or ".join([" and ".join(said) or "any", *map(str, self.also)])

    def chosen(self, sites: Sequence[Site]) -> frozenset[Site]:
        """The sites of a network that match."""
        there = {kind: levels_of(site for site in sites if site.kind == kind) for kind in (*KINDS, "feature")}
        own = {site for site in sites if self._matches(site, there[site.kind])}
        return frozenset(own.union(*(other.chosen(sites) for other in self.also)))

    def _matches(self, site: Site, levels: Sequence[int]) -> bool:
        """Whether ``site`` fulfils every condition; ``levels`` are those of the network's sites of its kind."""
        return (
            site.kind in (("cross", "self") if self.kind is None else (self.kind,))
            and (self.levels is None or site.level in {levels[min(number, len(levels) - 1)] for number in self.levels})
            and (self.resolutions is None or (site.height, site.width) in self.resolutions)
            and (self.places is None or site.place in self.places)
            and (self.names is None or any(fnmatchcase(site.name, pattern) for pattern in self.names))
            and (self.where is None or self.where(site))
            and (self.depths is None or self.depths[0] <= site.depth <= self.depths[1])
        )


def depth_range(depths: Sequence[float] | None) -> tuple[float, float] | None:
    """A pair of depths checked for :attr:`SiteSelector.depths`.

    Raises:
        ValueError: If they are not two numbers in [0, 1], the smaller one first.
    """
    if depths is None:
        return None
    if len(depths) != 2:
        raise ValueError(f"depths must be two numbers in [0, 1], the smaller one first; got {depths}.")
    return SiteSelector(depths=(depths[0], depths[1])).depths


def select(sites: Iterable[Site], selector: SiteSelector) -> tuple[Site, ...]:
    """The sites that ``selector`` matches, in the order given.

    Raises:
        ValueError: If nothing matches; the message says what exists.
    """
    sites = tuple(sites)
    chosen = selector.chosen(sites)
    if not chosen:
        alike = [site for site in sites if (site.kind == "feature") == (selector.kind == "feature")]
        raise ValueError(f"No attention site matches {selector}; {_describe(alike)}.")
    return tuple(site for site in sites if site in chosen)


def levels_of(sites: Iterable[Site]) -> tuple[int, ...]:
    """Distinct levels of the sites, largest maps first."""
    return tuple(sorted({site.level for site in sites}))


def _describe(sites: Sequence[Site]) -> str:
    if not sites:
        return "the model has none"
    kinds = {kind: sum(site.kind == kind for site in sites) for kind in (*KINDS, "feature")}
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    sizes = ", ".join(f"{h}x{w} (level {level})" for level, h, w in sorted({(s.level, s.height, s.width) for s in sites}))
    return f"{counts} sites exist on maps of {sizes}, e.g. {sites[0].name!r}"
