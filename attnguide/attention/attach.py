"""The only place that installs anything in a model, and always takes it out again.

The module's own forward and processor run; only the scaled-dot-product call inside is intercepted, module by module. Sites
without an active probe or edit in a pass keep the fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attnguide.attention.capture import EXPLICIT, Probe, Quantity
from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site, select
from attnguide.types import PassContext


class CaptureError(RuntimeError):
    """A site that was asked for did not show its attention."""


class _StopForward(Exception):
    """Everything the pass was for has been computed."""


@contextmanager
def _replaced_forward(module: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Wrap ``module.forward`` for a while; afterwards the instance is exactly as before."""
    had_own = "forward" in vars(module)
    before = module.forward
    module.forward = wrap(before)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if had_own:
            module.forward = before  # type: ignore[method-assign]
        else:
            del module.forward


@contextmanager
def stop_after(modules: Collection[nn.Module]) -> Iterator[None]:
    """Leave the enclosed forward pass as soon as every one of ``modules`` has run; what comes later is never computed.

    The statement that runs the model is abandoned, so its result is not assigned.
    """
    pending = {id(module) for module in modules}
    if not pending:
        raise ValueError("stop_after needs at least one module; got none.")

    def wrap(module: nn.Module) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrapper(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                result = forward(*args, **kwargs)
                pending.discard(id(module))
                if not pending:
                    raise _StopForward
                return result

            return run

        return wrapper

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_replaced_forward(module, wrap(module)))
        try:
            yield
        except _StopForward:
            pass


class _Interception(TorchFunctionMode):
    """Hands the first scaled-dot-product call of one module's forward to ``attend``.

    Later ones (the image prompts of an adapter) run untouched.
    """

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        if self.calls > 1:
            return func(*args, **(kwargs or {}))
        return self.attend(*args, **(kwargs or {}))


def _wide(tensor: Tensor) -> Tensor:
    """Half precision to float32, so that softmax and losses keep their digits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class Attention:
    """What :func:`attach` yields: probes and edits in place, waiting for a pass.

    Passes outside :meth:`during` run untouched.
    """

    def __init__(self, modules: Mapping[Site, nn.Module], probes: Sequence[Probe], edits: Sequence[Edit]) -> None:
        self._modules = modules
        self._probes = {site: [p for p in probes if p.sites.matches(site)] for site in modules}
        self._edits = {site: [e for e in edits if e.sites.matches(site)] for site in modules}
        self._context: PassContext | None = None

    @contextmanager
    def during(self, context: PassContext) -> Iterator[None]:
        """Say what the enclosed forward pass is for; probes and edits act inside."""
        before, self._context = self._context, context
        try:
            yield
        finally:
            self._context = before

    def _wrapper(self, site: Site) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                context = self._context
                if context is None:
                    return forward(*args, **kwargs)
                probes = [probe for probe in self._probes[site] if context.kind in probe.kinds]
                edits = [edit for edit in self._edits[site] if edit.active(context)]
                if not probes and not edits:
                    return forward(*args, **kwargs)

                visitors = _Visitors(site, context, probes, edits)
                if site.kind == "feature":
                    return visitors.given_out(forward(*args, **kwargs))

                def attend(*a: Any, **k: Any) -> Tensor:
                    return _attend(visitors, *a, **k)

                with _Interception(attend) as interception:
                    result = forward(*args, **kwargs)
                if not interception.calls:
                    raise CaptureError(self._silent(site))
                return result

            return run

        return wrap

    def _silent(self, site: Site) -> str:
        processor = type(getattr(self._modules[site], "processor", None)).__name__
        return (
            f"Attention site {site.name!r} ran without calling scaled_dot_product_attention (its processor is {processor}), so "
            "nothing can be read or edited there; use the library's default processor (no attention slicing, no xformers)."
        )


@dataclass(frozen=True, eq=False)
class _Visitors:
    """Who reads and changes one site in one pass."""

    site: Site
    context: PassContext
    probes: Sequence[Probe]
    edits: Sequence[Edit]

    def read(self, quantity: Quantity, tensor: Tensor) -> None:
        for probe in self.probes:
            if probe.quantity == quantity:
                probe.record(self.site, tensor, self.context)

    def editing(self, stage: Stage) -> list[Edit]:
        return [edit for edit in self.edits if stage in edit.stages]

    def given_out(self, output: Tensor) -> Tensor:
        """What a site gives out, changed and read."""
        for edit in self.editing("output"):
            output = edit.output(output, self.site, self.context)
        self.read("output", output)
        return output


def _attend(
    visitors: _Visitors,
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
    explicit = edited or any(probe.quantity in EXPLICIT for probe in visitors.probes)
    probs = _explicit_probs(visitors, query, key, attn_mask, scale) if explicit else None
    if probs is not None and (edited or torch.is_grad_enabled()):
        output = probs.to(value.dtype) @ value
    else:  # reading alone must not change a bit of the picture
        output = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, scale=scale)
    return visitors.given_out(output)


def _explicit_probs(visitors: _Visitors, query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float | None) -> Tensor:
    """Scores, softmax, and what edits make of both: ``batch heads query key``."""
    site, context = visitors.site, visitors.context
    scores = (_wide(query) @ _wide(key).transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scale is None else scale)
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


@contextmanager
def attach(modules: Mapping[Site, nn.Module], probes: Sequence[Probe] = (), edits: Sequence[Edit] = ()) -> Iterator[Attention]:
    """Install probes and edits, and take them out again whatever happens inside.

    Args:
        modules: The network's attention modules by site.
        probes: Readers.
        edits: Changes, applied in the order given.

    Raises:
        ValueError: If a probe or an edit matches no site.
        CaptureError: During a pass, if a site runs without the call that is intercepted.
    """
    for selector in [probe.sites for probe in probes] + [edit.sites for edit in edits]:
        select(modules, selector)
    attention = Attention(modules, probes, edits)
    with ExitStack() as stack:
        for site, module in modules.items():
            if attention._probes[site] or attention._edits[site]:
                stack.enter_context(_replaced_forward(module, attention._wrapper(site)))
        yield attention
