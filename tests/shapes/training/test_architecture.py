from __future__ import annotations

import re

import pytest
import torch

from attnguide.models.load import adapt
from attnguide.shapes.captions import NUMBERS, RELATION_WORDS, caption, plural
from attnguide.shapes.renderer import SIDE
from attnguide.shapes.scene import BACKGROUNDS, COLORS, KINDS, SHAPES, random_scene
from attnguide.shapes.training.architecture import (
    LATENT_CHANNELS,
    MAX_TOKENS,
    SPLIT_WORDS,
    build_autoencoder,
    build_pipeline,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)

OTHER_WORDS = ("a", "an", "and", "with", "on", "background", "picture", "drawing", "of", ",")
WORLD_WORDS = sorted(
    {*COLORS, *SHAPES, *map(plural, SHAPES), *BACKGROUNDS, *OTHER_WORDS}
    | {word for count, word in NUMBERS.items() if count > 1}
    | {word for phrases in RELATION_WORDS.values() for phrase in phrases for word in phrase.split()}
)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return build_tokenizer()


def test_split_words_and_only_those_are_several_tokens(tokenizer) -> None:  # type: ignore[no-untyped-def]
    pieces = {word: tokenizer.tokenize(word) for word in WORLD_WORDS}
    assert {word for word, parts in pieces.items() if len(parts) > 1} == set(SPLIT_WORDS)
    assert all("".join(parts) == word + "</w>" for word, parts in pieces.items())


def test_every_caption_is_made_of_the_world_s_words() -> None:
    said = {word for seed in range(600) for word in re.findall(r"\w+|,", caption(random_scene(seed), seed))}
    assert said == set(WORLD_WORDS)


@pytest.mark.parametrize("kind", KINDS)
def test_captions_survive_the_tokenizer(tokenizer, kind: str) -> None:  # type: ignore[no-untyped-def]
    for seed in range(100):
        text = caption(random_scene(seed, kind, held_out=seed % 2 == 0), seed)
        ids = tokenizer(text).input_ids
        assert len(ids) <= MAX_TOKENS, text
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",") == text


def test_any_text_can_be_read(tokenizer) -> None:  # type: ignore[no-untyped-def]
    text = "zebra 7? ünï 猫"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<|startoftext|>", "<|endoftext|>"]


def test_the_same_tokenizer_every_time(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_parts_fit_each_other(tokenizer) -> None:  # type: ignore[no-untyped-def]
    """Cross- and self-attention at three sizes of map, the middle block with them; latents an eighth of the picture."""
    pipeline = build_pipeline(build_autoencoder().eval(), build_text_encoder(tokenizer).eval(), tokenizer, build_unet().eval())
    model = adapt(pipeline)
    assert model.default_size == (SIDE, SIDE)
    assert model.latent_shape(SIDE, SIDE) == (LATENT_CHANNELS, 16, 16)
    sites = model.attention_sites(SIDE, SIDE)
    assert {(site.kind, site.height, site.width) for site in sites} == {
        (kind, side, side) for kind in ("cross", "self") for side in (16, 8, 4)
    }
    assert {site.kind for site in sites if site.place == "mid"} == {"cross", "self"}
    states = model.encode_prompt(["a red circle"], None)
    assert states.cond.shape == (1, MAX_TOKENS, 128)
    with torch.no_grad():
        latents = torch.randn(1, LATENT_CHANNELS, 16, 16)
        assert pipeline.unet(latents, 5, states.cond).sample.shape == latents.shape
        assert pipeline.vae.decode(latents).sample.shape == (1, 3, SIDE, SIDE)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
