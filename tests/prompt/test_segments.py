"""Prompts that several text encoders read side by side, of which only words, end tokens and sinks are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnguide.prompt.alignment import refinement_matrix, replacement_matrix
from attnguide.prompt.targets import Targets
from attnguide.prompt.tokens import Segment, TokenizedPrompt, resolve, token_indices
from attnguide.types import Region, Sample

CLIP, T5 = 8, 10
"""Positions of the two segments."""


def two(text: str, clip: int = CLIP) -> TokenizedPrompt:
    """Words as CLIP reads them (start token, words, end tokens), then as T5 does (words, end token, padding)."""
    spans: list[tuple[int, int]] = []
    for word in text.split():
        first = text.index(word, spans[-1][1] if spans else 0)
        spans.append((first, first + len(word)))
    read = spans[: clip - 2]
    offsets = [None, *read, *[None] * (clip - 1 - len(read)), *spans, *[None] * (T5 - len(spans))]
    ids = [90, *(hash_of(text[slice(*span)]) for span in read), *[91] * (clip - 1 - len(read))]
    ids += [*(hash_of(text[slice(*span)]) for span in spans), 1, *[0] * (T5 - 1 - len(spans))]
    segments = (
        Segment(0, clip, 1 + len(read), 0),
        Segment(clip, clip + T5, clip + len(spans), clip + len(spans)),
    )
    return TokenizedPrompt(text, tuple(map(str, ids)), tuple(offsets), tuple(ids), segments=segments)


def hash_of(word: str) -> int:
    return 100 + sum(ord(letter) * (place + 1) for place, letter in enumerate(word))


def targets_of(*texts: str, sources: tuple[str, ...] = (), **settings: object) -> Targets:
    rows = [Sample(str(i), text, regions=(Region("cat", box=(0, 0, 0.5, 1)),)) for i, text in enumerate(texts)]
    return Targets.build(rows, [two(text) for text in texts], "cpu", [two(text) for text in sources], cuts_padding=True)


def test_a_word_stands_in_every_segment() -> None:
    assert token_indices(two("a red cat"), "red cat") == (2, 3, CLIP + 1, CLIP + 2)
    assert resolve(two("a red cat"), Region("cat", token_indices=(3, CLIP + 2))) == (3, CLIP + 2)
    with pytest.raises(ValueError, match=r"must lie in 1\.\.3 or 8\.\.10 \(the words"):
        resolve(two("a red cat"), Region("cat", token_indices=(0,)))


def test_a_word_beyond_the_shorter_encoder_stands_where_it_is_read() -> None:
    assert token_indices(two("a b c d e f cat"), "cat") == (CLIP + 6,)


def test_only_words_ends_and_sinks_are_kept() -> None:
    targets = targets_of("a cat", "a red cat and")
    assert targets.columns == (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12)
    assert targets.token_indices == (((2, 7),), ((3, 8),))
    assert targets.tokens[0, 0].nonzero()[:, 0].tolist() == [2, 7] and float(targets.tokens[0, 0, 2]) == 0.5
    assert targets.last_tokens[1, 0].nonzero()[:, 0].tolist() == [3, 8]
    assert [row.nonzero()[:, 0].tolist() for row in targets.ends] == [[3, 8], [5, 10]]
    assert [row.nonzero()[:, 0].tolist() for row in targets.sinks] == [[0, 8], [0, 10]]
    assert [row.nonzero()[:, 0].tolist() for row in targets.later] == [[3, 8], [5, 10]]
    assert [row.nonzero()[:, 0].tolist() for row in targets.competing(True)] == [[1, 2, 3, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert [row.nonzero()[:, 0].tolist() for row in targets.competing(False)] == [[1, 2, 6, 7], [1, 2, 3, 4, 6, 7, 8, 9]]
    assert targets.own[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 6, 7, 8] and bool(targets.own[1].all())


def test_a_row_alone_has_the_same_words_as_in_a_batch() -> None:
    alone, batch = targets_of("a cat"), targets_of("a cat", "a red cat and")
    assert alone.columns == (0, 1, 2, 3, 8, 9, 10) and batch.columns is not None
    for mask in ("ends", "sinks", "later", "own"):
        found = [targets.columns[place] for targets in (alone, batch) for place in getattr(targets, mask)[0].nonzero()[:, 0]]
        assert found[: len(found) // 2] == found[len(found) // 2 :]


def test_source_prompts_count_into_the_columns() -> None:
    targets = targets_of("a cat", sources=("a red cat and",))
    assert targets.columns == targets_of("a cat", "a red cat and").columns
    assert targets.source_tokens(targets.placed)[0, 0].nonzero()[:, 0].tolist() == [3, 8]


def test_what_was_cut_is_cut_again_without_change() -> None:
    first = targets_of("a cat", "a red cat and")
    again = Targets.build([Sample("0", "a cat", regions=(Region("", token_indices=(2, 9)),))], first.tokenized[:1], "cpu")
    assert again.columns == first.columns and again.token_indices == (((2, 7),),)


def test_rows_of_differing_lengths_are_padded() -> None:
    """A segment whose length is the prompt's own, without an end token, behind a template of two tokens."""

    def read(text: str) -> TokenizedPrompt:
        words = [(at, at + 1) for at, letter in enumerate(text) if letter != " "]
        count = len(words) + 2
        offsets = (None, None, *words)
        return TokenizedPrompt(text, ("x",) * count, offsets, (5,) * count, segments=(Segment(0, count, count, 0),))

    rows = [Sample("0", "a b", regions=(Region("b"),)), Sample("1", "a b c d", regions=(Region("d"),))]
    targets = Targets.build(rows, [read(row.prompt) for row in rows], "cpu", cuts_padding=True)
    assert targets.columns == (0, 2, 3, 4, 5)
    assert targets.tokenized[0].ids == (5, 5, 5, -1, -1) and targets.token_indices == (((2,),), ((4,),))
    assert not targets.ends.any() and not targets.later.any()
    assert targets.competing(True).tolist() == [[False, True, True, False, False], [False, True, True, True, True]]
    assert targets.own.tolist() == [[True, True, True, False, False], [True] * 5]
    with pytest.raises(ValueError, match="must have one length"):
        Targets.build(rows, [read(row.prompt) for row in rows], "cpu")


def test_prompts_are_aligned_segment_by_segment() -> None:
    pair = [prompt.keep(range(CLIP + T5)) for prompt in (two("a cat sat"), two("a red cat sat"))]
    matrix = refinement_matrix(*pair)
    halves = [replace(p, tokens=p.tokens[:CLIP], offsets=p.offsets[:CLIP], ids=p.ids[:CLIP], segments=()) for p in pair]
    assert torch.equal(matrix[:CLIP, :CLIP], refinement_matrix(*halves))
    assert not matrix[:CLIP, CLIP:].any() and not matrix[CLIP:, :CLIP].any()
    assert matrix[CLIP:, CLIP:].nonzero().tolist()[:3] == [[0, 0], [1, 2], [2, 3]]
    swapped = replacement_matrix(two("a red cat"), two("a blue cat"))
    assert torch.equal(swapped, torch.eye(CLIP + T5))
