from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from attnguide.shapes.expectation import expectation_from_prompt
from attnguide.shapes.renderer import SIDE
from attnguide.shapes.scene import is_held_out, random_scene
from attnguide.shapes.training.architecture import LATENT_CHANNELS, MAX_TOKENS, build_autoencoder, build_tokenizer
from attnguide.shapes.training.data import FIRST_TRAINING_SEED, CachedLatents, Crops, encode_scenes, picture_tensor


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return build_tokenizer()


def _caption(tokenizer, item: dict[str, torch.Tensor]) -> str:  # type: ignore[no-untyped-def]
    text: str = tokenizer.decode(item["token_ids"], skip_special_tokens=True)
    return text.replace(" ,", ",")


def test_items_of_cached_latents(tokenizer) -> None:  # type: ignore[no-untyped-def]
    latents = torch.randn(3, LATENT_CHANNELS, 16, 16).half()
    data = CachedLatents(latents, tokenizer)
    assert len(data) == 3
    item = data[2]
    assert set(item) == {"latents", "token_ids"}
    assert item["latents"].dtype == torch.float32 and torch.equal(item["latents"], latents[2].float())
    assert item["token_ids"].dtype == torch.int64 and item["token_ids"].shape == (MAX_TOKENS,)


def test_captions_are_true_never_held_out_and_vary(tokenizer) -> None:  # type: ignore[no-untyped-def]
    data = CachedLatents(torch.zeros(300, LATENT_CHANNELS, 1, 1), tokenizer, drop_caption=0.0)
    for index in range(len(data)):
        said = expectation_from_prompt(_caption(tokenizer, data[index]))
        assert said is not None
        names = [name for name, count in zip(said.names, said.counts, strict=True) for _ in range(count)]
        scene = random_scene(FIRST_TRAINING_SEED + index)
        assert sorted(names) == sorted(obj.name for obj in scene.objects)
        assert not is_held_out(names)
    assert len({_caption(tokenizer, data[0]) for _ in range(40)}) > 2


def test_dropped_captions_are_the_empty_prompt(tokenizer) -> None:  # type: ignore[no-untyped-def]
    empty = tokenizer("", padding="max_length", max_length=MAX_TOKENS).input_ids
    always = CachedLatents(torch.zeros(4, LATENT_CHANNELS, 1, 1), tokenizer, drop_caption=1.0)
    assert all(always[index]["token_ids"].tolist() == empty for index in range(4))
    often = CachedLatents(torch.zeros(1, LATENT_CHANNELS, 1, 1), tokenizer, drop_caption=0.5)
    dropped = sum(often[0]["token_ids"].tolist() == empty for _ in range(200))
    assert 60 < dropped < 140


def test_pictures_are_scenes_between_minus_one_and_one() -> None:
    picture = picture_tensor(3)
    assert picture.shape == (3, SIDE, SIDE)
    assert -1 <= picture.min() < picture.max() <= 1


def test_crops_are_endless_pieces_of_training_scenes() -> None:
    first, again = (list(islice(Crops(side=32, seed=5), 6)) for _ in range(2))
    assert all(crop.shape == (3, 32, 32) and crop.abs().max() <= 1 for crop in first)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    other = list(islice(Crops(side=32, seed=6), 6))
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_scenes_are_encoded_once(tmp_path: Path) -> None:
    vae, path = build_autoencoder().eval(), tmp_path / "cache" / "latents.safetensors"
    latents = encode_scenes(vae, 3, path, batch=2)
    assert latents.shape == (3, LATENT_CHANNELS, 16, 16) and latents.dtype == torch.float16
    with torch.no_grad():
        alone = vae.encode(picture_tensor(FIRST_TRAINING_SEED + 2)[None]).latent_dist.mode()[0]
    torch.testing.assert_close(latents[2].float(), alone, rtol=0.05, atol=0.05)  # encoded in bfloat16
    vae.encode = None  # nothing is encoded again
    assert torch.equal(encode_scenes(vae, 2, path), latents[:2])
    with pytest.raises(TypeError):
        encode_scenes(vae, 4, path)  # more than there are
