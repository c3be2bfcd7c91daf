"""Words are found in what T5, Gemma, Qwen and Mistral read, through templates and cuts."""

from __future__ import annotations

import pytest

from attnguide.models.readers import TextReader
from attnguide.prompt.tokens import Segment, TokenizedPrompt, joined, token_indices
from tests import tiny
from tests.models import readers

PROMPT = "a red cat and a zebra"
BEFORE, AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def shown(read: TokenizedPrompt, phrase: str) -> list[str]:
    return [read.tokens[position] for position in token_indices(read, phrase)]


def test_t5_has_no_start_token_and_its_end_is_the_sink() -> None:
    read = TextReader(readers.t5(), 20, padded=True).read(PROMPT)
    assert len(read.tokens) == 20 and read.tokens[:4] == ("▁a", "▁red", "▁cat", "▁and")
    assert shown(read, "red cat") == ["▁red", "▁cat"] and shown(read, "zebra") == list("zebra")
    assert read.segments == (Segment(0, 20, 11, 11),) and read.tokens[11:13] == ("</s>", "<pad>")
    assert read.truncated == "" and TextReader(readers.t5(), 5).read(PROMPT).truncated == "a zebra"


def test_gemma_has_a_start_and_no_end() -> None:
    read = TextReader(readers.gemma(), 100).read(PROMPT)
    assert read.tokens[0] == "<bos>" and shown(read, "red cat") == ["▁red", "▁cat"]
    assert read.segments == (Segment(0, len(read.tokens), len(read.tokens), 0),) and read.ends == ()


def test_words_in_a_template() -> None:
    whole = TextReader(readers.qwen(), 100, before=BEFORE, after=AFTER).read(PROMPT)
    assert shown(whole, "cat") == ["Ġcat"] and whole.tokens[whole.ends[0]] == "<|im_end|>" and whole.sinks == (0,)
    cut = TextReader(readers.qwen(), 100, before=BEFORE, after=AFTER, dropped=3).read(PROMPT)
    assert cut.tokens == whole.tokens[3:] and cut.offsets == whole.offsets[3:]
    assert shown(cut, "a red") == ["a", "Ġred"] and cut.sinks == cut.ends and cut.tokens[cut.ends[0]] == "<|im_end|>"
    assert cut.segments[0].stop == len(cut.tokens) == cut.ends[0] + 5


def test_a_template_of_the_prompts_own_words_is_not_the_prompt() -> None:
    read = TextReader(readers.qwen(), 100, before="<|im_start|>a red cat\n", after=AFTER).read("a red cat")
    assert token_indices(read, "red cat") == (6, 7)


def test_padding_on_the_left() -> None:
    reader = TextReader(readers.mistral(), 30, padded=True, before="<s>[INST]", after="[/INST]")
    read, longer = reader.read("a cat"), reader.read("a red cat")
    assert len(read.tokens) == 30 and read.tokens[-5:] == ("<s>", "[INST]", "a", "Ġcat", "[/INST]")
    assert read.segments == (Segment(0, 30, 29, 25),) and longer.sinks == (24,)
    assert read.keep((24, 25, 27, 28, 29)).segments == (Segment(0, 5, 4, 1),)


def test_lower_case_and_white_space_are_led_back_to_the_prompt() -> None:
    reader = TextReader(readers.t5(), 30, spelt=str.lower, stripped=True)
    read = reader.read("  A RED Cat ")
    assert read.tokens[:3] == ("▁a", "▁red", "▁cat") and shown(read, "red cat") == ["▁red", "▁cat"]
    dotted = reader.read("\u0130\u0130 cat")  # each is two characters in lower case
    assert shown(dotted, "cat") == ["▁cat"]


@pytest.mark.parametrize(
    ("reader", "end"),
    [
        (TextReader(readers.t5(), 9, padded=True), 0),
        (TextReader(readers.gemma(), 9), 1),
        (TextReader(readers.qwen(), 90, before=BEFORE, after=AFTER), 3),
    ],
    ids=["t5", "gemma", "qwen"],
)
def test_an_empty_prompt(reader: TextReader, end: int) -> None:
    read = reader.read("")
    assert read.segments[0].end == end and read.word_positions == ()


def test_two_encoders_side_by_side() -> None:
    parts = [tiny.model().tokenize(PROMPT), TextReader(readers.t5(), 20, padded=True).read(PROMPT)]
    both = joined(parts)
    assert len(both.tokens) == tiny.LENGTH + 20 and both.sinks == (0, tiny.LENGTH + 11)
    assert token_indices(both, "red cat") == (2, 3, tiny.LENGTH + 1, tiny.LENGTH + 2)
    long = "a cat " * 12 + "and a red dog"
    read = joined([tiny.model().tokenize(long), TextReader(readers.t5(), 40, padded=True).read(long)])
    assert read.truncated == "" and shown(read, "red dog") == ["▁red", "▁dog"]


def test_a_word_that_one_of_two_tokenizers_drops_is_refused() -> None:
    first = TokenizedPrompt("a x cat", ("<s>", "a", "cat", "</s>"), (None, (0, 1), (4, 7), None), (0, 1, 2, 3))
    second = TokenizedPrompt("a x cat", ("a", "x", "cat", "</s>"), ((0, 1), (2, 3), (4, 7), None), (1, 2, 3, 4))
    with pytest.raises(ValueError, match="'x' has no token of its own for text encoder 1 of 2"):
        token_indices(joined([first, second]), "x")
