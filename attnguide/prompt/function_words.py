"""Words that carry no picture of their own: articles, prepositions, numbers, pronouns, conjunctions."""

from __future__ import annotations

from attnguide.prompt.tokens import TokenizedPrompt, positions_of
from attnguide.prompt.words import find_words

FUNCTION_WORDS = frozenset(
    "a an the this that these those some any each every another both all no my your his her its our their and or nor but "
    "plus one two three four five six seven eight nine ten eleven twelve several many few half of in on at by with "
    "without near next beside besides behind before under over above below between among against around across along "
    "through into onto upon inside outside from to for as like off up down out toward towards during after while when "
    "where which who whom whose what how why if than then there here it he she they we you i him them us me can could "
    "will would shall should may might must left right top bottom 's".split()
)


def function_word_positions(prompt: TokenizedPrompt) -> tuple[int, ...]:
    """Positions of the tokens of function words and digits, by word list without grammar (``left`` always counts)."""
    found: list[int] = []
    for first, stop in find_words(prompt.text, parts=True):
        word = prompt.text[first:stop].lower()
        if word in FUNCTION_WORDS or word.isdigit():
            found.extend(positions_of(prompt, first, stop))
    return tuple(found)
