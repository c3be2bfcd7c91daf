"""Prompt syntax of web UIs: weights of fragments, ``BREAK`` between parts, and the text without these marks.

``(word)`` counts 1.1 times as much, ``((word))`` 1.21 times, ``(word:1.3)`` as it says, ``[word]`` 1 / 1.1 times; brackets
nest, and factors multiply. ``BREAK`` begins a part that is encoded in chunks of its own. A backslash escapes a bracket.
Importing this needs no torch.
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
"""How a prompt is read: every character as text, or brackets as weights."""

MOST_WEIGHT = 10.0
"""Largest weight of a fragment; from about 1.6 on pictures fall apart."""

ROUND, SQUARE = 1.1, 1 / 1.1
"""Weights of round and square brackets without a number."""

LORA, CHOICE = r"<\w+:[^<>]+>", r"[{\[][^{}\[\]]*\|[^{}\[\]]*[}\]]"
WILDCARD = r"(?<!\w)__[\w/*-]+__(?!\w)"
AND = r"(?<![A-Z]{2} )\bAND\b(?! [A-Z]{2})"
BEHIND = r"\([^()]+\)(?:\d*\.\d+|\++|--+)"
"""Marks of other programs: LoRA tags, alternatives, wildcard files, joined prompts, weights behind brackets."""

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
    """Characters ``[first, stop)`` of :attr:`WeightedPrompt.text` that share one weight."""

    first: int
    stop: int
    weight: float = 1.0


@dataclass(frozen=True)
class WeightedPrompt:
    """A prompt with weights, for a text encoder that reads it in chunks.

    Attributes:
        text: The prompt without marks; phrases are looked up in it.
        parts: Fragments of ``text`` in order, one tuple per part; characters between two parts are not encoded.
        chunks: Smallest number of chunks, filled up with empty ones at the end.
    """

    text: str
    parts: tuple[tuple[Fragment, ...], ...]
    chunks: int = 1

    def excerpt(self, first: int, stop: int) -> WeightedPrompt:
        """A weighted prompt of the characters ``[first, stop)``, with their weights."""
        kept = [
            Fragment(max(one.first, first) - first, min(one.stop, stop) - first, one.weight)
            for part in self.parts
            for one in part
            if one.first < stop and first < one.stop
        ]
        return WeightedPrompt(self.text[first:stop], (tuple(kept),))


Prompt = str | WeightedPrompt
"""A prompt for a model: plain text, or text with weights."""


def check_syntax(syntax: object) -> None:
    """Refuse a ``prompt_syntax`` that is not in :data:`SYNTAXES`.

    Raises:
        ValueError: Naming the known ones.
    """
    if syntax not in SYNTAXES:
        raise ValueError(f"prompt_syntax must be one of {', '.join(SYNTAXES)}; got {shown(syntax)}.")


def require_compel() -> None:
    """Refuse weighted prompts where the package compel, which embeds them, is missing.

    Raises:
        ValueError: Naming the extra.
    """
    if importlib.util.find_spec("compel") is None:
        raise ValueError("prompt_syntax 'weights' needs compel: pip install 'attnguide[prompts]'.")


def written(text: str, syntax: str) -> Prompt:
    """Parse a text into a prompt for a model.

    Args:
        text: The text as the user wrote it.
        syntax: One of :data:`SYNTAXES`.

    Raises:
        ValueError: As for :func:`read_weights`.
    """
    return read_weights(text) if syntax == "weights" else text


def words_of(text: str, syntax: str) -> str:
    """A text without the marks of its syntax; phrases are looked up in it.

    Raises:
        ValueError: As for :func:`read_weights`.
    """
    return read_weights(text).text if syntax == "weights" else text


def unweighted(text: str, chunks: int = 1) -> WeightedPrompt:
    """A text without weights as a weighted prompt, read in chunks."""
    return WeightedPrompt(text, ((Fragment(0, len(text)),),) if text else (), chunks)


def in_chunks(prompt: Prompt, chunks: int) -> Prompt:
    """The prompt with at least ``chunks`` chunks; a plain prompt is unchanged for one chunk."""
    if isinstance(prompt, WeightedPrompt):
        return replace(prompt, chunks=max(chunks, prompt.chunks))
    return prompt if chunks == 1 else unweighted(prompt, chunks)


@lru_cache(maxsize=1024)
def read_weights(prompt: str) -> WeightedPrompt:
    r"""Parse a prompt in the syntax of web UIs.

    In the resulting text two parts are joined by a comma, or by a space if the first ends with punctuation.

    Args:
        prompt: The prompt as the user wrote it.

    Raises:
        ValueError: If a bracket is never closed, a weight lies outside [0, :data:`MOST_WEIGHT`], or the prompt has marks that
            are not supported: LoRA tags, alternatives, words by step, ``AND``, weights behind brackets.

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
    """Refuse marks of other programs that are not supported."""
    plain = _ESCAPED.sub("  ", prompt)
    shouted = not any(char.islower() for char in plain)  # among capitals AND is a word
    for pattern, instead in _REFUSED[:-1] if shouted else _REFUSED:
        if found := re.search(pattern, plain):
            raise ValueError(f"prompt {shown(prompt)}: {found[0]!r} has no meaning under prompt_syntax 'weights': {instead}.")


def _weighted_runs(prompt: str) -> list[tuple[str, float] | None]:
    """Runs of characters and their weights, ``None`` between two parts."""
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
    """A fragment's weight, refused outside [0, :data:`MOST_WEIGHT`]."""
    if 0 <= weight <= MOST_WEIGHT:
        return weight
    hint = "; what should not be seen stands in negative_prompt" if weight < 0 else ""
    raise ValueError(f"A weight in a prompt must lie in [0, {MOST_WEIGHT:g}]{hint}; got {weight:g} in {shown(since[:60])}.")
