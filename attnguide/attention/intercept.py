"""The scaled-dot-product call inside an attention module, with readers and changes in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attnguide.attention.capture import EXPLICIT, Probe, Quantity
from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site
from attnguide.types import PassContext


class CaptureError(RuntimeError):
    """A site that was asked for did not show its attention."""


@dataclass(frozen=True, eq=False)
class Visitors:
    """Who reads and changes one site in one pass."""

    site: Site
    context: PassContext
    probes: Sequence[Probe]
    edits: Sequence[Edit]

    def read(self, quantity: Quantity, tensor: Tensor) -> None:
        """Show a tensor to the probes of its kind."""
        for probe in self.probes:
            if probe.quantity == quantity:
                probe.record(self.site, tensor, self.context)

    def editing(self, stage: Stage) -> list[Edit]:
        """The edits that act at a stage."""
        return [edit for edit in self.edits if stage in edit.stages]

    def touched(self) -> list[int] | None:
        """Positions in the batch whose scores or probs are changed; all of them when ``None``."""
        found = [edit.touches(self.context) for edit in self.edits if edit.stages & {"scores", "probs"}]
        positions = {position for part in found if part is not None for position in part}
        return None if None in found or len(positions) == len(self.context.rows) else sorted(positions)

    def at(self, positions: Sequence[int]) -> Visitors:
        """The edits of a part of the batch, and nobody who reads."""
        rows = tuple(self.context.rows[position] for position in positions)
        branches = tuple(self.context.branches[position] for position in positions)
        return replace(self, context=replace(self.context, rows=rows, branches=branches), probes=())

    def given_out(self, output: Tensor) -> Tensor:
        """What a site gives out, changed and read."""
        for edit in self.editing("output"):
            output = edit.output(output, self.site, self.context)
        self.read("output", output)
        return output


class Interception(TorchFunctionMode):
    """Hands one scaled-dot-product call of a module's forward to the visitors: the first whose shape is the site's.

    Other calls (text among itself, the image prompts of an adapter) run untouched.

    Args:
        visitors: Of the site.
        tokens: Positions of the text that the module was given; ``None`` where that is not known.
    """

    def __init__(self, visitors: Visitors, tokens: int | None) -> None:
        super().__init__()
        self.visitors, self.tokens = visitors, tokens
        self.served = False
        self.passed: list[tuple[int, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not self.served:
            shape = _lengths(*args, **kwargs)
            if fits(self.visitors.site, *shape, self.tokens):
                self.served = True
                return attend(self.visitors, *args, **kwargs)
            self.passed.append(shape)
        return func(*args, **kwargs)


def _lengths(query: Tensor, key: Tensor, *others: Any, **options: Any) -> tuple[int, int]:
    return query.shape[-2], key.shape[-2]


def fits(site: Site, queries: int, keys: int, tokens: int | None) -> bool:
    """Whether a call over so many queries and keys is the one that a site stands for.

    Args:
        site: Cross-attention has the map's cells as queries, self-attention also as keys, joint attention has cells and text
            in both (or cells alone as queries).
        queries: Of the call.
        keys: Of the call.
        tokens: Positions of the text, where known.
    """
    cells = site.height * site.width
    if site.kind == "self":
        return queries == keys == cells
    if site.kind == "cross":
        return queries == cells and tokens in (None, keys)
    if tokens is None:
        return keys >= queries >= cells and keys > cells
    return keys == cells + tokens and queries in (cells, keys)


def text_length(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Positions of the text among what an attention module of diffusers was given, ``batch tokens channels``."""
    states = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
    if isinstance(states, tuple) and states:  # image prompts follow the text
        states = states[0]
    return states.shape[1] if isinstance(states, Tensor) and states.ndim == 3 else None


def _wide(tensor: Tensor) -> Tensor:
    """Half precision to float32, so that softmax and losses keep their digits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def attend(
    visitors: Visitors,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention with readers and changes in between; fused where nobody needs scores or probs.

    Shapes: query ``batch heads query head_dim``, key and value ``batch heads key head_dim``.

    Raises:
        CaptureError: If the attention is causal or grouped.
    """
    site = visitors.site
    if is_causal or enable_gqa:
        raise CaptureError(
            f"Attention site {site.name!r} uses causal or grouped attention, which cannot be read or edited here."
        )

    context = visitors.context
    visitors.read("query", query)
    visitors.read("key", key)
    visitors.read("value", value)
    for edit in visitors.editing("qkv"):
        query, key, value = edit.qkv(query, key, value, site, context)
    edited = bool(visitors.editing("scores") or visitors.editing("probs"))
    read = any(probe.quantity in EXPLICIT for probe in visitors.probes)

    def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, scale=scale)

    part = visitors.touched() if edited and not read and attn_mask is None else None
    if part is not None:
        output = _in_part(visitors.at(part), part, query, key, value, scale, fused)
    elif edited or (read and torch.is_grad_enabled()):
        output = _explicit(visitors, query, key, value, attn_mask, scale)
    else:  # reading alone must not change a bit of the picture
        if read:
            _explicit(visitors, query, key, None, attn_mask, scale)
        output = fused(query, key, value)
    return visitors.given_out(output)


def _in_part(
    visitors: Visitors,
    part: list[int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    fused: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Explicit attention in a part of the batch, and fused attention in the rest."""
    rest = sorted(set(range(len(query))) - set(part))
    batch, heads, cells, _ = query.shape
    # The memory layout in which the module goes on: cells before heads.
    output = value.new_empty(batch, cells, heads, value.shape[-1], dtype=_fused_dtype(value)).transpose(1, 2)
    for positions in (part, rest):
        if positions:
            at = _run(positions)
            q, k, v = query[at], key[at], value[at]
            output[at] = _explicit(visitors, q, k, v, None, scale) if positions is part else fused(q, k, v)
    return output


def _run(positions: list[int]) -> slice | list[int]:
    """Positions without a gap as a slice, which copies nothing."""
    first, last = positions[0], positions[-1]
    return slice(first, last + 1) if last - first + 1 == len(positions) else positions


def _explicit(
    visitors: Visitors, query: Tensor, key: Tensor, value: Tensor | None, attn_mask: Tensor | None, scale: float | None
) -> Tensor:
    """Attention over probabilities that are formed, shown and edited; probabilities themselves where no value is given."""
    given_out = None if value is None else _fused_dtype(value)
    # Autocast would round the product of queries and keys, and what edits and records compute, to half precision.
    with _without_autocast(query.device.type):
        probs = _explicit_probs(visitors, query, key, attn_mask, scale)
        return probs if value is None else probs.to(given_out) @ value.to(given_out)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast off, on a device that has it (``meta`` has not)."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _fused_dtype(value: Tensor) -> torch.dtype:
    """Precision of what the fused call would give out: autocast lowers it, but for float64."""
    device = value.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and value.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return value.dtype


def _explicit_probs(visitors: Visitors, query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float | None) -> Tensor:
    """Scores, softmax, and what edits make of both: ``batch heads query key``."""
    site, context = visitors.site, visitors.context
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = _wide(query) @ (_wide(key) * scale).transpose(-1, -2)  # of both the keys are fewer
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    visitors.read("scores", scores)
    if any(probe.quantity == "original_probs" for probe in visitors.probes):
        visitors.read("original_probs", scores.softmax(-1))
    for edit in visitors.editing("scores"):
        scores = edit.scores(scores, site, context)
    probs = scores.softmax(-1)
    for edit in visitors.editing("probs"):
        probs = edit.probs(probs, site, context)
    visitors.read("probs", probs)
    return probs
