"""Gradient checkpointing whose recomputation runs with the probes and edits of the first pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from attnguide.attention.parts import current_part, part_of_pass
from attnguide.attention.weights import OwnWeights, exchanges_weights

Reenter = Callable[[nn.Module | None], AbstractContextManager[None]]
"""From the recomputed module (``None`` for a plain function) to the context manager around its recomputation."""


@contextmanager
def checkpointing(network: nn.Module | None, reenter: Reenter) -> Iterator[None]:
    """Enter ``reenter`` around every recomputation of blocks that diffusers checkpoints, in the backward pass.

    A no-op where gradient checkpointing is off, or no gradients are computed.

    Args:
        network: Network with the blocks; a no-op when ``None``.
        reenter: Called for each recomputation, in the thread of the backward pass.
    """
    on = torch.is_grad_enabled() and network is not None
    modules = [module for module in network.modules() if _checkpointed(module)] if on and network is not None else []
    with ExitStack() as stack:
        exchanging = bool(modules) and network is not None and exchanges_weights(network)
        for module in modules:
            stack.enter_context(_replaced(module, reenter, exchanging))
        yield


def _checkpointed(module: nn.Module) -> bool:
    return getattr(module, "gradient_checkpointing", False) and hasattr(module, "_gradient_checkpointing_func")


@contextmanager
def _replaced(module: nn.Module, reenter: Reenter, exchanging: bool) -> Iterator[None]:
    own, thread = module._gradient_checkpointing_func, threading.get_ident()

    def run(function: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return own(function, *args, **kwargs)  # type: ignore[operator]
        part = function if isinstance(function, nn.Module) else None
        elements = current_part()
        contexts = nullcontext(), _Reentry(lambda: _again(reenter, part, elements))
        computed = _with_own_weights(function) if exchanging else function
        return checkpoint(computed, *args, use_reentrant=False, context_fn=lambda: contexts, **kwargs)

    module._gradient_checkpointing_func = run  # type: ignore[assignment]
    try:
        yield
    finally:
        module._gradient_checkpointing_func = own


@contextmanager
def _again(reenter: Reenter, part: nn.Module | None, elements: tuple[int, ...] | None) -> Iterator[None]:
    with part_of_pass(elements), reenter(part):
        yield


def _with_own_weights(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that autograd saves the current values of its weights, also in a thread that recomputes it."""

    def computed(*args: Any, **kwargs: Any) -> Any:
        with OwnWeights():
            return function(*args, **kwargs)

    return computed


class _Reentry(AbstractContextManager[None]):
    """A context that may be entered once for every backward pass through a graph."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self.make = make
        self.entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self.entered.append(self.make())
        self.entered[-1].__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self.entered.pop().__exit__(*error)
