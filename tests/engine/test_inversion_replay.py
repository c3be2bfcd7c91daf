"""A real picture as the source: what edits read of it, where rows start, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from attnguide.ablation.cost import expected_cost
from attnguide.attention.edits import Edit
from attnguide.attention.sites import SiteSelector
from attnguide.engine.inversion import encode_pictures, invert, pictured_rows
from attnguide.injection.base import Injection, LatentsEdit, Source
from attnguide.injection.source import source_unless_idle
from attnguide.methods import build_method
from attnguide.prompt.targets import Targets
from attnguide.sampling.check import check_rows
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, PassContext, Sample, Step
from tests import tiny
from tests.closeness import assert_close
from tests.injection import common

SOURCE_PROMPT = "a red dog and a blue ball"
READERS: list[tuple[str, dict[str, Any]]] = [
    ("prompt_to_prompt", {"blend_threshold": 0.5}),
    ("masactrl", {"start": 0.0, "levels": None, "places": None}),
    ("plug_and_play", {"attention_names": None, "feature_names": None}),
    ("self_guidance", {"step_size": 50.0, "appearance_weight": 1.0, "alternate": 1.0}),
]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Four pictures of noise, each of another size."""
    paths = []
    for index in range(4):
        values = np.random.default_rng(index).integers(0, 255, (20 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{index}.png")
        paths.append(str(tmp_path / f"{index}.png"))
    return paths


class _Watches(LatentsEdit):
    sites = SiteSelector(kind="cross")

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def active(self, context: PassContext) -> bool:
        return False

    def after_step(self, latents: Tensor, source: Tensor | None, step: Step) -> Tensor:
        assert source is not None
        self.seen.append(source.clone())
        return latents


class _Reads(Injection):
    needs_regions = None

    def __init__(self, pictures: Any, iterations: int = 0) -> None:
        self.source = Source(SOURCE_PROMPT, "own", pictures, iterations)
        self.watches = _Watches()

    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [self.watches]


def rows_of(count: int, **settings: Any) -> list[Sample]:
    return [Sample(str(i), tiny.PROMPT, seed=i, **{"steps": 4, "cfg_scale": 1.0, **settings}) for i in range(count)]


def test_the_source_is_what_inversion_passed_through(files: list[str]) -> None:
    model, reads = tiny.model(), _Reads([files[0], None], iterations=1)
    rows = rows_of(2, cfg_scale=4.0)
    results = Sampler(model, injections=[reads]).run(rows)
    plain = Sampler(model).run(rows)
    latents = encode_pictures(model, [Image.open(files[0])], *model.default_size)
    path = invert(model, latents, [SOURCE_PROMPT], steps=4, iterations=1)
    expected = [*path.latents[1:, 0], path.clean[0]]
    for seen, wanted in zip(reads.watches.seen, expected, strict=True):
        assert torch.equal(seen[0], wanted)
    assert not torch.equal(results[0].latents, plain[0].latents)  # type: ignore[arg-type]
    torch.testing.assert_close(results[1].latents, plain[1].latents)  # from its own noise
    assert [one.cost.unet_forwards for one in results] == [4 * 4 + 4 * 2, 4 * 4]


def test_the_row_starts_from_the_pictures_noise(files: list[str]) -> None:
    """With the source's prompt and without guidance the picture comes back, the better the more inversion iterates."""
    model, row = tiny.model(), Sample("0", SOURCE_PROMPT, steps=5, cfg_scale=1.0)
    clean = encode_pictures(model, [Image.open(files[1])], *model.default_size)[0]
    errors = []
    for iterations in (0, 15):
        (result,) = Sampler(model, injections=[_Reads(files[1], iterations)]).run([row])
        assert result.latents is not None
        errors.append(float((result.latents - clean).square().mean()))
    assert errors[1] < errors[0] / 20


@pytest.mark.parametrize(("name", "options"), READERS)
def test_rows_equal_rows_alone(name: str, options: dict[str, Any], files: list[str]) -> None:
    pictures = [*files[:3], None]
    rows = common.four_rows(name, [{**options, "source_image": one} for one in pictures], scheduler="ddim")
    together = common.latents_of(rows)
    alone = torch.cat([common.latents_of([row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 * float(together.abs().max()))


def test_rows_without_strength_start_from_their_own_noise(files: list[str]) -> None:
    rows = common.four_rows(
        "masactrl", [{"source_image": one, "scale": float(one == files[0])} for one in files], scheduler="ddim"
    )
    plain = common.latents_of([Sample(**{**vars(row), "methods": ()}) for row in rows])
    assert_close(common.latents_of(rows)[1:], plain[1:])
    assert source_unless_idle(None, [0.0, 0.0], files[:2]) is None


@pytest.mark.parametrize("iterations", [0, 2])
def test_expected_cost_is_counted(files: list[str], iterations: int) -> None:
    options = {"source_image": files[0], "source_iterations": iterations}
    row = tiny.row(methods=(MethodConfig("plug_and_play", {**options, "attention_names": None, "feature_names": None}),))
    assert expected_cost(row).forwards == sample_batch(tiny.model(), [row])[0].cost.unet_forwards


def test_other_noise_levels_are_refused(files: list[str]) -> None:
    row = tiny.row(scheduler="euler", methods=(MethodConfig("masactrl", {"source_image": files[0]}),))
    with pytest.raises(ValueError, match=r"Row '0': source_image needs a scheduler with the noise levels of 'ddim'.*Euler"):
        check_rows(tiny.model(), [row])
    with pytest.raises(ValueError, match="source_image needs a scheduler"):
        sample_batch(tiny.model(), [row])


def test_wrong_values_are_refused_before_anything_runs(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"source_image file '.*gone.png' does not exist"):
        build_method("prompt_to_prompt", {"source_image": str(tmp_path / "gone.png")})
    with pytest.raises(ValueError, match=r"source_image file '.*no.png' is not a picture"):
        build_method("masactrl", {"source_image": [files[0], str(tmp_path / "no.png")]})
    with pytest.raises(ValueError, match="source_iterations must be at least 0; got -1"):
        build_method("plug_and_play", {"source_iterations": -1})
    with pytest.raises(ValueError, match="source_image must be one value, or a list with one per row; got 2 for 3 rows"):
        pictured_rows(Source(None, "own", files[:2]), 3)
