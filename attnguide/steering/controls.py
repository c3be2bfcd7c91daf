"""ControlNets beside the network: their last call is remembered, and repeated on latents that guidance has moved."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attnguide.steering.calls import Call


class Controls:
    """The ControlNet (or multi-ControlNet) of a pipeline.

    Args:
        refreshes: Whether it is called again on moved latents.
    """

    def __init__(self, refreshes: bool) -> None:
        self._refreshes = refreshes
        self._forward: Callable[..., Any] | None = None
        self._arguments: dict[str, Any] = {}
        self._answer: Any = None

    @property
    def any(self) -> bool:
        """Whether a ControlNet was called and is to be called again on moved latents."""
        return self._refreshes and self._forward is not None

    def called(self, control: nn.Module, before: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Remember the arguments of a ControlNet call; ``before`` is its own ``forward``."""
        names = [name for name in inspect.signature(type(control).forward).parameters if name != "self"]
        self._forward, self._arguments = before, {**dict(zip(names, args, strict=False)), **kwargs}
        self._answer = None

    def refreshed(self, call: Call, inputs: Tensor) -> Call:
        """A copy of a network call with ControlNet residuals computed on moved latents.

        Args:
            call: The network call.
            inputs: Network input at the moved latents, ``rows channels height width``.
        """
        assert self._forward is not None
        form = call.form.control
        given = self._arguments[form.latents]
        elements = len(given)
        if self._answer is None:  # computed once per evaluation, also where each CFG half is a call
            latents = torch.cat([inputs] * (elements // call.rows))
            read = given if isinstance(given, Tensor) else torch.stack(given).squeeze(2)
            packed = call.packing.pack(latents.to(read.dtype), read)
            sample = packed if isinstance(given, Tensor) else list(packed.unsqueeze(2).unbind(0))
            self._answer = form.answer(self._forward(**{**self._arguments, form.latents: sample}))
        places = slice(0, call.batch) if elements == call.batch else call.block("cond")  # in guess mode only cond has residuals
        new = {
            name: _put(call.arguments[name], places, value) for name, value in zip(form.residuals, self._answer, strict=True)
        }
        return replace(call, arguments={**call.arguments, **new})


def _put(residual: Any, places: slice, new: Any) -> Any:
    """Nested residuals of a call with batch elements ``places`` replaced."""
    if isinstance(residual, Tensor):
        residual = residual.clone()
        residual[places] = new.to(residual)
        return residual
    if isinstance(residual, Mapping):
        return {key: _put(value, places, new[key]) for key, value in residual.items()}
    if residual is None:
        return None
    return tuple(_put(one, places, other) for one, other in zip(residual, new, strict=True))
