from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.types import PassContext, Region, Step
from tests import tiny
from tests.guidance import cases
from tests.reference import bounded_attention as reference

SITES = cases.cross_sites(("mid", 1, 4, 6), ("up", 1, 4, 6)) + cases.self_sites(("mid", 1, 4, 6), ("up", 1, 4, 6))
TARGETS = cases.targets_of({"prompt": tiny.PROMPT, "regions": (tiny.CAT, Region("blue ball", box=(0.5, 0.5, 1.0, 1.0)))})
CAT = [x < 3 for y in range(4) for x in range(6)]
BALL = [x >= 3 and y >= 2 for y in range(4) for x in range(6)]
WORDS = [(2, 3), (6, 7)]
SILENT = (1, 4, 5)  # a, and, a
END = 8
CROSS, SELF = SITES[1], SITES[3]


def _edits(**options: Any) -> tuple[Edit, ...]:
    """The bounds, and what shows attention to their masks, if anything does."""
    return tuple(cases.guidance("bounded_attention", **options).edits(TARGETS, 1))


def _bounds(**options: Any) -> Edit:
    return _edits(**options)[0]


def _context(index: int = 0, count: int = 50, kind: Any = "denoise") -> PassContext:
    branches: tuple[Any, ...] = ("uncond", "cond") if kind == "denoise" else ("cond",)
    return pass_context(cases.at(index, count), kind, [0], branches)


@pytest.mark.parametrize("kind", ["denoise", "guide"])
def test_words_are_hidden_as_in_the_reference(kind: str) -> None:
    context = _context(kind=kind)
    scores = torch.randn(len(context.rows), 2, 24, tiny.LENGTH, dtype=torch.float64)
    probs = _bounds().scores(scores, CROSS, context).softmax(-1)
    background = [not a and not b for a, b in zip(CAT, BALL, strict=True)]

    def sees(query: int, token: int) -> bool:
        if kind == "guide":
            around = [[inside or b for inside, b in zip(mask, background, strict=True)] for mask in (CAT, BALL)]
            return reference.sees_word(query, token, around, WORDS, SILENT)
        return reference.sees_word(query, token, [CAT, BALL], WORDS, SILENT) and not (background[query] and token == END)

    expected = reference.masked_softmax(scores[-1, 0].numpy(), sees)
    np.testing.assert_allclose(probs[-1, 0].numpy(), expected, atol=1e-9)
    if kind == "denoise":
        assert torch.equal(probs[0], scores[0].softmax(-1))


def test_subjects_are_hidden_from_one_another_as_in_the_reference() -> None:
    scores = torch.randn(2, 2, 24, 24, dtype=torch.float64)
    probs = _bounds().scores(scores, SELF, _context()).softmax(-1)
    for half in range(2):
        expected = reference.masked_softmax(scores[half, 1].numpy(), lambda q, k: reference.sees_cell(q, k, [CAT, BALL]))
        np.testing.assert_allclose(probs[half, 1].numpy(), expected, atol=1e-9)


def _show(edits: tuple[Edit, ...], step: Step, cells: Tensor) -> None:
    """One pass in which the cat's word, and the cells of each picture half, are looked at as given."""
    context = pass_context(step, "denoise", [0], ("uncond", "cond"))
    words = torch.full((2, 1, 24, tiny.LENGTH), 0.01)
    words[..., 3] = cells
    words[..., 7] = 1 - cells
    alike = (cells[:, None] == cells[None]).float().expand(2, 1, 24, 24) / 12
    for site, probs in ((CROSS, words), (SELF, alike)):
        for edit in edits:
            edit.scores(probs.log(), site, context)
            edit.probs(probs, site, context)


def test_masks_follow_the_clusters_of_self_attention() -> None:
    """The upper left of the cat's box attends to itself: from refinement on that is the cat, and the rest of its box nobody."""
    cells = torch.tensor([float(x < 3 and y < 2) for y in range(4) for x in range(6)])
    context = _context(16)

    def seen(edits: tuple[Edit, ...]) -> Tensor:
        for index in range(16):
            _show(edits, cases.at(index), cells)
        return edits[0].scores(torch.zeros(2, 1, 24, tiny.LENGTH), CROSS, context)[1, 0, :, 3] == 0

    assert seen(_edits(clusters=1)).tolist() == [bool(cell) for cell in cells]
    assert seen(_edits(clusters=1, refine=False)).tolist() == CAT
    assert seen(_edits(clusters=1, refine_start=0.5)).tolist() == CAT


@pytest.mark.parametrize("site", [CROSS, SELF])
def test_a_perturbed_branch_is_bounded_as_the_conditional_one(site: Site) -> None:
    context = pass_context(cases.at(0), "denoise", [0], ("uncond", "cond", "perturbed"))
    keys = tiny.LENGTH if site is CROSS else 24
    scores = torch.randn(1, 2, 24, keys, dtype=torch.float64).repeat(3, 1, 1, 1)
    found = _bounds().scores(scores, site, context)
    assert torch.equal(found[1], found[2]) and not torch.equal(found[1], scores[1])
