import pytest

from attnguide.prompt.pairs import (
    TokenGroup,
    describe_groups,
    explicit_groups,
    find_groups,
    group_tokens,
    row_groups,
)
from attnguide.prompt.targets import Targets
from attnguide.types import Region, Sample
from tests import tiny


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red circle and a blue square", "red + circle, blue + square"),
        ("a red and white ball", "red + white + ball"),
        ("a red and a white ball", "red, white + ball"),
        ("an orange and a banana", "orange, banana"),
        ("A cat that is black", "black + cat"),
        ("the square is blue and the circle is red", "blue + square, red + circle"),
        ("a big, red ball on a wooden table", "big + red + ball, wooden + table"),
        ("two red circles, a blue square to the left of a green star", "red + circles, blue + square, green + star"),
        ("a red cat sitting on a blue mat", "red + cat, blue + mat"),
        ("a small king wearing a golden ring", "small + king, golden + ring"),
        ("a very bright red car next to the tree", "bright + red + car, tree"),
        ("a photo of a cat", "photo, cat"),
        ("a well-lit room with 3 black dogs!", "well-lit + room, black + dogs"),
        ("a red car parked by a wooden bed", "red + car, wooden + bed"),
        ("red", "red"),
        ("and the of", "none"),
        ("", "none"),
    ],
)
def test_the_rule(prompt: str, expected: str) -> None:
    assert describe_groups(prompt, find_groups(prompt)) == expected


def test_explicit_groups_take_words_that_stand_together() -> None:
    prompt = "a red cat and a red dog"
    first, second = explicit_groups(prompt, [("red", "cat"), ("red", "dog")])
    assert (first.modifiers, first.noun) == (((2, 5),), (6, 9))
    assert (second.modifiers, second.noun) == (((16, 19),), (20, 23))


def test_explicit_groups_share_a_word_that_occurs_once() -> None:
    first, second = explicit_groups("a red cat and dog", [("red", "cat"), ("red", "dog")])
    assert first.modifiers == second.modifiers == ((2, 5),)
    assert second.words == ((2, 5), (14, 17))


def test_an_occurrence_can_be_chosen() -> None:
    (group,) = explicit_groups("a cat, a cat and red paint", [("red", "cat[1]")])
    assert group.noun == (9, 12)


def test_wrong_groups() -> None:
    with pytest.raises(ValueError, match="Phrase 'green' does not occur in the prompt 'a red cat'"):
        explicit_groups("a red cat", [("green", "cat")])
    with pytest.raises(ValueError, match="got an empty group"):
        explicit_groups("a red cat", [()])


@pytest.mark.parametrize(
    ("groups", "phrases", "expected"),
    [
        ((), (), "red + cat, blue + ball, mat"),
        ((), ("cat",), "red + cat"),
        ((), ("the red cat",), "red + cat"),
        ((), ("ball", "blue ball"), "blue + ball"),
        ((), ("on",), "on"),
        ((("blue", "cat"),), ("ball",), "blue + cat"),
    ],
)
def test_explicit_before_regions_before_the_rule(
    groups: tuple[tuple[str, ...], ...], phrases: tuple[str, ...], expected: str
) -> None:
    prompt = "the red cat and the blue ball on a mat"
    found = row_groups(prompt, groups, [Region(phrase) for phrase in phrases])
    assert describe_groups(prompt, found) == expected


def test_words_of_several_pieces() -> None:
    tokenized = tiny.model().tokenize("a red zebra")  # zebra is spelt out
    (group,) = group_tokens(tokenized, find_groups("a red zebra"))
    assert group == TokenGroup((3, 4, 5, 6, 7), ((2,),))
    assert group.positions == frozenset(range(2, 8))


def test_targets_carry_groups_and_row_numbers() -> None:
    samples = [Sample("0", "a red cat"), Sample("1", "a ball and a dog", groups=(("dog",),))]
    targets = Targets.build(samples, [tiny.model().tokenize(sample.prompt) for sample in samples], "cpu")
    assert targets.groups == ((TokenGroup((3,), ((2,),)),), (TokenGroup((5,)),))
    chosen = targets.select([1]).select([0])
    assert (chosen.rows, chosen.groups) == ((1,), targets.groups[1:])
