from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attnguide.models.load import adapt
from attnguide.shapes.renderer import SIDE, render
from attnguide.shapes.scene import is_held_out, random_scene
from attnguide.shapes.training import preview as module
from attnguide.shapes.training.architecture import (
    build_autoencoder,
    build_pipeline,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)
from attnguide.types import Cost, Sample, SampleResult

SEEDS = range(6)


@pytest.fixture(scope="module")
def untrained() -> Any:
    tokenizer = build_tokenizer(300)
    pipeline = build_pipeline(build_autoencoder(), build_text_encoder(tokenizer), tokenizer, build_unet())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _results(broken: Sequence[int]) -> Any:
    """Instead of sampling: the very scenes the captions were made of, but for the ``broken`` rows."""

    def sample_rows(model: Any, rows: Sequence[Sample], *, batch_size: int) -> Iterator[SampleResult]:
        for index, row in enumerate(rows):
            kind = module.KINDS[index % len(module.KINDS)]
            scene = random_scene(row.seed, kind, held_out=kind != "single")
            assert is_held_out([obj.name for obj in scene.objects]) or kind == "single"
            image = None if index in broken else render(scene)
            yield SampleResult(row, image, None, Cost(0, 0, 0.0, 0.0), "ok" if image else "broken")

    return sample_rows


def test_pictures_of_what_was_asked_are_exact(untrained: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "sample_rows", _results(broken=[1]))
    scores = module.preview(untrained, SEEDS, tmp_path / "new" / "0.png", columns=4)
    assert scores.pop("preview/explained") > 0.9
    assert scores == {"preview/single": 1.0, "preview/pair": 0.5, "preview/count": 1.0}
    sheet = Image.open(tmp_path / "new" / "0.png")
    assert sheet.size == (4 * SIDE, 2 * SIDE)
    assert sheet.crop((SIDE, 0, 2 * SIDE, SIDE)).getextrema() == ((0, 0),) * 3  # the broken row


def test_an_untrained_model_is_sampled_and_judged(untrained: Any, tmp_path: Path) -> None:
    before = untrained.unet.training
    scores = module.preview(untrained, [0], tmp_path / "1.png", columns=1)
    assert set(scores) == {"preview/single", "preview/explained"}
    assert scores["preview/single"] == 0.0 and 0 <= scores["preview/explained"] <= 1
    assert Image.open(tmp_path / "1.png").getextrema() != ((0, 0),) * 3
    assert untrained.unet.training == before and adapt(untrained).default_size == (SIDE, SIDE)
