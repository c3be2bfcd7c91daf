"""Maps of joint attention, where the picture holds most of every row, mean to every guidance what a UNet's maps mean."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from attnguide.attention.maps import AttentionMaps
from attnguide.methods import METHODS
from attnguide.prompt.targets import Targets
from attnguide.types import Region
from tests import tiny
from tests.guidance import cases

GUIDANCES = [name for name, info in METHODS.items() if info.family == "guidance"]
OPTIONS: dict[str, dict[str, Any]] = {"a_star": {"retain": "places"}, "stable": {"guide": True}}
BOTH = ("initno", "bounded_attention", "self_cross")


def _targets() -> Targets:
    regions = (replace(tiny.CAT, weight=0.5), Region("blue ball", box=(0.5, 0.0, 1.0, 0.5)))
    return cases.targets_of({"prompt": tiny.PROMPT, "regions": regions})


def _maps(name: str) -> AttentionMaps:
    crosses = cases.cross_sites(("mid", 0, 8, 12), ("up", 0, 8, 12))
    sites = [*crosses, *cases.self_sites(("mid", 0, 8, 12), ("up", 0, 8, 12))] if name in BOTH else crosses
    return cases.random_maps(sites, 1, 2)


def _losses(name: str, maps: AttentionMaps, **options: Any) -> list[torch.Tensor]:
    method = cases.guidance(name, **OPTIONS.get(name, {}), **options)
    targets = _targets()
    method.start(targets)
    output = method.loss(maps, targets, cases.FLAT)
    return [output.loss, output.indicator]


@pytest.mark.parametrize(("name", "options"), [*[(name, {}) for name in GUIDANCES], ("mask_guidance", {"per_head": True})])
def test_how_much_of_a_row_is_text_is_of_no_consequence(name: str, options: dict[str, Any]) -> None:
    """The same maps, of which each query gives a part of its own to text, and each query of self-attention to cells."""
    maps = _maps(name)
    generator = torch.Generator().manual_seed(0)
    thin = {}
    for site, probs in maps.probs.items():
        parts = (0.02 + 0.2 * torch.rand(probs.shape[2], generator=generator, dtype=torch.float64)).view(1, 1, -1, 1)
        thin[site] = probs.detach() * (0.05 if site.kind == "cross" else 1.0) * (parts if site.kind == "self" else 1.0)
    own = torch.ones(1, tiny.LENGTH, dtype=torch.bool)
    whole = AttentionMaps({site: probs.detach() for site, probs in maps.probs.items()})
    for found, expected in zip(
        _losses(name, AttentionMaps(thin, own=own), **options), _losses(name, whole, **options), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"), [("layout_guidance", {}), ("bounded_attention", {}), ("mask_guidance", {"per_head": True})]
)
def test_of_every_query_and_head(name: str, options: dict[str, Any]) -> None:
    """What is read site by site and head by head has its rows normalised there."""
    maps = _maps(name)
    generator = torch.Generator().manual_seed(1)
    thin = {
        site: probs.detach() * (0.02 + 0.2 * torch.rand(*probs.shape[:3], 1, generator=generator, dtype=torch.float64))
        for site, probs in maps.probs.items()
    }
    whole = AttentionMaps({site: probs.detach() for site, probs in maps.probs.items()})
    own = torch.ones(1, tiny.LENGTH, dtype=torch.bool)
    found, expected = (_losses(name, one, **options)[0] for one in (AttentionMaps(thin, own=own), whole))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
