import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnguide.attention.edits import apply_mass_policy


def _probs(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def _edited(probs: torch.Tensor, amount: float) -> torch.Tensor:
    edited = probs.clone()
    edited[..., :3, 2] += amount
    return edited


def test_none_keeps_what_came() -> None:
    edited = _edited(_probs(), 3.0)
    assert apply_mass_policy(edited, _probs(), "none") is edited


@given(st.floats(0, 30))
def test_renormalised_rows_sum_to_one(amount: float) -> None:
    kept = apply_mass_policy(_edited(_probs(), amount), _probs(), "renormalize")
    torch.testing.assert_close(kept.sum(-1), torch.ones(2, 3, 6, dtype=torch.float64))


@given(st.floats(0, 30))
def test_preserved_columns_keep_their_mass(amount: float) -> None:
    kept = apply_mass_policy(_edited(_probs(), amount), _probs(), "preserve")
    torch.testing.assert_close(kept.sum(-2), _probs().sum(-2))
    if amount > 1e-6:
        assert kept[..., :3, 2].sum() > _probs()[..., :3, 2].sum()
    assert torch.equal(kept[..., [0, 1, 3, 4]], _probs()[..., [0, 1, 3, 4]])


@pytest.mark.parametrize("policy", ["renormalize", "preserve"])
def test_no_edit_changes_no_bit(policy: str) -> None:
    assert torch.equal(apply_mass_policy(_probs(), _probs(), policy), _probs())  # type: ignore[arg-type]


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="mass must be one of none, renormalize, preserve; got 'keep'"):
        apply_mass_policy(_probs(), _probs(), "keep")  # type: ignore[arg-type]
