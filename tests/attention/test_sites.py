from typing import Any

import pytest

from attnguide.attention.sites import Site, SiteSelector, levels_of, select
from attnguide.methods import build_method

SITES = (
    Site("down.0.attn1", "self", 16, 24, 2, "down", 0),
    Site("down.0.attn2", "cross", 16, 24, 2, "down", 0),
    Site("mid.attn2", "cross", 8, 12, 4, "mid", 1),
    Site("up.0.attn2", "cross", 16, 24, 2, "up", 0),
)


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        (SiteSelector(), [site.name for site in SITES]),
        (SiteSelector(kind="self"), ["down.0.attn1"]),
        (SiteSelector(kind="cross", levels=(0,)), ["down.0.attn2", "up.0.attn2"]),
        (SiteSelector(resolutions=((8, 12),)), ["mid.attn2"]),
        (SiteSelector(places=("mid", "up")), ["mid.attn2", "up.0.attn2"]),
        (SiteSelector(names=("*.attn1", "mid*")), ["down.0.attn1", "mid.attn2"]),
        (SiteSelector(where=lambda site: site.heads > 2), ["mid.attn2"]),
        (SiteSelector(kind="cross", places=("down",), levels=(0, 1)), ["down.0.attn2"]),
    ],
)
def test_every_condition_must_hold(selector: SiteSelector, names: list[str]) -> None:
    assert [site.name for site in select(SITES, selector)] == names


@pytest.mark.parametrize(
    "selector",
    [
        SiteSelector(kind="joint"),
        SiteSelector(levels=(5,)),
        SiteSelector(resolutions=((12, 8),)),
        SiteSelector(names=("attn3",)),
    ],
)
def test_nothing_matched_says_what_exists(selector: SiteSelector) -> None:
    with pytest.raises(
        ValueError, match=r"No attention site matches .*3 cross, 1 self sites exist.*16x24 \(level 0\).*8x12"
    ) as error:
        select(SITES, selector)
    assert SITES[0].name in str(error.value)


def test_a_model_without_sites() -> None:
    with pytest.raises(ValueError, match="the model has none"):
        select([], SiteSelector())


def test_levels() -> None:
    assert levels_of(reversed(SITES)) == (0, 1)


def test_counted_levels_are_those_that_exist() -> None:
    """As in SDXL's UNet: no attention on the largest maps, features there too."""
    sites = [
        Site(f"{place}.{level}", "cross", 32 >> level, 32 >> level, 4, place, level)
        for place in ("down", "up")
        for level in (1, 2)
    ]
    sites += [Site("mid.3", "self", 4, 4, 4, "mid", 3), Site("down.0.conv2", "feature", 32, 32, 0, "down", 0)]

    def chosen(*levels: int, places: tuple[str, ...] | None = None) -> list[str]:
        return [site.name for site in select(sites, SiteSelector("cross", levels, places=places, counted=True))]

    assert chosen(0) == ["down.1", "up.1"]
    assert chosen(0, 1) == ["down.1", "down.2", "up.1", "up.2"]
    assert chosen(1, 2, places=("up",)) == ["up.2"]
    with pytest.raises(ValueError, match="No attention site matches"):
        chosen(2)
    with pytest.raises(ValueError, match="No attention site matches"):
        select(sites, SiteSelector("cross", (0,)))


@pytest.mark.parametrize(("name", "levels"), [("inject1", {1}), ("inject4", {1}), ("inject5", {1, 2}), ("inject8", {1, 2})])
def test_presets_act_on_the_largest_maps_that_exist(name: str, levels: set[int]) -> None:
    sites = [Site(f"up.{level}", "cross", 32 >> level, 32 >> level, 4, "up", level) for level in (1, 2, 3)]
    built: Any = build_method(name, {})
    assert {site.level for site in select(sites, built.sites)} == levels
