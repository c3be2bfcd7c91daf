"""Sums of rows that fused kernels give out, beside explicit ones: how far they are apart on this device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from attnguide.attention.columns import masked_scores
from attnguide.attention.kernels import kernels_for
from attnguide.models.load import DTYPES

SHAPES: dict[str, tuple[int, int, int]] = {"cross": (1000, 77, 40), "self": (1024, 1024, 64), "joint": (1100, 1100, 128)}
"""Queries, keys and channels of a head; numbers of queries that fill no whole tile among them."""


def kernel_errors(device: str, dtypes: Sequence[str]) -> list[dict[str, Any]]:
    """One record for each kernel, shape and precision, in the words of a table.

    The explicit sums and outputs are float32 of the same rounded inputs. ``rows`` is the largest difference of the logarithms
    of the rows' sums, ``output`` that of attention itself.
    """
    return [record for dtype in dtypes for name in SHAPES for record in _errors(device, dtype, name)]


@torch.no_grad()
def _errors(device: str, dtype: str, name: str) -> Iterator[dict[str, Any]]:
    queries, keys, channels = SHAPES[name]
    source, scale = torch.Generator().manual_seed(0), channels**-0.5
    # Cells before heads in memory, as modules hand them over.
    drawn = (torch.randn(2, count, 4, channels, generator=source) for count in (queries, keys, keys))
    query, key, value = (part.to(device, DTYPES[dtype]).transpose(1, 2) for part in drawn)
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
    """The largest difference; infinite where shapes differ."""
    return float((found.float() - wanted).abs().max()) if found.shape == wanted.shape else float("inf")
