"""ControlNets beside the network: what they were last called with, and called again on latents that guidance has moved."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attnguide.steering.calls import Call

_RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")


class Controls:
    """The ControlNet of a pipeline, which may be several as one.

    Args:
        refreshes: Whether it shall see moved latents.
    """

    def __init__(self, refreshes: bool) -> None:
        self._refreshes = refreshes
        self._forward: Callable[..., Any] | None = None
        self._arguments: dict[str, Any] = {}

    @property
    def any(self) -> bool:
        """Whether one was called that shall be called again."""
        return self._refreshes and self._forward is not None

    def called(self, control: nn.Module, before: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Remember a call of the ControlNet's own ``before``."""
        names = [name for name in inspect.signature(type(control).forward).parameters if name != "self"]
        self._forward, self._arguments = before, {**dict(zip(names, args, strict=False)), **kwargs}

    def refreshed(self, call: Call, inputs: Tensor) -> Call:
        """A call of the network with the residuals of latents that were moved.

        Args:
            call: Of the network.
            inputs: Moved latents as the network reads them, ``rows channels height width``.
        """
        assert self._forward is not None
        elements = len(self._arguments["sample"])
        sample = torch.cat([inputs] * (elements // call.rows)).to(self._arguments["sample"].dtype)
        down, mid = self._forward(**{**self._arguments, "sample": sample})[:2]
        places = slice(0, call.batch) if elements == call.batch else call.block("cond")  # guess mode has the one half alone
        old = (call.arguments[_RESIDUALS[0]], call.arguments[_RESIDUALS[1]])
        new = tuple(_put(one, places, other) for one, other in zip(old[0], down, strict=True)), _put(old[1], places, mid)
        return replace(call, arguments={**call.arguments, **dict(zip(_RESIDUALS, new, strict=True))})


def _put(residual: Tensor, places: slice, new: Tensor) -> Tensor:
    residual = residual.clone()
    residual[places] = new.to(residual)
    return residual
