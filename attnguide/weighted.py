"""Prompts as web UIs have them: how strongly pieces count, where a part of its own begins, and the words that remain.

``(word)`` counts 1.1 times as much, ``((word))`` 1.21 times, ``(word:1.3)`` as it says, ``[word]`` 1 / 1.1 times; brackets
nest, and factors multiply. ``BREAK`` begins a part that is read by itself, in chunks of its own. A backslash makes a bracket a
letter. Importing this needs no torch.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

from attnguide.text.parsing import shown

Syntax = Literal["plain", "weights"]
SYNTAXES: tuple[Syntax, ...] = get_args(Syntax)
"""How a prompt is read: every sign as a letter, or brackets as weights."""

MOST_WEIGHT = 10.0
"""Of a piece of a prompt; from about 1.6 on pictures fall apart."""

ROUND, SQUARE = 1.1, 1 / 1.1
"""Factors of a pair of brackets without a number."""

LORA, CHOICE = r"<\w+:[^<>]+>", r"[{\[][^{}\[\]]*\|[^{}\[\]]*[}\]]"
WILDCARD = r"(?<!\w)__[\w/*-]+__(?!\w)"
AND = r"(?<![A-Z]{2} )\bAND\b(?! [A-Z]{2})"
BEHIND = r"\([^()]+\)(?:\d*\.\d+|\++|--+)"
"""Signs of other programs: a LoRA, a choice, a file of words, joined prompts, weights behind brackets."""

LOAD_LORA = "load it with --lora PATH:WEIGHT, or into a pipeline that is handed over with load_lora_weights"
WRITE_ROWS = "write a row for each choice"
ONE_PROMPT = "put the parts into one prompt and say by regions where their words belong"
_SCHEDULE = r"\[[^\[\]]*:\s*[\d.]+\s*\]"
_REFUSED: tuple[tuple[str, str], ...] = (
    (LORA, LOAD_LORA),
    (CHOICE, WRITE_ROWS),
    (WILDCARD, WRITE_ROWS),
    (_SCHEDULE, "words that come or go during the steps are not known here"),
    (BEHIND, "the number stands inside the brackets, before the last one: (red cat:1.3)"),
    (AND, ONE_PROMPT),
)

_ESCAPED = re.compile(r"\\[()\[\]\\]")
_SIGNS = re.compile(
    r"\\(?P<letter>[()\[\]\\])|(?P<open>[(\[])|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|(?P<close>[)\]])"
    r"|\s*\b(?P<break>BREAK)\b\s*|(?P<text>.)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Fragment:
    """A run of characters of the words alone that counts as one, ``[first, stop)``, and how much."""

    first: int
    stop: int
    weight: float = 1.0


@dataclass(frozen=True)
class WeightedPrompt:
    """A prompt with weights, for a text encoder that reads it in chunks.

    Attributes:
        text: The words alone, in which phrases are found.
        parts: Fragments of ``text`` in order, by part; what stands between two parts is not read.
        chunks: Fewest chunks that it takes, empty ones at the end.
    """

    text: str
    parts: tuple[tuple[Fragment, ...], ...]
    chunks: int = 1

    def excerpt(self, first: int, stop: int) -> WeightedPrompt:
        """The characters ``[first, stop)`` with their weights, by themselves."""
        kept = [
            Fragment(max(one.first, first) - first, min(one.stop, stop) - first, one.weight)
            for part in self.parts
            for one in part
            if one.first < stop and first < one.stop
        ]
        return WeightedPrompt(self.text[first:stop], (tuple(kept),))


Prompt = str | WeightedPrompt
"""What a model is asked to read."""


def check_syntax(syntax: object) -> None:
    """Refuse what is none of :data:`SYNTAXES`.

    Raises:
        ValueError: Naming them.
    """
    if syntax not in SYNTAXES:
        raise ValueError(f"prompt_syntax must be one of {', '.join(SYNTAXES)}; got {shown(syntax)}.")


def require_compel() -> None:
    """Refuse where the package is missing that embeds prompts with weights.

    Raises:
        ValueError: Naming the extra.
    """
    if importlib.util.find_spec("compel") is None:
        raise ValueError("prompt_syntax 'weights' needs compel: pip install 'attnguide[prompts]'.")


def written(text: str, syntax: str) -> Prompt:
    """A text as a model is asked to read it.

    Args:
        text: As the user wrote it.
        syntax: One of :data:`SYNTAXES`.

    Raises:
        ValueError: As for :func:`read_weights`.
    """
    return read_weights(text) if syntax == "weights" else text


def words_of(text: str, syntax: str) -> str:
    """The words alone of a text as the user wrote it, in which phrases are found.

    Raises:
        ValueError: As for :func:`read_weights`.
    """
    return read_weights(text).text if syntax == "weights" else text


def unweighted(text: str, chunks: int = 1) -> WeightedPrompt:
    """A text without signs, read in chunks."""
    return WeightedPrompt(text, ((Fragment(0, len(text)),),) if text else (), chunks)


def in_chunks(prompt: Prompt, chunks: int) -> Prompt:
    """The prompt with at least so many chunks; as it is where one will do."""
    if isinstance(prompt, WeightedPrompt):
        return replace(prompt, chunks=max(chunks, prompt.chunks))
    return prompt if chunks == 1 else unweighted(prompt, chunks)


@lru_cache(maxsize=1024)
def read_weights(prompt: str) -> WeightedPrompt:
    r"""Take the syntax of web UIs out of a prompt.

    Between two parts the words alone have a comma, unless the first ends with a sign of its own.

    Args:
        prompt: As the user wrote it.

    Raises:
        ValueError: If a bracket is never closed, a weight lies outside [0, :data:`MOST_WEIGHT`], or a sign has no meaning here:
            LoRAs, choices, words by step, ``AND``, weights behind brackets.

    Example:
        >>> read_weights("a (red cat:1.3) and [dog]").text
        'a red cat and dog'
        >>> read_weights(r"a cat \(black\) BREAK a dog").text
        'a cat (black), a dog'
    """
    _refuse_foreign(prompt)
    text = ""
    parts: list[list[Fragment]] = [[]]
    for run in _weighted_runs(prompt):
        if run is None:
            parts += [[]] if parts[-1] else []
            continue
        letters, weight = run
        if text and not parts[-1]:
            text += " " if text[-1] in ".,;:!?" else ", "
        stop = len(text) + len(letters)
        if parts[-1] and parts[-1][-1].weight == weight:
            parts[-1][-1] = replace(parts[-1][-1], stop=stop)
        else:
            parts[-1].append(Fragment(len(text), stop, weight))
        text += letters
    return WeightedPrompt(text, tuple(tuple(part) for part in parts if part))


def _refuse_foreign(prompt: str) -> None:
    """Refuse signs of other programs that have no meaning here."""
    plain = _ESCAPED.sub("  ", prompt)
    shouted = not any(char.islower() for char in plain)  # among capitals AND is a word
    for pattern, instead in _REFUSED[:-1] if shouted else _REFUSED:
        if found := re.search(pattern, plain):
            raise ValueError(f"prompt {shown(prompt)}: {found[0]!r} has no meaning under prompt_syntax 'weights': {instead}.")


def _weighted_runs(prompt: str) -> list[tuple[str, float] | None]:
    """Letters and their weights, ``None`` between two parts."""
    runs: list[tuple[str, float] | None] = []
    opened: list[tuple[str, int, int]] = []  # bracket, number of runs before it, place in the prompt

    def close(factor: float) -> None:
        _, since, place = opened.pop()
        for number, run in enumerate(runs[since:], since):
            if run is not None:
                runs[number] = run[0], _checked(run[1] * factor, prompt[place:])

    for sign in _SIGNS.finditer(prompt):
        bracket = opened[-1][0] if opened else ""
        if sign["open"]:
            opened.append((sign["open"], len(runs), sign.start()))
        elif sign["weight"] and bracket == "(":
            close(float(sign["weight"]))
        elif sign["close"] and bracket + sign["close"] in ("()", "[]"):
            close(ROUND if bracket == "(" else SQUARE)
        elif sign["break"]:
            runs.append(None)
        else:
            runs.append((sign["letter"] or sign[0], 1.0))
    if opened:
        raise ValueError(
            f"prompt {shown(prompt)}: {opened[-1][0]!r} at character {opened[-1][2]} is never closed; for the sign itself "
            f"write \\{opened[-1][0]}."
        )
    return runs


def _checked(weight: float, since: str) -> float:
    """A weight that a piece of a prompt may have."""
    if 0 <= weight <= MOST_WEIGHT:
        return weight
    hint = "; what should not be seen stands in negative_prompt" if weight < 0 else ""
    raise ValueError(f"A weight in a prompt must lie in [0, {MOST_WEIGHT:g}]{hint}; got {weight:g} in {shown(since[:60])}.")
