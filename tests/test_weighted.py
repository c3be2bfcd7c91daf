"""Weights and parts of web UIs' prompts: what counts how much, and the words that remain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnguide.rows.samples import check_samples, checked_samples, sample_from_dict, sample_to_dict
from attnguide.types import Region, Sample
from attnguide.weighted import Fragment, WeightedPrompt, in_chunks, read_weights, unweighted


def told(prompt: str) -> list[list[tuple[str, float]]]:
    """Letters and weights of every part."""
    read = read_weights(prompt)
    return [[(read.text[one.first : one.stop], round(one.weight, 4)) for one in part] for part in read.parts]


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [[("a cat", 1.0)]]),
        ("a (cat)", [[("a ", 1.0), ("cat", 1.1)]]),
        ("((cat))", [[("cat", 1.21)]]),
        ("[cat]", [[("cat", 0.9091)]]),
        ("(red cat:1.3) on (grass: .8 )", [[("red cat", 1.3), (" on ", 1.0), ("grass", 0.8)]]),
        ("(a (b:2) c:0.5)", [[("a ", 0.5), ("b", 1.0), (" c", 0.5)]]),
        ("([cat])", [[("cat", 1.0)]]),
        (r"\(cat\) \[dog\] a\\b c\d", [[(r"(cat) [dog] a\b c\d", 1.0)]]),
        ("a smiley :) at 1:30", [[("a smiley :) at 1:30", 1.0)]]),
        ("a cat BREAK a (dog:2)", [[("a cat", 1.0)], [("a ", 1.0), ("dog", 2.0)]]),
        ("(a BREAK b:2)", [[("a", 2.0)], [("b", 2.0)]]),
        ("BREAK a BREAK BREAK", [[("a", 1.0)]]),
        ("BREAKFAST", [[("BREAKFAST", 1.0)]]),
        ("()", []),
        ("", []),
    ],
)
def test_weights_and_parts(prompt: str, parts: list[list[tuple[str, float]]]) -> None:
    assert told(prompt) == parts


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a (red cat:1.3) and [dog]", "a red cat and dog"),
        ("a cat BREAK a dog", "a cat, a dog"),
        ("a cat. BREAK a dog,\nBREAK\n a ball", "a cat. a dog, a ball"),
    ],
)
def test_the_words_that_remain(prompt: str, text: str) -> None:
    assert read_weights(prompt).text == text


@given(st.text(st.characters(exclude_characters="()[]{}\\<>|_", exclude_categories=["Cs"])).filter(lambda t: "BREAK" not in t))
def test_a_prompt_without_signs_stays_as_it_is(prompt: str) -> None:
    if "AND" not in prompt:
        assert read_weights(prompt) == unweighted(prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <lora:x:0.8> cat", r"'<lora:x:0\.8>' has no meaning .* load it with --lora PATH:WEIGHT"),
        ("a cat AND a dog", r"'AND' has no meaning .* put the parts into one prompt"),
        ("a [cat|dog]", r"'\[cat\|dog\]' has no meaning .* write a row for each choice"),
        ("a [cat:dog:0.5]", r"'\[cat:dog:0\.5\]' has no meaning .* words that come or go during the steps"),
        ("a (red cat)1.3", r"the number stands inside the brackets"),
        ("a (cat", r"'\(' at character 2 is never closed; for the sign itself write \\\("),
        ("a [(cat])", r"'\[' at character 2 is never closed"),
        ("(cat:-1)", r"must lie in \[0, 10\]; what should not be seen stands in negative_prompt; got -1 in '\(cat:-1\)'"),
        ("a clock (at 1:30)", r"must lie in \[0, 10\]; got 30 in '\(at 1:30\)'"),
    ],
)
def test_refusals(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_weights(prompt)


def test_an_escaped_sign_and_shouted_words_are_letters() -> None:
    assert read_weights(r"a \[cat|dog\]").text == "a [cat|dog]"
    assert read_weights("A CAT AND A DOG").text == "A CAT AND A DOG"


def test_an_excerpt_keeps_its_weights() -> None:
    read = read_weights("a (red:2) cat")
    found = read.excerpt(2, 9)
    assert found.text == "red cat" and found.parts == ((Fragment(0, 3, 2.0), Fragment(3, 7, 1.0)),)


def test_a_plain_text_takes_one_chunk_as_it_is() -> None:
    assert in_chunks("a cat", 1) == "a cat"
    longer = in_chunks("a cat", 2)
    assert isinstance(longer, WeightedPrompt) and longer.chunks == 2 and in_chunks(longer, 1) == longer


# ------------------------------------------------------------------------------------------------------------ rows


def test_phrases_are_found_in_the_words_alone() -> None:
    row = Sample("0", "a (red:1.3) cat", prompt_syntax="weights", regions=(Region("red cat", box=(0, 0, 1, 1)),))
    check_samples([row])
    assert row.text == "a red cat" and sample_from_dict(sample_to_dict(row)).prompt_syntax == "weights"
    with pytest.raises(ValueError, match="Phrase 'red cat' does not occur"):
        check_samples([Sample("0", row.prompt, regions=row.regions)])


def test_what_one_prompt_says_wrongly_ends_its_row_alone() -> None:
    rows = [
        Sample("0", "a (cat", prompt_syntax="weights"),
        Sample("1", "a cat", negative_prompt="<lora:x:1>", prompt_syntax="weights"),
        Sample("2", "a (cat", prompt_syntax="plain"),
    ]
    problems = [row.problem for row in checked_samples(rows)]
    assert "is never closed" in str(problems[0]) and "--lora" in str(problems[1]) and problems[2] is None


def test_the_syntax_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="prompt_syntax must be one of plain, weights; got 'compel'"):
        Sample("0", "a cat", prompt_syntax="compel")
