"""Interception of the ``scaled_dot_product_attention`` calls inside one attention module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attnguide.attention.attend import Checked, attend
from attnguide.attention.blocks import resolve
from attnguide.attention.sites import Site
from attnguide.attention.visitors import Visitors


class Interception(TorchFunctionMode):
    """Gives each site of a module the first scaled-dot-product call of its forward whose shape fits the site.

    Other calls (text self-attention, image prompts of an IP-Adapter) run untouched.

    Args:
        visitors: Probes and edits of every site of the module that is read or edited.
        tokens: Length of the text states that the module was given; ``None`` where that is not known.
        checked: Masks of edits already found to leave every query a key.
    """

    def __init__(self, visitors: Sequence[Visitors], tokens: int | None, checked: Checked) -> None:
        super().__init__()
        self.waiting, self.tokens, self.checked = list(visitors), tokens, checked
        self.passed: list[tuple[int, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not self.waiting:
            return func(*args, **kwargs)
        shape = _lengths(*args, **kwargs)
        served = [visitors for visitors in self.waiting if fits(visitors.site, *shape, self.tokens)]
        if not served:
            self.passed.append(shape)
            return func(*args, **kwargs)
        self.waiting = [visitors for visitors in self.waiting if visitors not in served]
        return attend(served, self.checked, *args, **kwargs)


def _lengths(query: Tensor, key: Tensor, *others: Any, **options: Any) -> tuple[int, int]:
    return query.shape[-2], key.shape[-2]


def fits(site: Site, queries: int, keys: int, tokens: int | None) -> bool:
    """Whether a site belongs to an attention call of ``queries`` and ``keys`` positions.

    Args:
        site: Its query block must be the map's cells, its key block the map's cells (``self``) or text (``cross``); a key block
            that is named is a part of the call. Joint attention has cells and text in both (or cells alone as queries).
        queries: Number of queries in the call.
        keys: Number of keys in the call.
        tokens: Length of the text states, where known.
    """
    if site.kind == "joint":
        if tokens is None:
            return keys >= queries >= site.cells and keys > site.cells
        return keys == site.cells + tokens and queries in (site.cells, keys)
    rows, columns = resolve(site.queries, queries), resolve(site.keys, keys)
    if len(rows) != site.cells or (site.keys is not None and keys <= site.cells):
        return False
    if site.kind == "self":
        return len(columns) == site.cells
    return len(columns) > 0 if site.keys is not None else tokens in (None, keys)


def text_length(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Length of the text states ``batch tokens channels`` among the arguments of an attention module of diffusers."""
    states = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
    if isinstance(states, tuple) and states:  # image prompts follow the text
        states = states[0]
    return states.shape[1] if isinstance(states, Tensor) and states.ndim == 3 else None
