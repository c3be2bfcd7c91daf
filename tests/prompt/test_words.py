"""Words and phrases in any script: what is called a word is found again."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnguide.prompt.regions import prompt_words
from attnguide.prompt.tokens import token_indices
from attnguide.prompt.words import find_words, occurrences
from tests import tiny

NFD = unicodedata.normalize("NFD", "a café crème, Tiểu mèo")


def words(text: str, *, parts: bool = False) -> list[str]:
    return [text[slice(*span)] for span in find_words(text, parts=parts)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (NFD, [unicodedata.normalize("NFD", word) for word in ("a", "café", "crème", "Tiểu", "mèo")]),
        ("a dog's t-shirt, 'quoted'", ["a", "dog's", "t-shirt", "quoted"]),
        ("the dog\u2019s bed", ["the", "dog\u2019s", "bed"]),
        ("बिल्ली और कुत्ता", ["बिल्ली", "और", "कुत्ता"]),
        ("\uff52\uff45\uff44 \uff43\uff41\uff54", ["\uff52\uff45\uff44", "\uff43\uff41\uff54"]),  # full width
        ("a 👩\u200d🎨 and a ❤\ufe0f", ["a", "👩\u200d🎨", "and", "a", "❤\ufe0f"]),
        ("草地上的黑猫", ["草地上的黑猫"]),
        ("a \u0301 cat", ["a", "cat"]),
        (" . - ' ", []),
    ],
)
def test_words(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_parts_of_words() -> None:
    assert words("a dog's t-shirt", parts=True) == ["a", "dog", "'s", "t", "shirt"]


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        (NFD, "café crème", [unicodedata.normalize("NFD", "café crème")]),
        ("m\u00ea\u0301o", "m\u1ebfo", ["m\u00ea\u0301o"]),  # half composed
        ("a cafe\u0301", "cafe", []),
        ("a बिल्ली", "बिल", []),
        (unicodedata.normalize("NFD", "공 고"), "고", [unicodedata.normalize("NFD", "고")]),
        ("the dog\u2019s bed", "dog's bed", ["dog\u2019s bed"]),
        ("a t\u2010shirt", "t-shirt", ["t\u2010shirt"]),
        ("a 👩\u200d🎨", "👩", []),
        ("a ❤\ufe0f", "❤", ["❤\ufe0f"]),
        ("a\u00a0red\u3000cat", "red cat", ["red\u3000cat"]),
        ("a cat", "\ufe0f", []),
    ],
)
def test_phrases(text: str, phrase: str, found: list[str]) -> None:
    assert [text[slice(*span)] for span in occurrences(text, phrase)] == found


_TEXTS = st.text(list("aEé\u0301ß\u0131\u212a猫क\u093e🐱\u200d\ufe0f'- ._7"), max_size=12)


@given(_TEXTS)
def test_every_word_is_found_where_it_stands_and_has_tokens(text: str) -> None:
    """So a callback that draws the map of every word cannot fail on any prompt that is read whole."""
    prompt = tiny.model().tokenize(text)
    for region in prompt_words(text):
        assert occurrences(text, region.phrase)[region.occurrence or 0] in find_words(text)
        if not prompt.truncated:
            assert token_indices(prompt, region.phrase, region.occurrence)
