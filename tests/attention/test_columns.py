"""A few columns of an attention against the square of scores that they stand for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnguide.attention import columns
from attnguide.attention.columns import (
    attention_and_logsumexp,
    column_probs,
    mask_part,
    masked_scores,
    row_logsumexp,
    with_columns,
)

SCALE = 0.4


def _inputs(queries: int, keys: int, dtype: torch.dtype = torch.float64, sharp: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(queries * 100 + keys)
    sizes = (queries, keys, keys)
    return tuple((sharp * torch.randn(2, 3, n, 8, generator=random)).to(dtype) for n in sizes)  # type: ignore[return-value]


def _mask(kind: str, queries: int, keys: int) -> Tensor | None:
    """A padded key, a forbidden pair, and a row that sees one key alone."""
    if kind == "none":
        return None
    allowed = torch.ones(2, 1, queries, keys, dtype=torch.bool)
    allowed[1, :, :, -1] = False
    allowed[0, :, 0, 1:] = False
    return allowed if kind == "bool" else torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, float("-inf"))


def _edited(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, at: Tensor, change: Any, again: Any) -> Tensor:
    """Attention whose columns ``at`` have changed scores and probabilities, by columns."""
    others = torch.tensor([index for index in range(key.shape[2]) if index not in at.tolist()], dtype=torch.long)
    output, rest = attention_and_logsumexp(
        query, key.index_select(2, others), value.index_select(2, others), mask_part(mask, None, others), SCALE
    )
    scores = change(masked_scores(query, key.index_select(2, at), mask_part(mask, None, at), SCALE))
    total = torch.logaddexp(rest, scores.logsumexp(-1))
    return with_columns(output, rest, total, again(column_probs(scores, total)), value.index_select(2, at))


def _expected(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, at: Tensor, change: Any, again: Any) -> Tensor:
    """The same over the square."""
    scores = masked_scores(query, key, mask, SCALE)
    probs = scores.index_copy(-1, at, change(scores.index_select(-1, at))).softmax(-1)
    return probs.index_copy(-1, at, again(probs.index_select(-1, at))) @ value


def _raised(scores: Tensor) -> Tensor:
    return scores + 3 * torch.linspace(-1, 1, scores.shape[2], dtype=scores.dtype)[:, None]


def _halved(probs: Tensor) -> Tensor:
    return probs * torch.linspace(0, 1, probs.shape[2], dtype=probs.dtype)[:, None]


def _left(values: Tensor) -> Tensor:
    return values


@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
@pytest.mark.parametrize("chunk", [columns.CHUNK, 50])
def test_row_sums_and_columns_against_the_square(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "CHUNK", chunk)
    query, key, _ = (tensor.requires_grad_() for tensor in _inputs(7, 9))
    mask, at = _mask(kind, 7, 9), torch.tensor([2, 0, 8])
    scores = masked_scores(query, key, mask, SCALE)
    with torch.no_grad():
        torch.testing.assert_close(row_logsumexp(query, key, mask, SCALE), scores.logsumexp(-1), rtol=0, atol=1e-12)
    probs = column_probs(scores.index_select(-1, at), row_logsumexp(query, key, mask, SCALE))
    torch.testing.assert_close(probs, scores.softmax(-1)[..., at], rtol=0, atol=1e-12)
    weight = torch.rand(probs.shape, dtype=torch.float64)
    wanted = torch.autograd.grad((scores.softmax(-1)[..., at] * weight).sum(), (query, key), retain_graph=True)
    found = torch.autograd.grad((probs * weight).sum(), (query, key))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
@pytest.mark.parametrize(("change", "again"), [(_raised, _left), (_left, _halved), (_raised, _halved)])
def test_changed_columns_against_the_square(kind: str, change: Any, again: Any) -> None:
    inputs, mask, at = _inputs(7, 9), _mask(kind, 7, 9), torch.tensor([0, 3])
    arguments = (mask, at, change, again)
    torch.testing.assert_close(_edited(*inputs, *arguments), _expected(*inputs, *arguments), rtol=0, atol=1e-12)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    weight = torch.rand(2, 3, 7, 8, dtype=torch.float64)
    found, wanted = (torch.autograd.grad((made(*inputs, *arguments) * weight).sum(), leaves) for made in (_edited, _expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_gradients_of_columns() -> None:
    query, key, value = (tensor[:1, :1].clone().requires_grad_() for tensor in _inputs(3, 4))
    at = torch.tensor([1])

    def both(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        read = column_probs(masked_scores(query, key[:, :, at], None, SCALE), row_logsumexp(query, key, None, SCALE))
        return read, _edited(query, key, value, None, at, _raised, _halved)

    assert torch.autograd.gradcheck(both, (query, key, value))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_any_size_and_any_columns(queries: int, keys: int, data: st.DataObject) -> None:
    at = torch.tensor(data.draw(st.lists(st.integers(0, keys - 1), min_size=1, max_size=keys, unique=True)))
    arguments = (*_inputs(queries, keys), None, at, _raised, _halved)
    torch.testing.assert_close(_edited(*arguments), _expected(*arguments), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [-30.0, 0.0, 30.0])
def test_half_precision_is_as_exact_as_the_fused_kernel(dtype: torch.dtype, size: float) -> None:
    """Also where the columns held nearly all of every row before, or hold it afterwards."""
    query, key, value = _inputs(40, 50, dtype, sharp=1.0)
    at = torch.arange(0, 50, 5)

    def shifted(scores: Tensor) -> Tensor:
        return scores + size

    bias = torch.zeros(50, dtype=dtype)
    bias[at] = size
    strong = query, torch.cat([key[:, :, :5] * 4, key[:, :, 5:]], 2), value
    exact = [tensor.double() for tensor in strong]
    wanted = _expected(*exact, None, at, shifted, _left)  # type: ignore[misc]
    fused = F.scaled_dot_product_attention(*strong, bias.expand(40, 50), scale=SCALE)
    found = _edited(*strong, None, at, shifted, _left)
    assert found.dtype == dtype
    own_error = (fused.double() - wanted).abs().max()
    assert (found.double() - wanted).abs().max() <= 2 * own_error + torch.finfo(dtype).eps


def test_a_row_without_any_other_key() -> None:
    query, key, value = _inputs(3, 4)
    mask = torch.zeros(1, 1, 3, 4, dtype=torch.bool)
    mask[..., 1] = True
    at = torch.tensor([1])
    torch.testing.assert_close(_edited(query, key, value, mask, at, _left, _left), value[:, :, 1:2].expand(-1, -1, 3, -1))
    every = torch.arange(4)
    torch.testing.assert_close(
        _edited(query, key, value, None, every, _raised, _left), _expected(query, key, value, None, every, _raised, _left)
    )
