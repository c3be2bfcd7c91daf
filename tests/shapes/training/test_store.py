from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attnguide.shapes.expectation import expectation_from_prompt
from attnguide.shapes.scene import Scene, SceneObject, is_held_out, random_scene
from attnguide.shapes.training import store
from attnguide.shapes.training.architecture import LATENT_CHANNELS, MAX_TOKENS, build_autoencoder, build_tokenizer
from attnguide.shapes.training.data import FIRST_TRAINING_SEED, picture_tensor


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK", 2)


@pytest.fixture(scope="module")
def vae():  # type: ignore[no-untyped-def]
    return build_autoencoder().eval()


def _numbers(captions: list[str]) -> Tensor:
    return torch.tensor([[len(text), 7] for text in captions], dtype=torch.int16)


def test_scenes_are_prepared_once(vae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "new" / "scenes"
    store.prepare(folder, 3, vae, {"ids": _numbers})
    assert sorted(path.name for path in folder.iterdir()) == ["00000.safetensors", "00001.safetensors"]
    scenes = store.load(folder)
    assert {name: (*values.shape,) for name, values in scenes.items()} == {
        "latents": (4, LATENT_CHANNELS, 16, 16),
        "contents": (4, 64, 2),
        "ids": (4, store.WORDINGS, 2),
    }
    with torch.no_grad():
        alone = vae.encode(picture_tensor(FIRST_TRAINING_SEED + 3)[None]).latent_dist.mode()[0]
    torch.testing.assert_close(scenes["latents"][3].float(), alone, rtol=2e-3, atol=2e-3)  # kept in float16
    drawn: list[int] = []
    monkeypatch.setattr(store, "draw_scenes", lambda start, stop: drawn.append(start))
    store.prepare(folder, 4, vae, {"ids": _numbers})
    assert drawn == []
    assert len(store.load(folder, 3)["latents"]) == 3


def test_nothing_prepared_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no prepared scenes"):
        store.load(tmp_path)


def test_captions_are_true_never_held_out_and_vary() -> None:
    drawn = store.draw_scenes(0, 60)
    assert len(drawn.captions) == 60 * store.WORDINGS
    for index, text in enumerate(drawn.captions):
        said = expectation_from_prompt(text)
        assert said is not None
        names = [name for name, count in zip(said.names, said.counts, strict=True) for _ in range(count)]
        scene = random_scene(FIRST_TRAINING_SEED + index // store.WORDINGS)
        assert sorted(names) == sorted(obj.name for obj in scene.objects)
        assert not is_held_out(names)
    assert all(len(set(drawn.captions[n * 8 : n * 8 + 8])) > 1 for n in range(60))


def test_contents_of_tokens_by_hand() -> None:
    """A large red square over the middle four tokens and more; a token it covers less than a quarter of is background."""
    contents = store.token_contents(Scene((SceneObject("square", "red", 0.5, 0.5, 0.19),), "gray")).view(8, 8, 2)
    square, gray, red = store.NAMES[0].index("square"), store.NAMES[1].index("gray"), store.NAMES[1].index("red")
    assert contents.dtype == torch.int8
    assert torch.equal(contents[3:5, 3:5], torch.tensor([square, red], dtype=torch.int8).expand(2, 2, 2))
    assert torch.equal(contents[0], torch.tensor([0, gray], dtype=torch.int8).expand(8, 2))
    both = Scene((SceneObject("circle", "blue", 0.2, 0.2, 0.15), SceneObject("heart", "pink", 0.8, 0.8, 0.15)), "white")
    shapes = store.token_contents(both).view(8, 8, 2)[..., 0]
    assert shapes[1, 1] == store.NAMES[0].index("circle") and shapes[6, 6] == store.NAMES[0].index("heart")


def test_ids_are_padded_and_cut_to_the_tokenizer_s_length() -> None:
    tokenizer = build_tokenizer(300)
    ids = store.tokenizer_ids(tokenizer)(["a red circle", "red " * 50])
    assert ids.shape == (2, MAX_TOKENS) and ids.dtype == torch.int16
    assert ids[0].tolist() == tokenizer("a red circle", padding="max_length", max_length=MAX_TOKENS).input_ids


def _scenes(count: int) -> dict[str, Tensor]:
    numbers = torch.arange(count)
    return {
        "latents": numbers.half().view(-1, 1, 1, 1).expand(-1, 1, 2, 2),
        "contents": torch.zeros(count, 64, 2, dtype=torch.int8),
        "ids": (100 * numbers[:, None] + torch.arange(store.WORDINGS))[..., None].to(torch.int16),
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
