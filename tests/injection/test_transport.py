from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnguide.attention.sites import SiteSelector
from attnguide.injection.transport import Transport, even_goals, transport
from attnguide.schedules import Window, constant
from attnguide.types import Region
from tests import tiny
from tests.injection import common

ALWAYS, CROSS = Window(), SiteSelector(kind="cross")


def _move(rows: list[list[float]], goal: list[float], strength: float) -> Tensor:
    """Cells times three tokens, of which the last is steered."""
    goals = torch.zeros(1, len(rows), 3, dtype=torch.float64)
    goals[0, :, 2] = torch.tensor(goal, dtype=torch.float64)
    return transport(
        torch.tensor(rows, dtype=torch.float64)[None, None],
        goals,
        torch.tensor([[0.0, 0.0, strength]], dtype=torch.float64),
    )[0, 0]


def test_a_case_by_hand() -> None:
    """A word of mass 0.4, half of it moved: its neighbours shrink by a quarter where it arrives and grow where it leaves."""
    moved = _move([[0.6, 0.2, 0.2], [0.4, 0.4, 0.2]], [1.0, 0.0], 0.5)
    expected = [[0.6 * 7 / 8, 0.2 * 7 / 8, 0.3], [0.45, 0.45, 0.1]]
    torch.testing.assert_close(moved, torch.tensor(expected, dtype=torch.float64))


def test_no_more_is_moved_than_there_is_room() -> None:
    """A word of mass 1.5 wants to be in one cell, which has room for 0.25: the move stops when the cell is full."""
    moved = _move([[0.2, 0.05, 0.75], [0.2, 0.05, 0.75]], [1.0, 0.0], 1.0)
    torch.testing.assert_close(moved, torch.tensor([[0.0, 0.0, 1.0], [0.4, 0.1, 0.5]], dtype=torch.float64))


def test_a_cell_that_was_the_word_s_alone_is_left_to_the_others_alike() -> None:
    moved = _move([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]], [0.0, 1.0], 0.5)
    torch.testing.assert_close(moved, torch.tensor([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]], dtype=torch.float64))


@given(
    seed=st.integers(0, 2**31),
    strength=st.floats(0, 1),
    sharpness=st.sampled_from([0.1, 1.0, 5.0, 30.0]),
    words=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_rows_and_words_keep_their_sums(seed: int, strength: float, sharpness: float, words: int) -> None:
    random = torch.Generator().manual_seed(seed)
    probs = (sharpness * torch.randn(2, 2, 12, 5, generator=random, dtype=torch.float64)).softmax(-1)
    goals = torch.rand(2, 12, 5, generator=random, dtype=torch.float64)
    goals = (goals * (goals > 0.6)).clamp_min(1e-9)
    steered = torch.arange(5) < words
    strengths = torch.where(steered, strength * torch.rand(2, 5, generator=random, dtype=torch.float64), 0.0)
    moved = transport(probs, goals / goals.sum(1, keepdim=True) * steered, strengths)
    assert (moved >= 0).all() and (moved <= 1 + 1e-9).all()
    torch.testing.assert_close(moved.sum(-1), probs.sum(-1), rtol=0, atol=1e-9)
    kept = (strengths > 0)[:, None].expand(-1, 2, -1)
    torch.testing.assert_close(moved.sum(2)[kept], probs.sum(2)[kept], rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_strength_changes_no_bit(dtype: torch.dtype) -> None:
    probs = torch.randn(2, 2, 12, 5).softmax(-1).to(dtype)
    goals = torch.full((2, 12, 5), 1 / 12, dtype=dtype)
    assert torch.equal(transport(probs, goals, torch.zeros(2, 5, dtype=dtype)), probs)


# ----------------------------------------------------------------------------------------------------------- its goals


def _goals(*regions: Region, prompt: str = tiny.PROMPT) -> tuple[Tensor, Tensor]:
    return even_goals(common.targets_of([tiny.row(prompt=prompt, regions=regions)]), 4, 6)


def test_goals_are_even_over_the_region() -> None:
    goals, factors = _goals(Region("cat", box=(0, 0, 0.5, 0.5)))
    cat = goals[0, :, 3].unflatten(0, (4, 6))
    assert torch.allclose(cat[:2, :3], torch.tensor(1 / 6, dtype=torch.float64)) and float(cat.sum()) == pytest.approx(1)
    assert factors[0].tolist() == [0, 0, 0, 1] + [0] * (tiny.LENGTH - 4)


def test_places_of_one_word_get_equal_shares_whatever_their_size() -> None:
    goals, factors = _goals(Region("cat", box=(0, 0, 0.5, 1)), Region("cat", box=(0.5, 0, 1, 0.25)))
    cat = goals[0, :, 3].unflatten(0, (4, 6))
    assert float(cat[:, :3].sum()) == pytest.approx(0.5) and float(cat[0, 3:].sum()) == pytest.approx(0.5)
    assert float(factors[0, 3]) == 1


def test_weights_share_a_word_and_scale_its_strength() -> None:
    goals, factors = _goals(
        Region("cat", box=(0, 0, 0.5, 1), weight=0.6),
        Region("cat", box=(0.5, 0, 1, 1), weight=0.2),
        Region("ball", box=(0, 0, 1, 1), weight=7),
    )
    assert float(goals[0, :, 3].unflatten(0, (4, 6))[:, :3].sum()) == pytest.approx(0.75)
    assert float(factors[0, 3]) == pytest.approx(0.4) and float(factors[0, 7]) == 1


def test_a_weight_of_zero_or_less_leaves_a_word_alone() -> None:
    _, factors = _goals(Region("cat", box=(0, 0, 0.5, 1), weight=0.0), Region("ball", box=(0, 0, 1, 1), weight=-1.0))
    assert not factors.any()


# ----------------------------------------------------------------------------------------------------------- as an edit


def _edit(scale: Any, fade: float = 1.0, rows: int = 2) -> Transport:
    return Transport(CROSS, scale, ALWAYS, constant(fade), common.targets_of([tiny.row(str(index)) for index in range(rows)]))


def test_only_the_conditional_half_of_denoising_passes_is_edited() -> None:
    context = common.context_of(2)
    probs = common.random_scores(context, common.CROSS).softmax(-1)
    edited = _edit([1.0, 0.0]).probs(probs, common.CROSS, context)
    assert torch.equal(edited[[0, 1, 3]], probs[[0, 1, 3]]) and not torch.equal(edited[2], probs[2])


def test_the_fade_is_a_factor_on_the_strength() -> None:
    context = common.context_of(2, ("cond",))
    probs = common.random_scores(context, common.CROSS).softmax(-1)
    faded, weak = (_edit(scale, fade).probs(probs, common.CROSS, context) for scale, fade in ((0.8, 0.5), (0.4, 1.0)))
    torch.testing.assert_close(faded, weak)
    assert not _edit(1.0, 0.0).active(context) and _edit(1.0).active(context) and not _edit(0.0).active(context)
