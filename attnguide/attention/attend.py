"""One scaled-dot-product call with probes and edits; fused wherever nobody needs ``batch heads query key`` scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from attnguide.attention.blocks import Block
from attnguide.attention.call import Call, View, fused_dtype, run_of, without_autocast
from attnguide.attention.columns import (
    attention_and_logsumexp,
    column_probs,
    fused_with_sums,
    mask_part,
    masked_scores,
    row_logsumexp,
    with_columns,
)
from attnguide.attention.visitors import CaptureError, Visitors

Checked = dict[int, tuple[Tensor, Tensor | None]]
"""Masks found to leave every query a key, by id: the mask, and the call's own mask that it was combined with."""


def attend(
    served: Sequence[Visitors],
    checked: Checked,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention output of one call, with the probes and edits of the sites that the call belongs to.

    Shapes: query ``batch heads query head_dim``, key and value ``batch heads key head_dim``. ``checked`` holds the masks that
    were checked before in this pass; all other arguments are those of ``scaled_dot_product_attention``.

    Raises:
        CaptureError: If the attention is causal or grouped.
        ValueError: If masks of edits leave a query without any key.
    """
    if is_causal or enable_gqa:
        raise CaptureError(
            f"Attention site {served[0].site.name!r} uses causal or grouped attention, which cannot be read or edited here."
        )
    shape = query.shape[-2], key.shape[-2]
    views = [View(visitors, Block.of(visitors.site, *shape, visitors.columns)) for visitors in served]
    query, key, value = _inputs(views, query, key, value)
    bare = Call(query, key, value, attn_mask, dropout_p, scale)
    output = _with_gains(views, replace(bare, mask=_mask(views, checked, bare)))
    return _given_out(views, _blended(views, checked, bare, output))


def _with_gains(views: Sequence[View], call: Call) -> Tensor:
    """Attention output with ``gain`` edits: a block's scores are scaled by scaling its keys, for its queries alone."""
    explicit = [view for view in views if view.explicit]
    key, rows = call.key, None
    for view in views:
        for edit in view.visitors.editing("gain"):
            factor = edit.gain(view.visitors.site, view.visitors.context, key.device)
            if factor is None:
                continue
            block = view.block_of(edit)
            if rows not in (None, block.rows):
                raise ValueError(
                    f"{type(edit).__name__} multiplies scores of other queries than an edit before it, in one call."
                )
            rows, key = block.rows, block.put_keys(key, block.take_keys(key) * factor.to(key.dtype))
    if rows is None:
        return _output(explicit, call)
    louder = replace(call, key=key)
    inside = _output(explicit, louder)[:, :, rows.start : rows.stop] if explicit else louder.fused(rows)
    return _beside(rows, inside, call)


def _blended(views: Sequence[View], checked: Checked, bare: Call, output: Tensor) -> Tensor:
    """Attention output after ``blend`` edits: a weighted mean with a second attention under another mask.

    Args:
        views: The sites' visitors.
        checked: Masks already found to leave every query a key.
        bare: The call with the library's own mask.
        output: Attention output before blending, ``batch heads query head_dim``.
    """
    for view in views:
        for edit in view.visitors.editing("blend"):
            block, site = view.block_of(edit), view.visitors.site
            found = edit.blend(site, *block.size, view.visitors.context, output.device)
            if found is None:
                continue
            share, allowed = found
            mask = _combined(bare, block, allowed)
            _check_mask(type(edit).__name__, mask, bare.mask, checked)
            second, first = block.take_rows(replace(bare, mask=mask).fused()), block.take_rows(output)
            output = block.put_rows(output, torch.lerp(first, second, share.to(first)))
    return output


def _output(views: Sequence[View], call: Call) -> Tensor:
    """Attention output, with explicit probs only where probes or edits need them."""
    if not views:
        return call.fused()
    in_columns = len(views) == 1 and views[0].in_columns
    form = _in_columns if in_columns else _in_squares
    touched = set().union(*(view.visitors.touched() for view in views))
    part = sorted(touched) if len(touched) < len(call.query) else None
    edited = any(view.visitors.edits_probs for view in views)
    read = any(view.visitors.reads_probs for view in views)
    if edited and not read and part is not None:
        return _in_part(views, part, call, form)
    # Reading alone must not change a bit of the picture, so the output stays fused unless probs are needed with a graph.
    if edited or (read and torch.is_grad_enabled() and not in_columns):
        return form(views, call)
    if read and in_columns and torch.is_grad_enabled() and (found := _with_columns_read(views[0], call)) is not None:
        return found
    _reading(views, call, form)
    return call.fused()


def _reading(views: Sequence[View], call: Call, form: Callable[..., Tensor]) -> None:
    if form is _in_columns:
        with without_autocast(call.query.device.type):
            _read_columns(views[0], call)
    else:
        _square_probs(views, call, _hull(views))


def _inputs(views: Sequence[View], query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value after probes have read them and ``qkv`` edits changed them, block by block."""
    for view in views:
        view.visitors.read("query", view.block.take_rows(query))
        for quantity, tensor in (("key", key), ("value", value)):
            if view.visitors.reads(quantity):  # type: ignore[arg-type]
                view.visitors.read(quantity, view.block.take_keys(tensor))  # type: ignore[arg-type]
    for view in views:
        block, visitors = view.block, view.visitors
        for edit in visitors.editing("qkv"):
            parts = block.take_rows(query), block.take_keys(key), block.take_keys(value)
            changed = edit.qkv(*parts, visitors.site, visitors.context)
            query = query if changed[0] is parts[0] else block.put_rows(query, changed[0])
            key = key if changed[1] is parts[1] else block.put_keys(key, changed[1])
            value = value if changed[2] is parts[2] else block.put_keys(value, changed[2])
    return query, key, value


def _mask(views: Sequence[View], checked: Checked, call: Call) -> Tensor | None:
    """The call's own mask combined with the masks of ``mask`` edits."""
    own = call.mask
    for view in views:
        for edit in view.visitors.editing("mask"):
            block = view.block_of(edit)
            allowed = edit.mask(view.visitors.site, *block.size, view.visitors.context, call.query.device)
            if allowed is not None:
                call = replace(call, mask=_combined(call, block, allowed))
                _check_mask(type(edit).__name__, call.mask, own, checked)
    return call.mask


def _combined(call: Call, block: Block, allowed: Tensor) -> Tensor:
    """A call's mask combined with a block's mask ``allowed`` (bool, ``batch 1 queries keys``)."""
    if not block.whole:
        part = allowed.expand(allowed.shape[0], 1, *block.size)
        allowed = block.put(part.new_ones(len(part), 1, *block.shape), part)
    if call.mask is None:
        return allowed
    return call.mask & allowed if call.mask.dtype == torch.bool else torch.where(allowed, call.mask, float("-inf"))


def _check_mask(edit: str, mask: Tensor | None, own: Tensor | None, checked: Checked) -> None:
    """Refuse a mask that leaves a query without any key, unless the call's own mask does so already.

    Raises:
        ValueError: Naming the edit.
    """
    if mask is None or (id(mask) in checked and checked[id(mask)][1] is own):
        return
    open_ = mask if mask.dtype == torch.bool else ~mask.isneginf()
    blind = ~open_.any(-1)
    if own is not None:
        blind = blind & (own if own.dtype == torch.bool else ~own.isneginf()).any(-1)
    if bool(blind.any()):
        raise ValueError(f"{edit} forbids every key to {int(blind.sum())} queries of an attention call; each needs one.")
    checked[id(mask)] = mask, own


def _given_out(views: Sequence[View], output: Tensor) -> Tensor:
    """Attention output after ``output`` edits, block by block, and then shown to the probes."""
    for view in views:
        block, visitors = view.block, view.visitors
        for edit in visitors.editing("output"):
            part = block.take_rows(output)
            changed = edit.output(part, visitors.site, visitors.context)
            output = output if changed is part else block.put_rows(output, changed)
    for view in views:
        view.visitors.read("output", view.block.take_rows(output))
    return output


def _in_part(views: Sequence[View], part: list[int], call: Call, form: Callable[..., Tensor]) -> Tensor:
    """Attention output, explicit at the batch positions ``part`` and fused at all others."""
    query, value = call.query, call.value
    rest = sorted(set(range(len(query))) - set(part))
    batch, heads, cells, _ = query.shape
    # Memory layout `batch cells heads channels`, which the module flattens without a copy.
    output = value.new_empty(batch, cells, heads, value.shape[-1], dtype=fused_dtype(value)).transpose(1, 2)
    for positions in (part, rest):
        if positions:
            own = call.at(positions)
            output[run_of(positions)] = form([view.at(part) for view in views], own) if positions is part else own.fused()
    return output


def _beside(rows: range, output: Tensor, call: Call) -> Tensor:
    """``output`` of the queries ``rows``, completed by the fused kernel's output of all other queries."""
    parts = [output]
    if rows.start > 0:
        parts.insert(0, call.fused(range(rows.start)))
    if rows.stop < call.query.shape[2]:
        parts.append(call.fused(range(rows.stop, call.query.shape[2])))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


# ------------------------------------------------------------------------------------------------------- columns


def _in_columns(views: Sequence[View], call: Call) -> Tensor:
    """Attention output with edited columns; ``batch heads query key`` is never formed."""
    view = views[0]
    block, visitors, rows = view.block, view.visitors, view.block.rows
    columns, others = block.index(call.query.device)
    lowered = fused_dtype(call.value)
    query = block.take_rows(call.query).to(lowered)
    key, value = (tensor.index_select(2, others).to(lowered) for tensor in (call.key, call.value))
    rest = attention_and_logsumexp(query, key, value, mask_part(call.mask, rows, others), call.factor)
    with without_autocast(query.device.type):
        scores = _column_scores(view, call)
        if visitors.reads("original_probs"):
            original = column_probs(scores, torch.logaddexp(rest[1], scores.logsumexp(-1)))
            visitors.read("original_probs", view.shown(original, 0.0))
        scores = block.cut(view.edited("scores", scores))
        total = torch.logaddexp(rest[1], scores.logsumexp(-1))
        probs = block.cut(view.edited("probs", block.padded(column_probs(scores, total))))
        visitors.read("probs", view.shown(block.padded(probs), 0.0))
        output = with_columns(rest[0], rest[1], total, probs, call.value.index_select(2, columns))
    return _beside(rows, output, call)


def _with_columns_read(view: View, call: Call) -> Tensor | None:
    """Fused attention output, whose kernel's logsumexp normalises the columns shown; ``None`` without such a kernel."""
    if not call.alike:
        return None
    found = fused_with_sums(call.query, call.key, call.value, mask_part(call.mask), call.factor)
    if found is None:
        return None
    output, total = found
    with without_autocast(call.query.device.type):
        _read_columns(view, call, total[:, :, view.block.rows.start : view.block.rows.stop])
    return output


def _read_columns(view: View, call: Call, total: Tensor | None = None) -> None:
    """Show scores and probabilities of the chosen columns, with their graph.

    Args:
        view: Site whose columns are shown.
        call: The attention call.
        total: Logsumexp of the block's rows, ``batch heads query``; computed when ``None``.
    """
    visitors = view.visitors
    scores = _column_scores(view, call)
    if total is None:
        rows = view.block.rows
        total = row_logsumexp(view.block.take_rows(call.query), call.key, mask_part(call.mask, rows), call.factor)
    for quantity in ("original_probs", "probs"):
        if visitors.reads(quantity):  # type: ignore[arg-type]
            visitors.read(quantity, view.shown(column_probs(scores, total), 0.0))  # type: ignore[arg-type]


def _column_scores(view: View, call: Call) -> Tensor:
    block = view.block
    columns = block.index(call.query.device)[0]
    mask = mask_part(call.mask, block.rows, columns)
    here = masked_scores(block.take_rows(call.query), call.key.index_select(2, columns), mask, call.factor)
    scores = block.padded(here, float("-inf"))
    if view.visitors.reads("scores"):
        view.visitors.read("scores", view.shown(scores, float("-inf")))
    return scores


# ------------------------------------------------------------------------------------------------------- squares


def _in_squares(views: Sequence[View], call: Call) -> Tensor:
    """Attention output from explicit probs of the queries that are read or edited, over all keys."""
    rows, dtype = _hull(views), fused_dtype(call.value)
    probs = _square_probs(views, call, rows)
    with without_autocast(call.query.device.type):
        output = probs.to(dtype) @ call.value.to(dtype)
    return _beside(rows, output, call)


def _hull(views: Sequence[View]) -> range:
    """The smallest range of queries that holds the queries of every block."""
    return range(min(view.block.rows.start for view in views), max(view.block.rows.stop for view in views))


def _square_probs(views: Sequence[View], call: Call, rows: range) -> Tensor:
    """Probs with edits of scores and probs, ``batch heads rows key``; probes are shown scores and probs on the way."""
    # Autocast would round the product of queries and keys, and the arithmetic of edits and probes, to half precision.
    with without_autocast(call.query.device.type):
        scores = masked_scores(call.query[:, :, rows.start : rows.stop], call.key, mask_part(call.mask, rows), call.factor)
        _show(views, "scores", scores, rows)
        if any(view.visitors.reads("original_probs") for view in views):
            _show(views, "original_probs", scores.softmax(-1), rows)
        probs = _edited(views, "probs", _edited(views, "scores", scores, rows).softmax(-1), rows)
        _show(views, "probs", probs, rows)
        return probs


def _show(views: Sequence[View], quantity: Any, square: Tensor, rows: range) -> None:
    for view in views:
        if view.visitors.reads(quantity):
            missing = float("-inf") if quantity == "scores" else 0.0
            view.visitors.read(quantity, view.shown(view.block.take(square, rows.start, missing), missing))


def _edited(views: Sequence[View], stage: Literal["scores", "probs"], square: Tensor, rows: range) -> Tensor:
    for view in views:
        if view.visitors.editing(stage):
            part = view.block.take(square, rows.start, float("-inf") if stage == "scores" else 0.0)
            changed = view.edited(stage, part)
            square = square if changed is part else view.block.put(square, changed, rows.start)
    return square
