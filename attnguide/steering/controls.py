"""ControlNets beside the network: what they were last called with, and called again on latents that guidance has moved."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attnguide.steering.calls import Call


class Controls:
    """The ControlNet of a pipeline, which may be several as one.

    Args:
        refreshes: Whether it shall see moved latents.
    """

    def __init__(self, refreshes: bool) -> None:
        self._refreshes = refreshes
        self._forward: Callable[..., Any] | None = None
        self._arguments: dict[str, Any] = {}
        self._answer: Any = None

    @property
    def any(self) -> bool:
        """Whether one was called that shall be called again."""
        return self._refreshes and self._forward is not None

    def called(self, control: nn.Module, before: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Remember a call of the ControlNet's own ``before``."""
        names = [name for name in inspect.signature(type(control).forward).parameters if name != "self"]
        self._forward, self._arguments = before, {**dict(zip(names, args, strict=False)), **kwargs}
        self._answer = None

    def refreshed(self, call: Call, inputs: Tensor) -> Call:
        """A call of the network with the residuals of latents that were moved.

        Args:
            call: Of the network.
            inputs: Moved latents as the network reads them, ``rows channels height width``.
        """
        assert self._forward is not None
        form = call.form.control
        given = self._arguments[form.latents]
        elements = len(given)
        if self._answer is None:  # halves of an evaluation that are calls of their own share what it gave
            latents = torch.cat([inputs] * (elements // call.rows))
            read = given if isinstance(given, Tensor) else torch.stack(given).squeeze(2)
            packed = call.packing.pack(latents.to(read.dtype), read)
            sample = packed if isinstance(given, Tensor) else list(packed.unsqueeze(2).unbind(0))
            self._answer = form.answer(self._forward(**{**self._arguments, form.latents: sample}))
        places = slice(0, call.batch) if elements == call.batch else call.block("cond")  # guess mode has the one half alone
        new = {
            name: _put(call.arguments[name], places, value) for name, value in zip(form.residuals, self._answer, strict=True)
        }
        return replace(call, arguments={**call.arguments, **new})


def _put(residual: Any, places: slice, new: Any) -> Any:
    """Residuals of a call, tensors in lists and mappings, with others at some elements of its batch."""
    if isinstance(residual, Tensor):
        residual = residual.clone()
        residual[places] = new.to(residual)
        return residual
    if isinstance(residual, Mapping):
        return {key: _put(value, places, new[key]) for key, value in residual.items()}
    if residual is None:
        return None
    return tuple(_put(one, places, other) for one, other in zip(residual, new, strict=True))
