import pytest

from attnguide.prompt.named import named_positions
from tests import tiny

PROMPT = tiny.model().tokenize("a cat, a zebra and a Cat")


def test_every_occurrence_or_the_one_that_is_named() -> None:
    cats = named_positions(PROMPT, "cat")
    assert len(cats) == 2 and [PROMPT.tokens[at].replace("</w>", "").lower() for at in cats] == ["cat", "cat"]
    assert named_positions(PROMPT, "cat[0]") == cats[:1] and named_positions(PROMPT, "cat [1] ") == cats[1:]
    assert len(named_positions(PROMPT, "zebra")) == 5


@pytest.mark.parametrize(
    ("name", "message"), [("dog", "Phrase 'dog' does not occur"), ("cat[2]", "occurs 2 times"), (" ", "must contain a word")]
)
def test_what_does_not_occur_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named_positions(PROMPT, name)
