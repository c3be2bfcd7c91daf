"""Latents as image tokens, with further tokens and channels beside them, and the sites that count from the end."""

import pytest
import torch

from attnguide.steering.called_model import _before
from attnguide.steering.packing import Tokens, grid_by_places, grid_by_shapes
from tests.models.families import packed


def test_tokens_are_two_cells_by_two() -> None:
    latents = torch.arange(2 * 4 * 4 * 6).float().view(2, 4, 4, 6)
    tokens = packed(latents, 2)
    packing = Tokens((2, 3), 2, 16)
    assert torch.equal(packing.unpack(tokens), latents)
    assert torch.equal(packing.pack(latents, tokens), tokens)
    assert torch.equal(packing.pack(latents, tokens), tokens) and packing.pack(latents, tokens).is_contiguous()


@pytest.mark.parametrize("first", [True, False])
def test_what_stands_beside_latents_is_kept(first: bool) -> None:
    latents, beside = torch.randn(1, 4, 4, 6), torch.randn(1, 5, 20)
    own = torch.cat([packed(latents, 2), torch.randn(1, 6, 4)], 2)
    whole = torch.cat([own, beside] if first else [beside, own], 1)
    packing = Tokens((2, 3), 2, 16, first=first, behind=5 if first else 0)
    assert torch.equal(packing.unpack(whole), latents)
    assert torch.equal(packing.unpack(own), latents)  # as the scheduler has them
    moved = packing.pack(latents + 1, whole)
    assert torch.equal(packing.unpack(moved), latents + 1)
    at, there = (slice(6), slice(6, None)) if first else (slice(5, None), slice(5))
    assert torch.equal(moved[:, there], beside) and torch.equal(moved[:, at, 16:], own[..., 16:])


def test_sizes_are_read_from_places_and_shapes() -> None:
    places = torch.tensor([[0, row, column] for row in range(2) for column in range(3)] + [[1, 9, 9]])
    assert grid_by_places("ids")({"ids": places}) == grid_by_places("ids")({"ids": places[None]}) == (2, 3)
    one, several = {"img_shapes": [(1, 2, 3)]}, {"img_shapes": [[(1, 2, 3), (1, 9, 8)]]}
    assert grid_by_shapes(0)(one) == grid_by_shapes(0)(several) == (2, 3)
    assert grid_by_shapes(-1)(several) == (9, 8)


def test_positions_from_the_end_have_further_pictures_behind_them() -> None:
    assert _before((-6, None), 4) == (-10, -4)
    assert _before((0, -6), 4) == (0, -10)
    assert _before((0, 6), 4) == (0, 6) and _before((6, None), 4) == (6, None) and _before(None, 4) is None
