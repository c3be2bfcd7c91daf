from typing import Any

import pytest

from attnguide.attention.sites import Site, SiteSelector, depth_range, depths, levels_of, place_at, select
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
        SiteSelector(depths=(0.5, 1.0)),
        SiteSelector(resolutions=((12, 8),)),
        SiteSelector(names=("attn3",)),
    ],
)
def test_nothing_matched_says_what_exists(selector: SiteSelector) -> None:
    with pytest.raises(
        ValueError, match=r"No attention site matches .*3 cross, 1 self sites exist.*16x24 \(level 0\).*8x12"
    ) as error:
        select(SITES, selector)
    assert SITES[0].name in str(error.value) and "None" not in str(error.value)


def test_a_model_without_sites() -> None:
    with pytest.raises(ValueError, match="the model has none"):
        select([], SiteSelector())


def test_levels() -> None:
    assert levels_of(reversed(SITES)) == (0, 1)


def test_levels_are_counted_among_those_of_the_kind() -> None:
    """As in SDXL's UNet: no attention on the largest maps, features there too."""
    sites = [
        Site(f"{place}.{level}", "cross", 32 >> level, 32 >> level, 4, place, level)
        for place in ("down", "up")
        for level in (1, 2)
    ]
    sites += [Site("mid.3", "self", 4, 4, 4, "mid", 3), Site("down.0.conv2", "feature", 32, 32, 0, "down", 0)]

    def chosen(*levels: int, kind: Any = "cross", places: tuple[str, ...] | None = None) -> list[str]:
        return [site.name for site in select(sites, SiteSelector(kind, levels, places=places))]

    assert chosen(0) == ["down.1", "up.1"]
    assert chosen(0, 1) == ["down.1", "down.2", "up.1", "up.2"]
    assert chosen(1, 2, places=("up",)) == ["up.2"]
    assert chosen(2) == chosen(9) == ["down.2", "up.2"]  # beyond the last is the last
    assert chosen(0, kind=None) == ["down.1", "up.1", "mid.3"]  # of each kind its own
    assert chosen(0, kind="feature") == ["down.0.conv2"]


def test_a_transformer_has_one_level_and_parts_by_depth() -> None:
    names = [f"blocks.{index}.attn" for index in range(5)]
    sites = [Site(name, "cross", 8, 8, 4, place_at(depth), 1, depth) for name, depth in zip(names, depths(5), strict=True)]
    assert [site.depth for site in sites] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [site.place for site in sites] == ["down", "down", "mid", "up", "up"]
    assert select(sites, SiteSelector("cross", (0, 1))) == tuple(sites)
    assert [site.name for site in select(sites, SiteSelector(depths=(0.25, 0.5)))] == names[1:3]
    either = SiteSelector(names=("*.0.*",), also=(SiteSelector(places=("mid",)), SiteSelector(names=("nothing",))))
    assert [site.name for site in select(sites, either)] == [names[0], names[2]]
    assert depths(1) == (0.0,) and (place_at(0.4), place_at(0.6)) == ("mid", "mid")


@pytest.mark.parametrize("wrong", [{"levels": (0, -1)}, {"depths": (0.5, 0.2)}, {"depths": (0.0, 1.5)}])
def test_selectors_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be .*; got"):
        SiteSelector(**wrong)


def test_joint_blocks_and_features_are_chosen_by_their_kind_alone() -> None:
    kinds: tuple[Any, ...] = ("cross", "self", "joint", "feature")
    sites = [Site("attn", kind, 2, 2, 1) for kind in kinds]
    assert {site.kind for site in select(sites, SiteSelector())} == {"cross", "self"}
    assert [site.kind for site in select(sites, SiteSelector("joint"))] == ["joint"]


@pytest.mark.parametrize(("name", "levels"), [("inject1", {1}), ("inject4", {1}), ("inject5", {1, 2}), ("inject8", {1, 2})])
def test_presets_act_on_the_largest_maps_that_exist(name: str, levels: set[int]) -> None:
    sites = [Site(f"up.{level}", "cross", 32 >> level, 32 >> level, 4, "up", level) for level in (1, 2, 3)]
    built: Any = build_method(name, {})
    assert {site.level for site in select(sites, built.sites)} == levels


@pytest.mark.parametrize("name", ["map_injection", "mask_guidance", "forward_layout"])
def test_a_method_s_blocks_are_chosen_by_depth(name: str) -> None:
    """Two numbers in a YAML file are a list; wrong ones are refused before a model is loaded."""
    method: Any = build_method(name, {"depths": [0.0, 0.3]})
    assert (method.sites_at(0) if name == "mask_guidance" else method.sites).depths == (0.0, 0.3)
    for wrong in ([0.5], [0.1, 0.2, 0.3], [0.5, 0.2], [0.0, 1.5]):
        with pytest.raises(ValueError, match="depths must be two numbers"):
            build_method(name, {"depths": wrong})
    assert depth_range(None) is None
