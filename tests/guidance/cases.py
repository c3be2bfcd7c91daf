"""What tests of methods share: fixed random maps, their rows, and the promise that a batch equals its rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site
from attnguide.engine.observer import Observer, UpdateEvent
from attnguide.guidance.base import Guidance, LossOutput
from attnguide.methods import build_method
from attnguide.prompt.targets import Targets
from attnguide.sampling.check import check_rows
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Region, Sample, SampleResult, Step
from tests import tiny
from tests.closeness import assert_close

FLAT = Step.at_sigma(0, 50, 999.0, 10.0)

ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "a red cat and a blue ball", "regions": (tiny.CAT, tiny.BALL)},
    {"prompt": "a blue dog", "regions": (Region("blue dog", box=(0.25, 0.0, 1.0, 0.5)),)},
    {
        "prompt": "a red ball left of a red dog and a cat",
        "regions": (
            Region("ball", box=(0.0, 0.0, 0.4, 0.6), weight=2.0),
            Region("dog", polygon=((0.5, 0.0), (1.0, 0.0), (1.0, 1.0))),
            Region("dog", box=(0.0, 0.75, 0.5, 1.0)),
            Region("cat"),
        ),
    },
    {"prompt": "a blue zebra and a red cat", "regions": (Region("zebra", blob=(0.5, 0.5, 0.3, 0.2)), tiny.CAT)},
)
"""Prompts, regions and words that differ in kind and number."""


def at(index: int, count: int = 50) -> Step:
    return Step.at_sigma(index, count, 999.0 * (1 - index / count), 10.0 * (1 - index / count) + 0.1)


def cross_sites(*kinds: tuple[str, int, int, int], heads: int = 2) -> list[Site]:
    """Sites from place, level, height and width."""
    return [Site(f"{place}.{number}", "cross", h, w, heads, place, level) for number, (place, level, h, w) in enumerate(kinds)]


def self_sites(*kinds: tuple[str, int, int, int], heads: int = 2) -> list[Site]:
    """The same for self-attention."""
    return [Site(f"{p}.{number}.self", "self", h, w, heads, p, level) for number, (p, level, h, w) in enumerate(kinds)]


def random_maps(sites: Sequence[Site], rows: int, seed: int = 0, sharpness: float = 3.0) -> AttentionMaps:
    """Probs in float64 with gradient."""
    generator = torch.Generator().manual_seed(seed)
    cells = {site: site.height * site.width for site in sites}
    shapes = {site: (rows, site.heads, cells[site], cells[site] if site.kind == "self" else tiny.LENGTH) for site in sites}
    scores = {site: torch.randn(shape, dtype=torch.float64, generator=generator) for site, shape in shapes.items()}
    return AttentionMaps({site: (sharpness * score).softmax(-1).requires_grad_(True) for site, score in scores.items()})


def targets_of(*rows: Mapping[str, Any]) -> Targets:
    samples = [Sample(str(number), **row) for number, row in enumerate(rows)]
    return Targets.build(samples, [tiny.model().tokenize(sample.prompt) for sample in samples], "cpu")


def guidance(name: str, **options: Any) -> Guidance:
    built = build_method(name, options)
    assert isinstance(built, Guidance)
    return built


def layers_of(maps: AttentionMaps, row: int = 0) -> list[Any]:
    """Each site's probs of one row as ``heads height width token`` arrays, for slow references."""
    return [p[row].detach().unflatten(1, (s.height, s.width)).numpy() for s, p in maps.probs.items()]


def gradient_is_right(method: Guidance, sites: Sequence[Site], targets: Targets, seed: int = 0, field: str = "loss") -> bool:
    """``gradcheck`` of a method's loss with respect to all probs."""
    maps = random_maps(sites, len(targets.rows), seed)

    def judge(*probs: Tensor) -> Tensor:
        method.start(targets)
        output: LossOutput = method.loss(AttentionMaps(dict(zip(maps.probs, probs, strict=True))), targets, FLAT)
        value: Tensor = getattr(output, field)
        return value

    return bool(torch.autograd.gradcheck(judge, tuple(maps.probs.values()), fast_mode=True))


class Watch(Observer):
    """Keeps every update."""

    def __init__(self) -> None:
        self.events: list[UpdateEvent] = []

    def on_guidance_update(self, event: UpdateEvent) -> None:
        self.events.append(event)


def run(samples: Sequence[Sample]) -> tuple[list[SampleResult], list[UpdateEvent]]:
    watch = Watch()
    check_rows(tiny.model(), samples)
    return sample_batch(tiny.model(), samples, watch), watch.events


def batch_equals_rows(
    name: str, per_row: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]] = ROWS, **settings: Any
) -> None:
    """Four rows that differ in prompt, regions, seed and options, sampled together and alone, in a picture that is not square.

    Raises:
        AssertionError: If a row differs, or guidance moved none of its rows.
    """
    settings = {"steps": 2, "height": 32, "width": 48, **settings}
    samples = [
        Sample(str(number), seed=number, methods=(MethodConfig(name, options),), **row, **settings)
        for number, (row, options) in enumerate(zip(rows, per_row, strict=True))
    ]
    together, events = run(samples)
    assert {row for event in events for row, moved in zip(event.rows, event.moved, strict=True) if moved} == set(
        range(len(rows))
    )
    for number, result in enumerate(together):
        (alone,), _ = run([samples[number]])
        assert result.status == alone.status == "ok"
        assert result.latents is not None and alone.latents is not None
        assert_close(result.latents, alone.latents)
        assert result.cost.unet_backwards == alone.cost.unet_backwards
