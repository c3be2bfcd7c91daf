"""Token alignment between a source prompt and a target prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from jaxtyping import Float
from torch import Tensor

from attnguide.prompt.tokens import TokenizedPrompt


def replacement_matrix(
    source: TokenizedPrompt, target: TokenizedPrompt, *, misaligned_tail: bool = False
) -> Float[Tensor, "tokens tokens"]:
    """Alignment matrix, source tokens (rows) to target tokens (columns), of two prompts with equally many words.

    Words correspond by their order. The tokens of a swapped word map one to one if they are equally many; else every target
    token gets ``1 / n`` of each source token, ``n`` the number of target tokens, which keeps their sum. All other tokens map
    one to one, padding included, as far as both prompts go. From prompt-to-prompt (https://arxiv.org/abs/2208.01626).

    Args:
        source: Prompt whose attention is read.
        target: Prompt whose attention is edited.
        misaligned_tail: Map tokens after the last swapped word to the same position, as the paper's code does, which is wrong
            where swapped words differ in their number of tokens.

    Raises:
        ValueError: If the prompts differ in their number of words, or their chunks end at different words.
    """
    matrix = torch.zeros(len(target.ids), len(target.ids))
    for room in target.rooms():
        _replace(matrix, source, target, room, misaligned_tail)
    return matrix


def _replace(matrix: Tensor, source: TokenizedPrompt, target: TokenizedPrompt, room: range, misaligned_tail: bool) -> None:
    """Write the part of :func:`replacement_matrix` that belongs to one text encoder's positions."""
    words = [_words(source, room), _words(target, room)]
    if len(words[0]) != len(words[1]):
        raise ValueError(
            f"edit 'replace' needs prompts with equally many words; the source prompt {source.text!r} has {len(words[0])}, "
            f"{target.text!r} has {len(words[1])}."
        )
    pairs = list(zip(*words, strict=True))
    parted = next((new for (_, old), (new, found) in pairs if bool(old) != bool(found)), None)
    if parted is not None and target.chunks > 1:
        raise ValueError(
            f"edit 'replace' maps words chunk by chunk, but {parted!r} and the word it stands for are read in different "
            "chunks; begin one at the same word of both prompts with BREAK."
        )
    swapped = [(old, new) for (old_word, old), (new_word, new) in pairs if old_word != new_word and old and new]
    i = j = room.start
    while i < room.stop and j < room.stop:
        if swapped and swapped[0][0][0] == i:
            old, new = swapped.pop(0)
            for row, column in zip(old, new, strict=True) if len(old) == len(new) else ((r, c) for r in old for c in new):
                matrix[row, column] = 1.0 if len(old) == len(new) else 1 / len(new)
            i, j = i + len(old), j + len(new)
            continue
        matrix[j if misaligned_tail and not swapped else i, j] = 1.0
        i, j = i + 1, j + 1


def refinement_matrix(
    source: TokenizedPrompt, target: TokenizedPrompt, *, padding_by_position: bool = False
) -> Float[Tensor, "tokens tokens"]:
    """Alignment matrix, source tokens (rows) to target tokens (columns); a target token without a source has zeros.

    Tokens are aligned by the best global alignment of their ids (a match counts 1, a mismatch -1, a gap 0; of equally good
    alignments the one that skips a target token latest), padding to padding. From prompt-to-prompt
    (https://arxiv.org/abs/2208.01626).

    Args:
        source: Prompt whose attention is read.
        target: Prompt whose attention is edited.
        padding_by_position: Map padding to the same position, as the paper's code does, which is a word of a longer source.
    """
    matrix = torch.zeros(len(target.ids), len(target.ids))
    for room, *segments in zip(target.rooms(), source.segments, target.segments, strict=True):
        stops = [min(segment.end + 1, room.stop) for segment in segments]
        old, new = source.ids[room.start : stops[0]], target.ids[room.start : stops[1]]
        for row, column in _global_alignment(old, new):
            matrix[room.start + row, room.start + column] = 1.0
        offset = 0 if padding_by_position else len(old) - len(new)
        for column in range(stops[1], room.stop):
            if column + offset < room.stop:
                matrix[column + offset, column] = 1.0
    return matrix


def equal_spans(source: Sequence[int], target: Sequence[int]) -> dict[int, int]:
    """Source position by target position, where runs of tokens are equal or were replaced by equally many.

    The alignment of cross-attention control (https://github.com/bloc97/CrossAttentionControl).
    """
    found: dict[int, int] = {}
    for kind, a0, a1, b0, b1 in SequenceMatcher(None, list(source), list(target)).get_opcodes():
        if kind == "equal" or (kind == "replace" and a1 - a0 == b1 - b0):
            found.update(zip(range(b0, b1), range(a0, a1), strict=True))
    return found


def _words(prompt: TokenizedPrompt, room: range) -> list[tuple[str, list[int]]]:
    """Words between spaces, and the positions of their tokens in one segment."""
    spans = [(position, prompt.offsets[position]) for position in prompt.word_positions if position in room]
    return [
        (match[0], [position for position, span in spans if span and span[0] < match.end() and match.start() < span[1]])
        for match in re.finditer(r"\S+", prompt.text)
    ]


def _global_alignment(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of positions in ``old`` and ``new`` (Needleman and Wunsch)."""
    best = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]

    def diagonal(i: int, j: int) -> int:
        return best[i - 1][j - 1] + (1 if old[i - 1] == new[j - 1] else -1)

    for i in range(1, len(old) + 1):
        for j in range(1, len(new) + 1):
            best[i][j] = max(best[i][j - 1], best[i - 1][j], diagonal(i, j))
    pairs: list[tuple[int, int]] = []
    i, j = len(old), len(new)
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]
