from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.shapes.training import store
from attnguide.shapes.training.architecture import LATENT_CHANNELS, build_autoencoder
from attnguide.shapes.training.data import picture_tensor
from attnguide.shapes.training.drawing import FIRST_TRAINING_SEED, WORDINGS


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK", 2)


@pytest.fixture(scope="module")
def vae():  # type: ignore[no-untyped-def]
    return build_autoencoder().eval()


def _numbers(captions: list[str]) -> np.ndarray:
    return np.array([[len(text), 7] for text in captions], dtype=np.int16)


def test_scenes_are_prepared_once(vae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "new" / "scenes"
    store.prepare(folder, 3, vae, {"ids": _numbers})
    assert sorted(path.name for path in folder.iterdir()) == ["00000.safetensors", "00001.safetensors"]
    scenes = store.load(folder)
    assert {name: (*values.shape,) for name, values in scenes.items()} == {
        "latents": (4, LATENT_CHANNELS, 16, 16),
        "contents": (4, 64, 2),
        "ids": (4, WORDINGS, 2),
    }
    with torch.no_grad():
        alone = vae.encode(picture_tensor(FIRST_TRAINING_SEED + 3)[None]).latent_dist.mode()[0]
    torch.testing.assert_close(scenes["latents"][3].float(), alone, rtol=2e-3, atol=2e-3)  # kept in float16
    drawn: list[tuple[int, int]] = []
    monkeypatch.setattr(store, "draw_scenes", lambda stretch, tokenize: drawn.append(stretch))
    store.prepare(folder, 4, vae, {"ids": _numbers})
    assert drawn == []
    assert len(store.load(folder, 3)["latents"]) == 3


def test_nothing_prepared_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no prepared scenes"):
        store.load(tmp_path)


def _scenes(count: int) -> dict[str, Tensor]:
    numbers = torch.arange(count)
    return {
        "latents": numbers.half().view(-1, 1, 1, 1).expand(-1, 1, 2, 2),
        "contents": torch.zeros(count, 64, 2, dtype=torch.int8),
        "ids": (100 * numbers[:, None] + torch.arange(WORDINGS))[..., None].to(torch.int16),
    }


def test_batches_show_every_scene_before_any_again() -> None:
    batches = store.Batches(_scenes(10), 4, {"ids": torch.tensor([-1], dtype=torch.int16)}, drop_caption=0.0, seed=3)
    drawn = list(islice(batches, 5))
    assert all(torch.equal(one["latents"], other["latents"]) for one, other in zip(drawn, islice(batches, 5), strict=True))
    which = torch.cat([batch["latents"][:, 0, 0, 0] for batch in drawn]).int()
    assert sorted(which[:10].tolist()) == sorted(which[10:].tolist()) == list(range(10))
    ids = torch.cat([batch["ids"][:, 0] for batch in drawn])
    assert torch.equal(ids // 100, which.long()) and len(set((ids % 100).tolist())) > 3
    assert {name: values.dtype for name, values in drawn[0].items()} == {
        "latents": torch.float32,
        "contents": torch.int64,
        "ids": torch.int64,
    }


def test_dropped_captions_are_the_empty_prompt() -> None:
    empty = {"ids": torch.tensor([-1], dtype=torch.int16)}
    (always,) = islice(store.Batches(_scenes(8), 8, empty, drop_caption=1.0), 1)
    assert (always["ids"] == -1).all()
    (often,) = islice(store.Batches(_scenes(50), 400, empty, drop_caption=0.5), 1)
    assert 140 < (often["ids"] == -1).sum() < 260
