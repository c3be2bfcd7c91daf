"""Places taken from other pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attnguide.api import sample as sample_prompt
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.sampling.check import check_rows
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.source_maps import PlacedRow, check_sources, expected_forwards, record_sources
from attnguide.sampling.table import sample_rows
from attnguide.types import MapSource, MethodConfig, Region, Sample, SampleResult, verdict
from tests import tiny

SMALL = {"height": 16, "width": 16, "steps": 2, "cfg_scale": 2.0}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "init.png")
    return tmp_path / "init.png"


def row(source: MapSource, id: str = "0", **settings: Any) -> Sample:
    return tiny.row(id, regions=(Region("red cat", source=source), tiny.BALL), **{**SMALL, **settings})


def mask(recorded: PlacedRow) -> torch.Tensor:
    found = recorded.sample.regions[0].mask
    assert isinstance(found, torch.Tensor)
    return found


def source(kind: str, image: Path, **options: Any) -> MapSource:
    given = {"seed": {"seed": 9}, "prompt": {"prompt": "a red cat"}}.get(kind, {"image": image})
    return MapSource(kind, **{**given, **options})  # type: ignore[arg-type]


KINDS = ("seed", "prompt", "invert", "noise")
FORWARDS = {"seed": 4, "prompt": 4, "invert": 4, "noise": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_a_mask(kind: str, image: Path) -> None:
    (recorded,) = record_sources(tiny.model(), [row(source(kind, image))])
    found = mask(recorded)
    assert found.shape == (8, 8) and float(found.min()) == 0 and float(found.max()) == 1
    assert recorded.forwards == FORWARDS[kind] == expected_forwards(row(source(kind, image)))
    assert recorded.sample.regions[1] is tiny.BALL
    assert set(recorded.measured) == (
        {"reconstruction_mse", "reconstruction_psnr", "reconstruction_latents_mse"} if kind == "invert" else set()
    )
    (shape,) = record_sources(tiny.model(), [row(source(kind, image, threshold=0.5))])
    assert torch.equal(mask(shape), (found >= 0.5).float())


class _Attention(Observer):
    """The words' maps of a run, by its own means."""

    def probes(self, info: BatchInfo) -> list[Any]:
        from attnguide.sources.recording import MapRecording

        self.words = MapRecording(info.targets, info.model.guidance_level)
        return [self.words.probe()]

    def on_denoise_step_end(self, step: Any, latents: Any, noise_pred: Any) -> None:
        self.words.end_step(step)


def test_a_seeds_map_is_that_of_its_plain_picture() -> None:
    watching = _Attention()
    Sampler(tiny.model(), observer=watching).run([tiny.row(seed=9, regions=(Region("red cat"),), **SMALL)])
    mean = watching.words.maps[0, 0].mean(0)
    (recorded,) = record_sources(tiny.model(), [row(MapSource("seed", seed=9))])
    assert torch.allclose(mask(recorded), (mean - mean.min()) / (mean.max() - mean.min()), atol=1e-5)
    first = watching.words.maps[0, 0, 0]
    (early,) = record_sources(tiny.model(), [row(MapSource("seed", seed=9, stop=0.5))])
    assert torch.allclose(mask(early), (first - first.min()) / (first.max() - first.min()), atol=1e-5)


def test_a_batch_equals_its_rows_and_shares_pictures(image: Path) -> None:
    rows = [
        row(MapSource("seed", seed=9), "a"),
        row(MapSource("prompt", prompt="a blue dog", phrase="dog"), "b", seed=4),
        row(MapSource("invert", image=image), "c"),
        row(MapSource("noise", image=image), "d", seed=1),
        row(MapSource("noise", image=image), "e", seed=2),
        row(MapSource("seed", seed=9), "f", seed=7),
    ]
    together = record_sources(tiny.model(), rows)
    for sample, found in zip(rows, together, strict=True):
        (alone,) = record_sources(tiny.model(), [sample])
        assert torch.allclose(mask(alone), mask(found), atol=1e-4) and alone.forwards == found.forwards
        assert dict(alone.measured) == pytest.approx(dict(found.measured), rel=1e-3)
    assert torch.equal(mask(together[0]), mask(together[5])), "the same picture, whatever the row's own seed"
    assert not torch.allclose(mask(together[3]), mask(together[4]), atol=1e-3), "noised under the row's seed"


class _Seen(Observer):
    def __init__(self) -> None:
        self.results: list[SampleResult] = []
        self.measured: tuple[Any, ...] = ()

    def on_sample_start(self, info: BatchInfo) -> None:
        self.measured = info.measured

    def on_sample_end(self, results: Any) -> None:
        self.results += results


def test_a_recorded_row_equals_one_with_that_mask(image: Path) -> None:
    methods = (MethodConfig("inject5", {"start": 0.0}),)
    sample = row(MapSource("invert", image=image), methods=methods)
    (recorded,) = record_sources(tiny.model(), [sample])
    drawn = replace(sample, regions=(Region("red cat", mask=mask(recorded)), tiny.BALL))
    watching = _Seen()
    (result,) = sample_rows(tiny.model(), [sample], observer=watching)
    (expected,) = sample_rows(tiny.model(), [drawn])
    (plain,) = sample_rows(tiny.model(), [replace(sample, methods=())])
    assert np.array_equal(np.asarray(result.image), np.asarray(expected.image))
    assert not np.array_equal(np.asarray(result.image), np.asarray(plain.image))
    assert result.cost.unet_forwards == expected.cost.unet_forwards + 4
    assert plain.cost.unet_forwards == expected.cost.unet_forwards, "a plain picture needs no map"
    assert [seen.cost for seen in watching.results] == [result.cost]
    assert watching.measured[0]["reconstruction_psnr"] > 0
    assert isinstance(result.sample.regions[0].mask, torch.Tensor)


def test_in_one_call() -> None:
    regions = {"red cat": MapSource("seed", seed=9)}
    (result,) = sample_prompt(tiny.PROMPT, regions=regions, method="inject5", start=0.0, model=tiny.model(), **SMALL)
    assert verdict(result.status) == "ok" and result.sample.regions[0].mask is not None


def test_checks_need_no_picture(image: Path) -> None:
    model = tiny.model()
    checked = check_sources(model, row(MapSource("invert", image=image)))
    assert checked.regions[0].box == (0, 0, 1, 1) and checked.regions[1] is tiny.BALL
    check_rows(model, [row(MapSource("seed", seed=1), methods=(MethodConfig("box_diff"),))])
    plain = tiny.row()
    assert check_sources(model, plain) is plain
    with pytest.raises(ValueError, match="'dog' does not occur"):
        check_rows(model, [row(MapSource("seed", seed=1, phrase="dog"))])
    with pytest.raises(ValueError, match=r"source prompt .* is longer"):
        check_rows(model, [row(MapSource("prompt", prompt="red cat " * 30))])


def test_a_source_that_was_not_recorded_is_no_mask() -> None:
    with pytest.raises(ValueError, match="has not been recorded"):
        Sampler(tiny.model(), injections=[_injection()]).run([row(MapSource("seed", seed=1))])


def _injection() -> Any:
    from attnguide.injection.hand_maps import MapInjection

    return MapInjection(start=0.0)
