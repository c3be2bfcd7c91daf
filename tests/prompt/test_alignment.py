"""Alignments worked out by hand; words the tokenizer does not know are spelt, so "fox" is three tokens."""

import pytest
import torch
from torch import Tensor

from attnguide.prompt.alignment import equal_spans, refinement_matrix, replacement_matrix
from attnguide.prompt.tokens import TokenizedPrompt
from tests import tiny

Entries = dict[tuple[int, int], float]


def _tokenized(text: str) -> TokenizedPrompt:
    return tiny.model().tokenize(text)


def _entries(matrix: Tensor) -> Entries:
    return {(int(i), int(j)): float(matrix[i, j]) for i, j in matrix.nonzero()}


def _shifted(first_source: int, first_target: int) -> Entries:
    """One to one from here on, as far as both go."""
    count = tiny.LENGTH - max(first_source, first_target)
    return {(first_source + k, first_target + k): 1.0 for k in range(count)}


def test_replace_one_token_by_one() -> None:
    matrix = replacement_matrix(_tokenized("a red cat"), _tokenized("a blue cat"))
    assert torch.equal(matrix, torch.eye(tiny.LENGTH))


def test_replace_one_token_by_three() -> None:
    """Start, a, [red -> blue], [cat -> f o x], and: cat's attention is divided by three, what follows moves by two."""
    source, target = _tokenized("a red cat and"), _tokenized("a blue fox and")
    third = pytest.approx(1 / 3)
    head: Entries = {(0, 0): 1, (1, 1): 1, (2, 2): 1, (3, 3): third, (3, 4): third, (3, 5): third}
    assert _entries(replacement_matrix(source, target)) == head | _shifted(4, 6)
    misaligned = _entries(replacement_matrix(source, target, misaligned_tail=True))
    assert misaligned == head | {(j, j): 1.0 for j in range(6, tiny.LENGTH)}


def test_replace_three_tokens_by_one() -> None:
    source, target = _tokenized("a fox and a cat"), _tokenized("a dog and a ball")
    head: Entries = {(0, 0): 1, (1, 1): 1, (2, 2): 1, (3, 2): 1, (4, 2): 1, (5, 3): 1, (6, 4): 1, (7, 5): 1}
    assert _entries(replacement_matrix(source, target)) == head | _shifted(8, 6)


def test_replace_needs_as_many_words() -> None:
    with pytest.raises(ValueError, match=r"equally many words; the source prompt 'a cat' has 2, 'a red cat' has 3"):
        replacement_matrix(_tokenized("a cat"), _tokenized("a red cat"))


def test_refine_adds_a_word() -> None:
    """A token of its own for "red"; the end token and padding move by one."""
    matrix = refinement_matrix(_tokenized("a cat"), _tokenized("a red cat"))
    assert _entries(matrix) == {(0, 0): 1, (1, 1): 1, (2, 3): 1} | _shifted(3, 4)
    by_position = refinement_matrix(_tokenized("a cat"), _tokenized("a red cat"), padding_by_position=True)
    assert _entries(by_position) == {(0, 0): 1, (1, 1): 1, (2, 3): 1, (3, 4): 1} | _shifted(5, 5)


def test_refine_drops_words() -> None:
    source, target = _tokenized("a red cat and a ball"), _tokenized("a cat")
    assert _entries(refinement_matrix(source, target)) == {(0, 0): 1, (1, 1): 1, (3, 2): 1} | _shifted(7, 3)
    by_position = _entries(refinement_matrix(source, target, padding_by_position=True))
    assert by_position[(4, 4)] == 1  # padding reads the source's "and"


def test_refine_swaps_a_word_that_has_no_source() -> None:
    matrix = refinement_matrix(_tokenized("a red cat"), _tokenized("a red fox"))
    assert _entries(matrix) == {(0, 0): 1, (1, 1): 1, (2, 2): 1} | _shifted(4, 6)


def test_equal_spans() -> None:
    """``b c`` was replaced by as many tokens; ``e`` by more."""
    found = equal_spans([0, 1, 2, 3, 4, 5, 6, 6, 6], [0, 1, 7, 8, 4, 9, 9, 6, 6])
    assert found == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 7: 6, 8: 7}
