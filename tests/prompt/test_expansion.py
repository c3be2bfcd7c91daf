"""Embeddings with several vectors: positions are those of the text that is read, offsets those of the user's prompt."""

import itertools
from collections.abc import Collection

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnguide.models.unet import StableDiffusion
from attnguide.prompt.expansion import follow, spread
from attnguide.prompt.tokens import resolve, token_indices
from attnguide.types import Region
from tests import tiny

NAMES = ("<thing>", "<thing>_1", "<thing>_2", "style", "style_1", "<one>")
LONG = {"<thing>": "<thing> <thing>_1 <thing>_2", "style": "style style_1", "<one>": "<one>"}


def test_a_text_that_is_read_as_it_is() -> None:
    assert follow("a cat", "a cat", ()) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]


@given(st.lists(st.sampled_from([*LONG, "cat", "a,"]), max_size=6))
def test_every_character_is_followed_back(words: list[str]) -> None:
    prompt, read = " ".join(words), " ".join(LONG.get(word, word) for word in words)
    origin = follow(prompt, read, NAMES)
    assert len(origin) == len(read)
    at = place = 0
    for word in words:
        long = LONG.get(word, word)
        assert spread(origin, (at, at + len(long))) == (place, place + len(word))
        at, place = at + len(long) + 1, place + len(word) + 1


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ValueError, match="'a cat' is read as 'a dog'; it cannot be told"):
        follow("a cat", "a dog", NAMES)


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    pipeline = tiny.pipeline()
    for name, vectors in (("<thing>", 3), ("<one>", 1)):
        pipeline.load_textual_inversion({name: torch.randn(vectors, tiny.CHANNELS)}, token=name)
    return StableDiffusion(pipeline, "tiny")


def test_the_tokens_are_those_that_the_encoder_reads(model: StableDiffusion) -> None:
    prompt = "a red <thing> and a <one> dog"
    tokenized = model.tokenize(prompt)
    seen: list[tuple[int, ...]] = []
    encoder = model.pipeline.text_encoder
    hook = encoder.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0][0].tolist())))
    model.encode_prompt([prompt], None)
    hook.remove()
    assert tokenized.ids == seen[0]
    assert tokenized.text == prompt
    assert token_indices(tokenized, "<thing>") == (3, 4, 5)
    assert token_indices(tokenized, "red <thing>") == (2, 3, 4, 5)
    assert token_indices(tokenized, "dog") == (9,) and tokenized.ends == (10,)
    assert resolve(tokenized, Region("dog", token_indices=(9,))) == (9,)


def test_an_embedding_that_is_cut_is_a_lost_word(model: StableDiffusion) -> None:
    words = tiny.LENGTH - 4  # two of three vectors fit between start and end
    assert model.tokenize("a " * words + "<thing>").truncated == "<thing>"
    assert model.tokenize("a " * (words - 1) + "<thing>").truncated == ""


def _positions(prompt: str, names: Collection[str], model: StableDiffusion) -> dict[str, tuple[int, ...]]:
    tokenized = model.tokenize(prompt)
    return {name: token_indices(tokenized, name) for name in names}


def test_words_after_it_move_by_its_further_vectors(model: StableDiffusion) -> None:
    for before, after in itertools.product(("", "red "), (" dog", " and a dog")):
        one, three = (_positions(f"a {before}{name}{after}", ["dog"], model)["dog"] for name in ("<one>", "<thing>"))
        assert three == tuple(position + 2 for position in one)
