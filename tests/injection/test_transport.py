from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnguide.attention.sites import SiteSelector
from attnguide.injection.transport import Transport, even_goals, hush_later, transport
from attnguide.schedules import Window, constant
from attnguide.types import Region
from tests import tiny
from tests.injection import common

ALWAYS, CROSS = Window(), SiteSelector(kind="cross")


def _move(rows: list[list[float]], goal: list[float], strength: float, **options: Any) -> list[list[float]]:
    """Cells times three tokens, of which the last is steered."""
    goals = torch.zeros(1, len(rows), 3, dtype=torch.float64)
    goals[0, :, 2] = torch.tensor(goal, dtype=torch.float64)
    steered = torch.tensor([[0.0, 0.0, strength]], dtype=torch.float64)
    moved = transport(torch.tensor(rows, dtype=torch.float64)[None, None], goals, steered, **options)
    return [pytest.approx(row) for row in moved[0, 0].tolist()]


def test_a_case_by_hand() -> None:
    """A word of mass 0.4, half of it moved: its neighbours shrink where it arrives, the first grows where it leaves."""
    rows = [[0.6, 0.2, 0.2], [0.4, 0.4, 0.2]]
    arrived = [0.6 * 7 / 8, 0.2 * 7 / 8, 0.3]
    assert _move(rows, [1.0, 0.0], 0.5) == [arrived, [0.5, 0.4, 0.1]]
    assert _move(rows, [1.0, 0.0], 0.5, surplus="others") == [arrived, [0.45, 0.45, 0.1]]


def test_no_more_comes_in_than_there_is_room() -> None:
    """A word of mass 1.5 wants to be in one cell: it gets all of it, or the share that may be taken."""
    rows = [[0.2, 0.05, 0.75], [0.2, 0.05, 0.75]]
    assert _move(rows, [1.0, 0.0], 1.0) == [[0.0, 0.0, 1.0], [0.95, 0.05, 0.0]]
    assert _move(rows, [1.0, 0.0], 1.0, room=0.9) == [[0.08, 0.02, 0.9], [0.95, 0.05, 0.0]]
    # Half of the word stays, 0.375 in each cell; of the 0.625 that are free it may take 0.8.
    assert _move(rows, [1.0, 0.0], 0.5, room=0.8) == [[0.1, 0.025, 0.875], [0.575, 0.05, 0.375]]


@pytest.mark.parametrize("surplus", ["first", "others"])
def test_a_cell_that_was_the_word_s_alone_is_left_to_the_first(surplus: str) -> None:
    moved = _move([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]], [0.0, 1.0], 0.5, surplus=surplus)
    assert moved == [[0.5, 0.0, 0.5], [0.25, 0.25, 0.5]]


@given(
    seed=st.integers(0, 2**31),
    strength=st.floats(0, 1),
    sharpness=st.sampled_from([0.1, 1.0, 5.0, 30.0]),
    words=st.integers(1, 3),
    room=st.floats(0.1, 1),
    surplus=st.sampled_from(["first", "others"]),
)
@settings(max_examples=60, deadline=None)
def test_rows_keep_their_sums_and_no_word_gains(
    seed: int, strength: float, sharpness: float, words: int, room: float, surplus: Any
) -> None:
    random = torch.Generator().manual_seed(seed)
    probs = (sharpness * torch.randn(2, 2, 12, 5, generator=random, dtype=torch.float64)).softmax(-1)
    goals = torch.rand(2, 12, 5, generator=random, dtype=torch.float64)
    goals = (goals * (goals > 0.6)).clamp_min(1e-9)
    steered = torch.arange(5) >= 5 - words
    strengths = torch.where(steered, strength * torch.rand(2, 5, generator=random, dtype=torch.float64), 0.0)
    moved = transport(probs, goals / goals.sum(1, keepdim=True) * steered, strengths, room, surplus)
    assert (moved >= 0).all() and (moved <= 1 + 1e-9).all()
    torch.testing.assert_close(moved.sum(-1), probs.sum(-1), rtol=0, atol=1e-9)
    touched = (strengths > 0)[:, None].expand(-1, 2, -1)
    assert (moved.sum(2)[touched] <= probs.sum(2)[touched] + 1e-9).all()
    if surplus == "first":  # of the others only the first ever grows
        assert (moved[..., 1 : 5 - words] <= probs[..., 1 : 5 - words] + 1e-9).all()


def test_where_there_is_room_a_word_keeps_its_mass() -> None:
    probs = torch.tensor([[[[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.9, 0.0, 0.1]]]], dtype=torch.float64)
    goals = torch.tensor([[[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]], dtype=torch.float64)
    moved = transport(probs, goals, torch.tensor([[0.0, 0.0, 0.7]], dtype=torch.float64), 0.9)
    assert float(moved[..., 2].sum()) == pytest.approx(0.3) and float(moved[0, 0, 2, 2]) == pytest.approx(0.03)


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


def test_a_weight_of_zero_leaves_a_word_alone() -> None:
    _, factors = _goals(Region("cat", box=(0, 0, 0.5, 1), weight=0.0), Region("ball", box=(0, 0, 1, 1)))
    assert not factors[0, 3] and factors[0, 7] == 1


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


def test_later_tokens_are_hushed_outside_by_hand() -> None:
    """Token 1 of four is steered to cell 0: in cell 1 tokens 2 and 3 lose half of theirs to token 0."""
    probs = torch.tensor([[[[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]]]], dtype=torch.float64)
    goals = torch.tensor([[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    hushed = hush_later(probs, goals, torch.tensor([[0.0, 0.5, 0.0, 0.0]], dtype=torch.float64))
    assert torch.equal(hushed[0, 0, 0], probs[0, 0, 0])
    assert hushed[0, 0, 1].tolist() == pytest.approx([0.45, 0.2, 0.15, 0.2])
    last = torch.tensor([[False, False, False, True]])
    spared = hush_later(probs, goals, torch.tensor([[0.0, 0.5, 0.0, 0.0]], dtype=torch.float64), last)
    assert spared[0, 0, 1].tolist() == pytest.approx([0.3, 0.2, 0.3, 0.2])  # token 2 is a word, token 3 ends the sentence
    assert torch.equal(hush_later(probs, goals, torch.zeros(1, 4, dtype=torch.float64)), probs)


def test_rows_keep_their_sums_when_later_tokens_are_hushed() -> None:
    probs = torch.randn(3, 2, 6, 7, dtype=torch.float64).softmax(-1)
    goals, strength = torch.zeros(3, 6, 7, dtype=torch.float64), torch.zeros(3, 7, dtype=torch.float64)
    goals[:2, :2, 3], strength[:2, 3] = 0.5, torch.tensor([0.3, 1.0])
    hushed = hush_later(probs, goals, strength)
    torch.testing.assert_close(hushed.sum(-1), probs.sum(-1))
    assert (hushed >= 0).all() and torch.equal(hushed[2], probs[2])  # a row without a strength
    assert (hushed[1, :, 2:, 4:] == 0).all() and torch.equal(hushed[..., 1:4], probs[..., 1:4])


@pytest.mark.parametrize(
    ("later", "regions", "hushed"),
    [
        ("all", (tiny.CAT,), (True, True)),
        ("end", (tiny.CAT,), (False, True)),
        ("keep", (tiny.CAT,), (False, False)),
        ("auto", (tiny.CAT,), (False, False)),  # the ball has no place
        ("auto", (tiny.CAT, Region(tiny.BALL.phrase, box=(0.0, 0.0, 0.4, 0.3))), (False, True)),
        ("auto", (tiny.CAT, Region(tiny.BALL.phrase)), (False, False)),
    ],
    ids=["all", "end", "keep", "one-of-two", "both", "one-without-place"],
)
def test_which_later_tokens_give_way(later: str, regions: tuple[Region, ...], hushed: tuple[bool, bool]) -> None:
    """The words after the cat, and the end token with its padding."""
    row = tiny.row(regions=regions)
    targets = common.targets_of([row])
    edit = Transport(CROSS, 1.0, ALWAYS, constant(1.0), targets, later=later)  # type: ignore[arg-type]
    context = common.context_of(1)
    probs = common.random_scores(context, common.CROSS).softmax(-1)
    edited = edit.probs(probs, common.CROSS, context)
    torch.testing.assert_close(edited.sum(-1), probs.sum(-1))
    outside = edit._goals[4, 6][0][0].sum(-1) == 0
    words, end = max(common.token_positions(row, tiny.CAT)) + 1, targets.tokenized[0].ends[0]
    cond = edited[context.positions("cond")[0]][:, outside]
    assert outside.any() and words < end
    assert (bool((cond[..., words:end] == 0).all()), bool((cond[..., end:] == 0).all())) == hushed
