"""A prompt that is not read whole is refused by name, be it positive, negative or another picture's."""

import pytest

from attnguide.sampling.check import check_rows
from attnguide.sampling.sampler import Sampler
from tests import tiny

LONG = "a " * tiny.LENGTH + "dog"


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_both_prompts_have_one_rule(name: str) -> None:
    row = tiny.row(**{"prompt": tiny.PROMPT, "regions": (), name: LONG})
    told = rf"{name} 'a .* is longer than the text encoder reads \(24 tokens\); lost words: 'a"
    for refuse in (lambda: check_rows(tiny.model(), [row]), lambda: Sampler(tiny.model()).run([row])):
        with pytest.raises(ValueError, match=told):
            refuse()


def test_a_negative_prompt_that_is_not_read_may_be_of_any_length() -> None:
    check_rows(tiny.model(), [tiny.row(negative_prompt=LONG, cfg_scale=1.0)])
