"""What the tests of every injection share: four different rows, passes of random tensors, runs on the tiny model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.prompt.targets import Targets
from attnguide.sampling.table import sample_batch
from attnguide.types import Branch, MethodConfig, PassContext, Region, Sample, SampleResult, Step, verdict
from tests import tiny
from tests.closeness import assert_close

Array = NDArray[np.float64]

CROSS = Site("up.attn2", "cross", 4, 6, 2, "up", 0)
SELF = Site("up.attn1", "self", 4, 6, 2, "up", 0)
"""Maps that are not square."""

STEP = Step.at_sigma(3, 10, 701.0, 3.35)


def four_rows(name: str, options: Sequence[Mapping[str, Any]] = ({},), **settings: Any) -> list[Sample]:
    """Four rows with different prompts, regions, seeds and guidance scales, of two steps, not square."""
    regions = [
        (tiny.CAT, tiny.BALL),
        (Region("dog", box=(0.2, 0.1, 0.9, 0.6)),),
        (Region("blue dog", blob=(0.3, 0.4, 0.2, 0.3)), Region("red ball", box=(0.6, 0.0, 1.0, 1.0), weight=0.5)),
        (Region("cat", box=(0.0, 0.5, 1.0, 1.0)),),
    ]
    prompts = (tiny.PROMPT, "a dog and a cat", "a blue dog left of a red ball", "a ball right of a cat")
    common = {"height": 32, "width": 48, "steps": 2, "scheduler": "euler", **settings}
    return [
        Sample(
            str(index),
            prompt,
            seed=index + 5,
            regions=places,
            cfg_scale=3.0 + index,
            methods=(MethodConfig(name, dict(options[index % len(options)])),),
            **common,
        )
        for index, (prompt, places) in enumerate(zip(prompts, regions, strict=True))
    ]


def latents_of(rows: Sequence[Sample]) -> Tensor:
    """Final latents on the tiny model, ``batch channels height width``."""
    results: list[SampleResult] = sample_batch(tiny.model(), rows)
    assert [verdict(result.status) for result in results] == ["ok"] * len(rows)
    return torch.stack([result.latents for result in results if result.latents is not None])


def assert_rows_equal_rows_alone(rows: Sequence[Sample]) -> Tensor:
    """A batch equals its rows one by one, and every row differs from the plain one."""
    together = latents_of(rows)
    size = float(together.abs().max())
    for row, latents in zip(rows, together, strict=True):
        assert_close(latents_of([row])[0], latents)
    plain = latents_of([replace(row, methods=()) for row in rows])
    assert ((together - plain).abs().amax((1, 2, 3)) > 1e-3 * size).all()
    return together


def assert_no_method(rows: Sequence[Sample]) -> None:
    """The rows come out as without their methods, to the last bit."""
    assert torch.equal(latents_of(rows), latents_of([replace(row, methods=()) for row in rows]))


def targets_of(rows: Sequence[Sample], source_prompts: Sequence[str] = ()) -> Targets:
    model = tiny.model()
    others = [model.tokenize(prompt) for prompt in source_prompts]
    return Targets.build(rows, [model.tokenize(row.prompt) for row in rows], "cpu", others)


def context_of(rows: int, branches: Sequence[Branch] = ("uncond", "cond"), step: Step = STEP) -> PassContext:
    return pass_context(step, "denoise", range(rows), branches)


def random_scores(context: PassContext, site: Site, seed: int = 0) -> Tensor:
    """``batch heads query key`` in float64."""
    cells = site.height * site.width
    keys = cells if site.kind == "self" else tiny.LENGTH
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(len(context.rows), site.heads, cells, keys, generator=generator, dtype=torch.float64)


def masks_of(row: Sample, site: Site) -> list[Array]:
    """Each placed region's soft mask, ``height width``, drawn by sampling every cell finely."""
    from attnguide.prompt.regions import rasterise

    return [rasterise(region, site.height, site.width).double().numpy() for region in row.regions]


def token_positions(row: Sample, region: Region) -> list[int]:
    """Positions of the region's words, for prompts whose words are one token each."""
    words, wanted = row.prompt.split(), region.phrase.split()
    starts = [at for at in range(len(words)) if words[at : at + len(wanted)] == wanted]
    return [starts[region.occurrence or 0] + 1 + offset for offset in range(len(wanted))]
