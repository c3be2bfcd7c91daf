"""Kernels that give out rows' sums: on a CPU by value, on a GPU by the shapes that their operators declare."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.attention import kernels
from attnguide.attention.columns import row_logsumexp
from attnguide.attention.kernels import kernels_for, output_and_logsumexp


def _shaped(queries: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries as modules hand them over, cells before heads in memory, and a text of 77 tokens; without data."""
    query = torch.empty(2, queries, 3, channels, device="meta", dtype=dtype).transpose(1, 2)
    text = torch.empty(2, 77, 3, channels, device="meta", dtype=dtype).transpose(1, 2)
    return query, text, text


def _on_a_gpu(query: Tensor) -> Any:
    """What is asked of queries on a GPU before a kernel is chosen."""
    return SimpleNamespace(device=torch.device("cuda"), shape=query.shape, dtype=query.dtype)


@pytest.mark.parametrize("queries", [64, 77, 1000])
@pytest.mark.parametrize(
    ("dtype", "channels", "names"),
    [
        (torch.float16, 64, ["_flash", "_efficient"]),
        (torch.bfloat16, 128, ["_flash", "_efficient"]),
        (torch.float16, 512, ["_efficient"]),
        (torch.float32, 40, ["_efficient"]),
        (torch.float64, 64, []),
        (torch.float16, 36, []),
    ],
    ids=["fp16", "bf16", "wide", "fp32", "fp64", "odd"],
)
def test_a_gpu_s_kernels_give_a_number_for_every_query(
    dtype: torch.dtype, channels: int, names: list[str], queries: int
) -> None:
    """The operators pad the sums to tiles, each in its own way: their declarations say the shapes that a GPU gives."""
    query, key, value = _shaped(queries, channels, dtype)
    chosen = kernels_for(_on_a_gpu(query), None)
    assert [kernel.__name__ for kernel in chosen] == names
    assert kernels_for(_on_a_gpu(query), torch.ones(1, 1, queries, 77, dtype=torch.bool)) == []
    for kernel in chosen:
        output, logsumexp = kernel(query, key, value, None, 0.125)
        assert output.shape == (2, 3, queries, channels) and output.dtype == dtype
        assert logsumexp.shape == (2, 3, queries) and logsumexp.dtype == torch.float32


def test_a_kernel_that_refuses_is_followed_by_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8)
    wanted = (query @ key.transpose(-1, -2) * 0.3).logsumexp(-1)
    own = kernels_for(query, None)

    def refuses(*given: Any) -> Any:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    for chosen in ([refuses, *own], [refuses]):
        monkeypatch.setattr(kernels, "kernels_for", lambda query, mask, chosen=chosen: chosen)
        assert (output_and_logsumexp(query, key, key, None, 0.3) is None) == (chosen == [refuses])
        torch.testing.assert_close(row_logsumexp(query, key, None, 0.3), wanted)

    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernels, "kernels_for", lambda query, mask: [full, *own])
    with pytest.raises(torch.OutOfMemoryError):
        output_and_logsumexp(query, key, key, None, 0.3)
