"""Phrases inside other phrases: each region means its own words, whatever the order."""

import itertools
import re

import pytest

from attnguide.prompt.nested import free_occurrences, settle
from attnguide.prompt.targets import Targets
from attnguide.types import Region, Sample
from tests import tiny

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
TEXT = "a red cat and a cat"


def numbers(prompt: str, *regions: Region) -> list[int | None]:
    return [region.occurrence for region in settle(prompt, regions)]


def test_a_phrase_takes_the_occurrence_that_no_other_covers() -> None:
    regions = (Region("hot dog", box=LEFT), Region("dog", box=RIGHT), Region("Dog", box=LEFT))
    for order in itertools.permutations(regions):
        settled = {region.phrase: region.occurrence for region in settle("a hot dog and a dog", order)}
        assert settled == {"hot dog": 0, "dog": 1, "Dog": 1}


def test_its_tokens_are_those_of_that_occurrence() -> None:
    regions = (Region("cat", box=RIGHT), Region("red cat", box=LEFT))
    targets = Targets.build([Sample("0", TEXT, regions=regions)], [tiny.model().tokenize(TEXT)], "cpu")
    assert targets.token_indices == (((6,), (2, 3)),)
    assert targets.regions == (regions,)  # as the user gave them


def test_two_places_for_the_same_words_are_refused() -> None:
    for regions in itertools.permutations((Region("hot dog", box=LEFT), Region("dog", box=RIGHT))):
        with pytest.raises(ValueError, match=r"^Regions 'hot dog' and 'dog' .*'dog' stands nowhere else.*dog\[0\]"):
            settle("a hot dog", regions)
    with pytest.raises(ValueError, match=r"'(big red|red dog)' and '(big red|red dog)'"):
        settle("a big red dog", (Region("big red", box=LEFT), Region("red dog", box=RIGHT)))


def test_words_without_two_places_may_be_shared() -> None:
    assert numbers("a hot dog", Region("hot dog", box=LEFT), Region("dog")) == [0, 0]
    assert numbers("a hot dog", Region("hot dog"), Region("dog")) == [0, 0]
    assert numbers("a dog", Region("dog", box=LEFT), Region("dog", box=RIGHT)) == [0, 0]


def test_what_a_region_says_itself_wins() -> None:
    assert numbers("a hot dog", Region("hot dog", box=LEFT), Region("dog", box=RIGHT, occurrence=0)) == [0, 0]
    assert numbers("a hot dog, a dog", Region("hot dog", box=LEFT), Region("dog", box=RIGHT, occurrence=0)) == [0, 0]
    prompt = tiny.model().tokenize(TEXT)
    given = Region("somewhere", box=LEFT, token_indices=(2, 3))
    settled = settle(TEXT, (Region("cat", box=RIGHT), given), prompt)
    assert settled[0].occurrence == 1 and settled[1] is given


def test_a_missing_phrase_is_named() -> None:
    with pytest.raises(ValueError, match=re.escape("Phrase 'cow' does not occur")):
        settle(TEXT, (Region("cow"),))


def test_occurrences_outside_longer_phrases() -> None:
    assert free_occurrences("a hot dog, a dog and a dog", "dog", ["hot dog", "dog"]) == [1, 2]
    assert free_occurrences("a hot dog", "dog", ["hot dog"]) == [0]
