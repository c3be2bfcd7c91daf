import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnguide.injection.regional_masks import PictureRule, Texts, joint_mask
from tests.reference import regional_prompts as reference

RULES: tuple[PictureRule, ...] = ("own", "background", "free")


def _texts(regions: torch.Tensor, lengths: tuple[int, ...]) -> Texts:
    """The row's prompt for the background, and a text for every region."""
    cells = torch.cat([~regions.any(1, keepdim=True), regions], 1)
    return Texts(lengths, cells, cells, regions)


@given(st.integers(0, 10_000), st.sampled_from(RULES), st.integers(0, 3), st.booleans())
@settings(max_examples=30, deadline=None)
def test_against_reference(seed: int, rule: PictureRule, count: int, image_first: bool) -> None:
    """Texts of different lengths, one position that is neither text nor cell, and overlapping regions."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.rand(2, count, 6, generator=generator) > 0.5
    lengths = tuple(int(one) for one in torch.randint(1, 4, (count + 1,), generator=generator))
    texts, cells, length = _texts(regions, lengths), [("cell", cell) for cell in range(6)], sum(lengths)
    words = [("text", number) for number, one in enumerate(lengths) for _ in range(one)]
    if image_first:
        positions = [*cells, *words, ("other", 0)]
        image, text = range(6), range(6, 6 + length)
    else:
        positions = [("other", 0), *words, *cells]
        image, text = range(1 + length, 7 + length), range(1, 1 + length)
    found = joint_mask(texts, len(positions), image, text, rule)
    assert found.shape == (2, 1, len(positions), len(positions))
    assert found.any(-1).all()
    for row in range(2):
        own = [set(one.nonzero()[:, 0].tolist()) for one in regions[row]]
        seen = [set(one.nonzero()[:, 0].tolist()) for one in texts.cells[row]]
        np.testing.assert_array_equal(found[row, 0].numpy(), reference.mask(positions, own, seen, rule))


def test_padding_behind_the_last_text_is_seen_by_nobody_else() -> None:
    texts = _texts(torch.tensor([[[True, False]]]), (1, 2))
    assert texts.cells_see_text(5)[0].tolist() == [[False, True, True, False, False], [True, False, False, False, False]]
    assert texts.text_sees_text(5)[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    assert texts.text_sees_cells(5)[0, :, 0].tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("own", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]), ("background", [[1, 0, 1], [0, 1, 1], [1, 1, 1]]), ("free", [[1] * 3] * 3)],
)
def test_cells_by_hand(rule: PictureRule, expected: list[list[int]]) -> None:
    """Two regions of one cell each, and one cell of background."""
    texts = _texts(torch.tensor([[[True, False, False], [False, True, False]]]), (1, 1, 1))
    assert texts.cells_see_cells(rule)[0].int().tolist() == expected
