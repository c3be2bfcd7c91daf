"""Difference between rows' softmax sums from fused kernels and explicit ones, on this device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from attnguide.attention.columns import masked_scores
from attnguide.attention.kernels import kernels_for
from attnguide.attention.sums import attention_with_sums
from attnguide.models.load import DTYPES

SHAPES: dict[str, tuple[int, int, int]] = {"cross": (1000, 77, 40), "self": (1024, 1024, 64), "joint": (1100, 1100, 128)}
"""Name -> queries, keys and channels of a head; some numbers of queries do not fill whole tiles."""


def kernel_errors(device: str, dtypes: Sequence[str]) -> list[dict[str, Any]]:
    """One record for each kernel, shape and precision, in the words of a table.

    The explicit sums and outputs are float32 of the same rounded inputs. ``rows`` is the largest difference of the logarithms
    of the rows' sums, ``output`` that of attention itself. A line more has their gradients to queries and keys, as shares of
    the largest explicit one: of the sums under ``rows``, of attention under ``output``.
    """
    cases = [(dtype, name) for dtype in dtypes for name in SHAPES]
    return [record for case in cases for record in (*_errors(device, *case), _gradients(device, *case))]


def _drawn(device: str, dtype: str, name: str) -> list[Tensor]:
    """Random queries, keys and values, with cells before heads in memory, as attention modules pass them."""
    queries, keys, channels = SHAPES[name]
    source = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, count, 4, channels, generator=source) for count in (queries, keys, keys)]
    return [part.to(device, DTYPES[dtype]).transpose(1, 2) for part in drawn]


@torch.no_grad()
def _errors(device: str, dtype: str, name: str) -> Iterator[dict[str, Any]]:
    scale = SHAPES[name][2] ** -0.5
    query, key, value = _drawn(device, dtype, name)
    scores = masked_scores(query, key, None, scale)
    wanted = scores.softmax(-1) @ value.float(), scores.logsumexp(-1)
    case = {"precision": dtype, "attention": name}
    kernels = kernels_for(query, None)
    if not kernels:
        yield {**case, "kernel": "none: in chunks", "rows": "", "output": ""}
    for kernel in kernels:
        try:
            found = kernel(query, key, value, None, scale)
        except RuntimeError as error:
            yield {
                **case,
                "kernel": f"{kernel.__name__.strip('_')}: refuses, {str(error).splitlines()[0][:60]}",
                "rows": "",
                "output": "",
            }
            continue
        rows, output = (f"{_apart(one, other):.1e}" for one, other in zip(reversed(found), reversed(wanted), strict=True))
        yield {**case, "kernel": kernel.__name__.strip("_"), "rows": rows, "output": output}


def _apart(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference; infinite if shapes differ."""
    return float((found.float() - wanted).abs().max()) if found.shape == wanted.shape else float("inf")


def _gradients(device: str, dtype: str, name: str) -> dict[str, Any]:
    """Gradients of rows' sums and of attention through the fused kernel, beside those of scores that are formed."""
    scale, case = SHAPES[name][2] ** -0.5, {"precision": dtype, "attention": name}
    leaves = [part.detach().requires_grad_(True) for part in _drawn(device, dtype, name)]
    query, key, value = leaves
    found = attention_with_sums(query, key, value, None, scale)
    if found is None:
        return {**case, "kernel": "gradient: none, in chunks", "rows": "", "output": ""}
    wide = [part.detach().float().requires_grad_(True) for part in leaves]
    scores = masked_scores(wide[0], wide[1], None, scale)
    wanted = scores.softmax(-1) @ wide[2], scores.logsumexp(-1)
    shares = []
    for one, other in zip(reversed(found), reversed(wanted), strict=True):
        weights = torch.randn(one.shape, generator=torch.Generator().manual_seed(1)).to(device)
        pairs = [
            torch.autograd.grad((tensor.float() * weights).sum(), of[:2], retain_graph=True)
            for tensor, of in ((one, leaves), (other, wide))
        ]
        sizes = [float(gradient.abs().max()) for gradient in pairs[1]]
        shares.append(max(_apart(*pair) / size for *pair, size in zip(*pairs, sizes, strict=True)))
    return {**case, "kernel": "gradient", "rows": f"{shares[0]:.1e}", "output": f"{shares[1]:.1e}"}
