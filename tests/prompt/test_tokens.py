"""Phrases are found in the prompt as people write it, and mapped to every sub-word token they overlap."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from attnguide.prompt.tokens import TokenizedPrompt, find_phrase, resolve, token_indices
from attnguide.types import Region


def _tokenizer() -> CLIPTokenizer:
    """CLIP's rules over a vocabulary of five words; every other word falls apart into characters."""
    chars = sorted(ByteLevel.alphabet())
    pieces, merges = chars + [char + "</w>" for char in chars], []
    for word in ("a", "red", "cat", "and", "dog"):
        left = word[0]
        for index, char in enumerate(word[1:], 2):
            right = char + ("</w>" if index == len(word) else "")
            merges.append((left, right))
            left += right
            pieces.append(left)
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=77)


TOKENIZER = _tokenizer()


def tokenize(text: str, length: int = 24) -> TokenizedPrompt:
    encoded = TOKENIZER(text, return_offsets_mapping=True, padding="max_length", max_length=length, truncation=True)
    offsets = [span if span[0] < span[1] else None for span in map(tuple, encoded.offset_mapping)]
    read = max((span[1] for span in offsets if span), default=0)
    tokens = tuple(TOKENIZER.convert_ids_to_tokens(encoded.input_ids))
    return TokenizedPrompt(text, tokens, tuple(offsets), tuple(encoded.input_ids), text[read:].strip())


def pieces(prompt: TokenizedPrompt, phrase: str, occurrence: int = 0) -> list[str]:
    return [prompt.tokens[position].removesuffix("</w>") for position in token_indices(prompt, phrase, occurrence)]


@pytest.mark.parametrize(
    ("prompt", "phrase", "occurrence", "found"),
    [
        ("a purple ball on grass", "purple ball", 0, "purple ball"),
        ("a Purple   Ball", "purple ball", 0, "Purple   Ball"),
        ("a purple ball", " PURPLE \t ball ", 0, "purple ball"),
        ("a dog, a cat", "dog", 0, "dog"),
        ("a cathedral and a cat", "cat", 0, "cat"),
        ("a cat-like dog's bed", "dog's bed", 0, "dog's bed"),
        ("a red cat and a red dog", "red", 1, "red"),
        ("a sign saying (hello!)", "(hello!)", 0, "(hello!)"),
        ("ein Café am Meer", "CAFÉ", 0, "Café"),
        ("a cafe\u0301 at sea", "caf\u00e9", 0, "cafe\u0301"),
        ("a caf\u00e9 at sea", "cafe\u0301", 0, "caf\u00e9"),
        ("草地上的黑猫", "猫", 0, "猫"),
        ("a 🐱 and a dog", "🐱", 0, "🐱"),
        ("1+1=2 on a board", "1+1=2", 0, "1+1=2"),
    ],
)
def test_find_phrase(prompt: str, phrase: str, occurrence: int, found: str) -> None:
    first, stop = find_phrase(prompt, phrase, occurrence)
    assert prompt[first:stop] == found


def test_word_boundaries_decide_where_the_phrase_is() -> None:
    assert find_phrase("a cathedral, concat, cat", "cat") == (21, 24)
    assert find_phrase("a red cat and a red dog", "red", 1) == (16, 19)


@pytest.mark.parametrize(
    ("prompt", "phrase", "occurrence", "message"),
    [
        (
            "a purple ball on grass",
            "puprle ball",
            0,
            "Phrase 'puprle ball' does not occur in the prompt 'a purple ball on grass'; nearest words: 'purple ball'.",
        ),
        (
            "two Dogs, running",
            "dog",
            0,
            "Phrase 'dog' does not occur in the prompt 'two Dogs, running'; nearest words: 'Dogs'.",
        ),
        ("a cathedral", "xylophone", 0, "Phrase 'xylophone' does not occur in the prompt 'a cathedral'."),
        ("", "cat", 0, "Phrase 'cat' does not occur in the prompt ''."),
        ("a cafe\u0301", "cafe", 0, "Phrase 'cafe' does not occur in the prompt 'a cafe\u0301'; nearest words: 'cafe\u0301'."),
        ("a cat", "cat", 1, "Phrase 'cat' occurs once in the prompt 'a cat'; occurrence counts from 0, got 1."),
        ("cat, cat", "cat", 5, "Phrase 'cat' occurs 2 times in the prompt 'cat, cat'; occurrence counts from 0, got 5."),
        ("a cat", "cat", -1, "occurrence counts from 0; got -1."),
        ("a cat", "  ", 0, "phrase must contain a word; got '  '."),
    ],
)
def test_find_phrase_errors(prompt: str, phrase: str, occurrence: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        find_phrase(prompt, phrase, occurrence)


_WORDS = st.lists(st.text("abcdé", min_size=1, max_size=4), min_size=1, max_size=6)


@given(_WORDS, st.data())
def test_any_run_of_words_is_found_whatever_the_spaces_and_capitals(words: list[str], data: st.DataObject) -> None:
    gaps = data.draw(st.lists(st.sampled_from([" ", "  ", "\t", " \n"]), min_size=len(words), max_size=len(words)))
    start = data.draw(st.integers(0, len(words) - 1))
    stop = data.draw(st.integers(start + 1, len(words)))
    prompt = "".join(word + gap for word, gap in zip(words, gaps, strict=True))
    first, end = find_phrase(prompt, " ".join(words[start:stop]).upper())
    assert prompt[first:end].split() == words[start:stop]


def test_sub_words_all_belong_to_the_phrase() -> None:
    prompt = tokenize("A  red zebra, and a DOG")
    assert pieces(prompt, "zebra") == list("zebra")
    assert pieces(prompt, "red zebra") == ["red", *"zebra"]
    assert pieces(prompt, "dog") == ["dog"]
    assert token_indices(prompt, "a") == (1,)
    assert pieces(tokenize("a (dog), red"), "dog") == ["dog"]


def test_repeated_nouns_by_occurrence() -> None:
    prompt = tokenize("a red cat and a cat")
    assert token_indices(prompt, "cat", 0) == (3,)
    assert token_indices(prompt, "cat", 1) == (6,)


@pytest.mark.parametrize("accent", ["\u00e9", "e\u0301"])
def test_characters_of_several_bytes_give_all_their_tokens(accent: str) -> None:
    prompt = tokenize(f"a caf{accent} 🐱 cat")
    assert len(pieces(prompt, "caf\u00e9")) == 4
    assert len(pieces(prompt, "🐱")) == 4
    assert pieces(prompt, "cat") == ["cat"]


def test_a_phrase_that_is_cut_names_the_lost_words() -> None:
    prompt = tokenize("a red cat and a dog", length=6)
    assert prompt.truncated == "a dog"
    assert pieces(prompt, "red cat") == ["red", "cat"]
    for phrase in ("dog", "and a dog"):
        with pytest.raises(ValueError, match=f"Phrase '{phrase}' lies beyond .* reads .6 tokens.; lost words: 'a dog'"):
            token_indices(prompt, phrase)


def test_an_accent_without_a_token_of_its_own_is_not_a_cut() -> None:
    prompt = tokenize("a cafe\u0301 dog", length=7)
    assert prompt.truncated.endswith("dog")
    assert len(token_indices(prompt, "caf\u00e9")) == 4


def test_a_phrase_without_tokens_raises() -> None:
    prompt = TokenizedPrompt("a \u200b cat", ("<s>", "a", "cat", "</s>"), (None, (0, 1), (4, 7), None), (0, 1, 2, 3))
    with pytest.raises(ValueError, match="has no token of its own"):
        token_indices(prompt, "\u200b")


@pytest.mark.parametrize(("text", "end"), [("a red cat", 4), ("zebra", 6), ("", 1), ("  ", 1)])
def test_end_is_right_after_the_words(text: str, end: int) -> None:
    prompt = tokenize(text)
    assert prompt.ends == (end,)
    assert prompt.tokens[end] == "<|endoftext|>"
    assert prompt.word_positions == tuple(range(1, end))


def test_end_without_a_start_token() -> None:
    empty = TokenizedPrompt("", ("</s>", "<pad>"), (None, None), (1, 0))
    cat = TokenizedPrompt("cat", ("cat", "</s>", "<pad>"), ((0, 3), None, None), (7, 1, 0))
    assert (empty.ends, cat.ends) == ((0,), (1,))
    assert resolve(cat, Region("", token_indices=(0,))) == (0,)


def test_resolve_takes_the_phrase_or_the_positions() -> None:
    prompt = tokenize("a red cat and a cat")
    assert resolve(prompt, Region("cat", occurrence=1)) == (6,)
    assert resolve(prompt, Region("not in it", token_indices=(2, 3))) == (2, 3)


@pytest.mark.parametrize("indices", [(0,), (4,), (1, 7)])
def test_positions_must_be_words(indices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must lie in 1\.\.3 \(the words of 'a red cat'\); got"):
        resolve(tokenize("a red cat"), Region("cat", token_indices=indices))


@pytest.mark.parametrize("indices", [(), (2, 2)])
def test_positions_must_be_distinct(indices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Region 'cat': token_indices must be distinct positions, at least one; got"):
        resolve(tokenize("a red cat"), Region("cat", token_indices=indices))


def test_tuples_of_one_length() -> None:
    with pytest.raises(ValueError, match="same length; got 1, 2 and 1"):
        TokenizedPrompt("a", ("a",), ((0, 1), None), (1,))
