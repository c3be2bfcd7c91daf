"""Groups of a noun and its modifiers in a prompt: given by the user, or found by a rule.

The rule knows no grammar but a short list of English function words. It reads ``a red circle and a blue square`` as
(red, circle) and (blue, square), ``a red and white ball`` as (red, white, ball), and ``a cat that is black`` as (black, cat).
A verb it does not know ends up as a noun: :func:`describe_groups` says what was found, explicit groups overrule it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import regex

from attnguide.prompt.tokens import TokenizedPrompt, find_phrase, positions_of
from attnguide.types import Region

Span = tuple[int, int]
"""Characters ``[first, last + 1)`` of a prompt."""

_DETERMINERS = frozenset(
    "a an the this that these those some any each every another both all no my your his her its our their one two three four "
    "five six seven eight nine ten several many few".split()
)
_AND = frozenset("and or plus &".split()) | {","}
_COPULAS = frozenset("is are was were be looks look seems seem".split())
_BREAKS = frozenset(
    "of in on at by with without near next beside besides behind before under over above below between among against around "
    "across along through into onto upon inside outside from to for as like off up down out toward towards during after "
    "but while when where which who whose that then than not there here it they he she "
    "has have had having do does did can could will would wears wear holds hold sits sit stands stand lies lie runs run "
    "plays play eats eat rides ride chases chase flies fly jumps jump swims swim walks walk sleeps sleep watches watch touches "
    "touch covers cover leans lean rests rest floats float hangs hang made left right top bottom front back".split()
)
_END: list[str] = ["."]
_SILENT = frozenset("very really quite so too extremely rather completely".split())
_NOUNS_IN_ING = frozenset(
    "ring king wing string spring ceiling building painting drawing clothing evening morning wedding earring swing sling "
    "sibling dumpling duckling thing crossing railing icing pudding stocking bowling lightning".split()
)
_NOUNS_IN_ED = frozenset("bed seed shed sled weed feed breed steed reed deed bobsled flatbed moped biped".split())
_ADJECTIVES = frozenset(
    "red green blue yellow orange purple pink brown black white gray grey cyan magenta golden beige violet turquoise "
    "maroon crimson scarlet big small large little tiny huge tall short long wide thin thick old young new bright dark "
    "pale shiny striped spotted checkered wooden metallic fluffy furry smooth rough soft hard hot cold wet dry happy sad "
    "angry sleepy beautiful pretty ugly clean dirty empty full".split()
)
"""Words that are hardly ever nouns."""


@dataclass(frozen=True)
class WordGroup:
    """A noun and the words that describe it, as characters of a prompt.

    Attributes:
        noun: Span of the noun.
        modifiers: Spans of its modifiers, in the order of the prompt; empty for a bare noun.
    """

    noun: Span
    modifiers: tuple[Span, ...] = ()

    @property
    def words(self) -> tuple[Span, ...]:
        """Modifiers, then the noun."""
        return (*self.modifiers, self.noun)


@dataclass(frozen=True)
class TokenGroup:
    """A noun and its modifiers as positions in a tokenized prompt.

    Attributes:
        noun: Token positions of the noun.
        modifiers: Token positions of each modifier.
    """

    noun: tuple[int, ...]
    modifiers: tuple[tuple[int, ...], ...] = ()

    @property
    def words(self) -> tuple[tuple[int, ...], ...]:
        """Modifiers, then the noun."""
        return (*self.modifiers, self.noun)

    @property
    def positions(self) -> frozenset[int]:
        """Token positions of all words."""
        return frozenset(position for word in self.words for position in word)


def find_groups(prompt: str) -> tuple[WordGroup, ...]:
    """Find nouns and their modifiers by rule, in the order of the prompt; bare nouns are groups without modifiers.

    A run of words between determiners, conjunctions, prepositions, known verbs and punctuation is a noun phrase, its last word
    the noun (a participle at its end is left out). A run of nothing but known adjectives belongs to what follows ``and``
    (without an article), or to the noun before ``is``.

    Example:
        >>> describe_groups("a red circle and a blue square", find_groups("a red circle and a blue square"))
        'red + circle, blue + square'
    """
    groups: list[WordGroup] = []
    waiting: list[Span] = []  # adjectives whose noun is still to come
    for words, before, after in _runs(prompt):
        run = _without_participle(prompt, words)
        adjectives = all(prompt[slice(*span)].lower() in _ADJECTIVES for span in run)
        if adjectives and groups and before and before[-1] in _COPULAS:
            groups[-1] = WordGroup(groups[-1].noun, (*groups[-1].modifiers, *run))
        elif adjectives and after and after != _END and all(word in _AND for word in after):
            waiting += run
        else:
            groups.append(WordGroup(run[-1], (*waiting, *run[:-1])))
            waiting = []
    return tuple(groups)


def _without_participle(prompt: str, run: list[Span]) -> list[Span]:
    """Drop a participle at the end of a run: ``red car parked`` is a red car."""
    last = prompt[slice(*run[-1])].lower()
    return run[:-1] if len(run) > 1 and last.endswith("ed") and last not in _NOUNS_IN_ED | {"red"} else run


def explicit_groups(prompt: str, groups: Sequence[Sequence[str]]) -> tuple[WordGroup, ...]:
    """Find the words of the user's groups in a prompt, each group's noun last.

    A group whose words stand side by side in the prompt is looked up as a whole, so that ``[red, cat]`` and ``[red, dog]`` mean
    different reds; otherwise each word is its first occurrence that no earlier group took, or the first if all are taken.

    Args:
        prompt: The prompt as the user wrote it.
        groups: Words, the noun last; ``word[1]`` means a word's second occurrence.

    Raises:
        ValueError: If a group is empty or a word does not occur.
    """
    taken: set[Span] = set()
    found = []
    for words in groups:
        if not words:
            raise ValueError("groups must hold words, the noun last; got an empty group.")
        spans = _side_by_side(prompt, words, taken) or tuple(_lookup(prompt, word, taken) for word in words)
        taken |= set(spans)
        found.append(WordGroup(spans[-1], spans[:-1]))
    return tuple(found)


def row_groups(prompt: str, groups: Sequence[Sequence[str]], regions: Sequence[Region]) -> tuple[WordGroup, ...]:
    """Groups of a row: the explicit ones; else those of its regions' phrases; else all that the rule finds.

    Raises:
        ValueError: As for :func:`explicit_groups`, or if a region's phrase does not occur.
    """
    if groups:
        return explicit_groups(prompt, groups)
    phrases = [r for r in regions if r.token_indices is None and r.phrase.strip()]
    found = find_groups(prompt)
    if not phrases:
        return found
    chosen = [_phrase_groups(prompt, find_phrase(prompt, r.phrase, r.occurrence), found) for r in phrases]
    return tuple(dict.fromkeys(group for some in chosen for group in some))


def group_tokens(tokenized: TokenizedPrompt, groups: Sequence[WordGroup]) -> tuple[TokenGroup, ...]:
    """Token positions of groups; words that the text encoder does not read are left out."""
    found = []
    for group in groups:
        noun = positions_of(tokenized, *group.noun)
        modifiers = tuple(filter(None, (positions_of(tokenized, *span) for span in group.modifiers)))
        if noun:
            found.append(TokenGroup(noun, modifiers))
    return tuple(found)


def describe_groups(prompt: str, groups: Sequence[WordGroup]) -> str:
    """Groups as text: ``red + circle, blue + square``; ``none`` for no groups."""
    return ", ".join(" + ".join(prompt[slice(*span)] for span in group.words) for group in groups) or "none"


def _phrase_groups(prompt: str, phrase: Span, found: Sequence[WordGroup]) -> tuple[WordGroup, ...]:
    """The group a phrase spells out itself; else the prompt's groups that share a word with it; else its last word."""
    own = find_groups(prompt[slice(*phrase)])
    if len(own) == 1 and own[0].modifiers:
        return (WordGroup(_shifted(own[0].noun, phrase[0]), tuple(_shifted(span, phrase[0]) for span in own[0].modifiers)),)
    shared = tuple(g for g in found if any(word[0] < phrase[1] and phrase[0] < word[1] for word in g.words))
    if shared:
        return shared
    words = [_shifted(match.span(), phrase[0]) for match in re.finditer(r"\S+", prompt[slice(*phrase)])]
    return (WordGroup(words[-1], tuple(words[:-1])),)


def _shifted(span: Span, by: int) -> Span:
    return span[0] + by, span[1] + by


def _side_by_side(prompt: str, words: Sequence[str], taken: set[Span]) -> tuple[Span, ...]:
    """Spans of a group's words where they stand side by side and no earlier group took them; empty if nowhere."""
    occurrence = 0
    while True:
        try:
            first, stop = find_phrase(prompt, " ".join(words), occurrence)
        except ValueError:
            return ()
        spans = tuple(_shifted(match.span(), first) for match in re.finditer(r"\S+", prompt[first:stop]))
        if len(spans) == len(words) and not taken & set(spans):
            return spans
        occurrence += 1


def _lookup(prompt: str, word: str, taken: set[Span]) -> Span:
    if picked := re.fullmatch(r"(.*?)\s*\[(\d+)\]", word, re.DOTALL):
        return find_phrase(prompt, picked[1], int(picked[2]))
    first = find_phrase(prompt, word)
    span, occurrence = first, 0
    while span in taken:
        occurrence += 1
        try:
            span = find_phrase(prompt, word, occurrence)
        except ValueError:
            return first
    return span


def _runs(prompt: str) -> Iterator[tuple[list[Span], list[str], list[str]]]:
    """Runs of content words, each with the boundary words before and after it in lower case; :data:`_END` after the last."""
    runs: list[list[Span]] = [[]]
    between: list[list[str]] = [[]]  # between[i] stands before runs[i]
    for match in regex.finditer(r"[\w&]+(?:['\u2019-]\w+)*|[^\w\s]", prompt):
        word = match.group().lower()
        if word in _SILENT:
            continue
        if not _is_boundary(word, bool(runs[-1])):
            runs[-1].append(match.span())
        elif runs[-1]:
            runs.append([])
            between.append([word])
        else:
            between[-1].append(word)
    if runs[-1]:
        between.append(_END)
    else:
        runs.pop()
        between[-1] = _END
    yield from zip(runs, between, between[1:], strict=False)


def _is_boundary(word: str, inside: bool) -> bool:
    verb = inside and word.endswith("ing") and word not in _NOUNS_IN_ING
    known = word in _DETERMINERS or word in _AND or word in _COPULAS or word in _BREAKS
    return known or verb or word.isdigit() or not re.match(r"\w", word)
