"""An attention module of the library alone, its inputs and a pass over them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention as AttentionModule
from torch import Tensor, nn

from attnguide.attention.capture import Probe, Quantity, Recorder
from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.cfg import pass_context
from attnguide.types import PassContext, Step

SITE = Site("attn", "cross", 3, 4, 2)
STEP = Step.at_sigma(0, 4, 999.0, 14.6)
QUANTITIES: tuple[Quantity, ...] = ("query", "key", "value", "scores", "original_probs", "probs", "output")


def module(dtype: torch.dtype = torch.float64) -> AttentionModule:
    torch.manual_seed(0)
    return AttentionModule(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4).to(dtype).eval().requires_grad_(False)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(2, 12, 8, generator=random).to(dtype), torch.randn(2, 5, 6, generator=random).to(dtype)


def context(kind: str = "denoise") -> PassContext:
    return pass_context(STEP, kind, (0, 1), ("cond",))  # type: ignore[arg-type]


@dataclass
class Nothing(Edit):
    """Acts, and changes nothing."""

    stages: frozenset[Stage] = frozenset({"probs"})
    sites: SiteSelector = field(default_factory=SiteSelector)


class Calls(nn.Module):
    """Attention calls over so many queries and keys each; the last one's output is given out."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, states: Tensor, encoder_hidden_states: Any = None) -> Tensor:
        for queries, keys in self.shapes:
            key = torch.ones(1, 2, keys, 4)
            result = F.scaled_dot_product_attention(torch.ones(1, 2, queries, 4), key, key)
        return result


def text(tokens: int) -> Tensor:
    return torch.zeros(1, tokens, 8)


def probe() -> Probe:
    return Probe("probs", Recorder())
