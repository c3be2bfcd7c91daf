import pytest
import torch

from attnguide.engine.cfg import combine, pass_context
from attnguide.types import Step

STEP = Step.at_sigma(0, 4, 999.0, 14.6)


def test_a_pass_is_laid_out_branch_by_branch() -> None:
    context = pass_context(STEP, "denoise", (2, 5), ("uncond", "cond"))
    assert context.rows == (2, 5, 2, 5)
    assert context.branches == ("uncond", "uncond", "cond", "cond")
    assert context.positions("cond") == [2, 3] and context.positions("uncond") == [0, 1]
    assert (context.step, context.kind) == (STEP, "denoise")


def test_one_branch() -> None:
    context = pass_context(STEP, "guide", [1], ("cond",))
    assert (context.rows, context.branches, context.positions("uncond")) == ((1,), ("cond",), [])


def test_combination_by_hand() -> None:
    uncond, cond = torch.tensor([1.0, 1.0]).view(2, 1, 1, 1), torch.tensor([3.0, 5.0]).view(2, 1, 1, 1)
    assert combine(uncond, cond, [2.0, 2.0]).flatten().tolist() == [5.0, 9.0]
    assert combine(uncond, cond, [2.0, 3.0]).flatten().tolist() == [5.0, 13.0]


def test_rows_without_guidance_take_the_conditional_answer_as_it_is() -> None:
    uncond, cond = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    mixed = combine(uncond, cond, [1.0, 7.5, 0.0])
    assert torch.equal(mixed[0], cond[0]) and torch.equal(mixed[2], cond[2])
    assert torch.equal(combine(uncond, cond, [0.5, 0.5, 0.5]), cond)


def test_a_broken_unconditional_half_does_not_reach_rows_without_guidance() -> None:
    uncond, cond = torch.full((2, 1, 1, 1), float("nan")), torch.ones(2, 1, 1, 1)
    found = combine(uncond, cond, [1.0, 2.0]).flatten()
    assert found[0] == 1 and found[1].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_mixed_scales_equal_the_rows_one_by_one(dtype: torch.dtype) -> None:
    """A scale that half precision cannot hold must not be rounded for being one of several."""
    uncond, cond = torch.randn(3, 4, 8, 8).to(dtype), torch.randn(3, 4, 8, 8).to(dtype)
    scales = [7.37, 1.0, 3.1]
    mixed = combine(uncond, cond, scales)
    assert mixed.dtype == dtype
    for row, scale in enumerate(scales):
        assert torch.equal(mixed[row], combine(uncond[row : row + 1], cond[row : row + 1], [scale])[0])
