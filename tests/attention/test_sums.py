"""Gradients of rows' sums through a fused kernel, beside those of scores that are formed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention import sums
from attnguide.attention.columns import masked_scores, row_logsumexp
from attnguide.attention.sums import attention_with_sums

SCALE = 0.4


def _inputs(queries: int, keys: int, dtype: torch.dtype = torch.float64, channels: int = 8) -> list[Tensor]:
    source = torch.Generator().manual_seed(queries)
    # Cells before heads in memory, as modules hand them over.
    parts = [torch.randn(2, count, 3, channels, generator=source) for count in (queries, keys, keys)]
    return [part.to(dtype).transpose(1, 2).requires_grad_(True) for part in parts]


def _explicit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    scores = masked_scores(query, key, mask, SCALE)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def _found(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    found = attention_with_sums(query, key, value, mask, SCALE)
    assert found is not None
    return found


def _mask(kind: str, queries: int, keys: int) -> Tensor | None:
    if kind == "none":
        return None
    allowed = torch.ones(2, 1, 1 if kind == "keys" else queries, keys, dtype=torch.bool)
    allowed[1, :, :, -2:] = False
    return torch.zeros(allowed.shape).double().masked_fill(~allowed, float("-inf")) if kind == "additive" else allowed


@pytest.mark.parametrize("kind", ["none", "bool", "keys", "additive"])
@pytest.mark.parametrize("parts", ["both", "output", "sums"])
def test_values_and_gradients_are_those_of_the_square(kind: str, parts: str) -> None:
    inputs, mask = _inputs(37, 21), _mask(kind, 37, 21)
    weights = torch.randn(2, 3, 37, 9, generator=torch.Generator().manual_seed(1)).double()
    gradients = []
    for attention in (_found, _explicit):
        output, total = attention(*inputs, mask)
        loss = (output * weights[..., :8]).sum() * (parts != "sums") + (total * weights[..., 8]).sum() * (parts != "output")
        gradients.append([output, total, *torch.autograd.grad(loss, inputs)])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_gradients_by_differences() -> None:
    inputs = [part[:1, :1].detach().requires_grad_(True) for part in _inputs(5, 4)]
    assert torch.autograd.gradcheck(_found, inputs)


def test_sums_alone_are_those_in_chunks() -> None:
    query, key, value = _inputs(33, 20)
    weights = torch.rand(2, 3, 33).double()
    found = torch.autograd.grad((_found(query, key, value)[1] * weights).sum(), (query, key))
    wanted = torch.autograd.grad((row_logsumexp(query, key, None, SCALE) * weights).sum(), (query, key))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_half_precision_is_as_exact_as_the_kernel_without_sums(dtype: torch.dtype, size: float) -> None:
    """Also where the gradient of the sums is so small that half precision has no such number."""
    inputs = _inputs(64, 48, dtype, channels=32)
    wide = [part.detach().double().requires_grad_(True) for part in inputs]
    weights = size * torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(2))

    def apart(found: Any, wanted: Any) -> float:
        pairs = zip(found, wanted, strict=True)
        return max(float((one.double() - other).abs().max() / other.abs().max().clamp_min(1e-30)) for one, other in pairs)

    loud = 2.0**10 / size  # as a scaled loss has it, since the gradients themselves are in half precision
    exact = torch.autograd.grad((_explicit(*wide)[1] * weights.double()).sum() * loud, wide[:2])
    found = torch.autograd.grad((_found(*inputs)[1] * weights).sum() * loud, inputs[:2])
    plain = F.scaled_dot_product_attention(*inputs, scale=SCALE)
    own = torch.autograd.grad((plain.float() * weights.unsqueeze(-1) * loud).sum(), inputs[:2])
    wanted = torch.autograd.grad((_explicit(*wide)[0] * weights.double().unsqueeze(-1) * loud).sum(), wide[:2])
    assert apart(found, exact) <= 2 * apart(own, wanted) + torch.finfo(dtype).eps


def test_small_gradients_are_kept_in_two_parts() -> None:
    gradient = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(3)) * 1e-9
    channels, size = sums._channels(gradient, torch.float16)
    assert channels.shape[-1] % 8 == 0 and channels.dtype == torch.float16
    kept = channels.double().sum(-1) * size.double()
    assert (kept - gradient.double()).abs().max() < 1e-10 * 1e-2


def test_a_kernel_is_trusted_that_gives_the_right_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert sums._trusted.__wrapped__(cpu, torch.bfloat16, 64)
    assert not sums._trusted.__wrapped__(cpu, torch.float32, 64)
    assert not sums._trusted.__wrapped__(cpu, torch.bfloat16, 36)
    zeros = torch.zeros(1, 2, 16, 8, dtype=torch.bfloat16)
    monkeypatch.setattr(sums, "_channels", lambda gradient, dtype: (zeros, torch.ones((), dtype=dtype)))
    assert not sums._trusted.__wrapped__(cpu, torch.bfloat16, 64), "without its channel the sums have no gradient"


def test_what_no_kernel_takes() -> None:
    query, key, value = _inputs(6, 5)
    assert attention_with_sums(query, key, value[..., :4], None, SCALE) is None
    assert attention_with_sums(query, key[:, :, :0], value[:, :, :0], None, SCALE) is None
    assert attention_with_sums(query.float(), key, value, None, SCALE) is None
