"""Rows of weighted prompts, which need compel."""

from __future__ import annotations

import argparse

import pytest

from attnguide.cli.errors import UsageError
from tests.cli.test_plan import PLACE, plan


def test_phrases_of_a_weighted_prompt_are_found_in_its_words() -> None:
    made = plan(prompt="a (red:1.3) cat", regions=PLACE, prompt_syntax="weights")
    assert made.config["prompt_syntax"] == "weights" and {row.prompt_syntax for row in made.samples} == {"weights"}
    with pytest.raises(UsageError, match=r"'<lora:x:1>' has no meaning .* --lora"):
        plan(prompt="a <lora:x:1> cat", regions=["cat=0,0,1,1"], prompt_syntax="weights")
    with pytest.raises(argparse.ArgumentTypeError, match="prompt_syntax: expected plain or weights; got 'compel'"):
        plan(prompt="a cat", prompt_syntax="compel")
