"""Gradients through offloaded or cast weights, whose values have changed by the time of the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from attnguide.attention.hooks import foreign_hooks

_EXCHANGING = frozenset({"GroupOffloadingHook", "LazyPrefetchGroupOffloadingHook", "LayerwiseCastingHook"})
"""Hooks of diffusers that swap a parameter's data around every forward, but not around the backward pass."""


def exchanges_weights(network: nn.Module) -> bool:
    """Whether hooks move a network's parameters or change their precision around its forwards.

    Autograd saves a frozen parameter by reference, and its data has been swapped by the time of the backward pass.
    """
    return bool(_EXCHANGING & set(foreign_hooks(dict(network.named_modules()))))


class OwnWeights(TorchFunctionMode):
    """Operations get parameters' current data, so that autograd saves that tensor instead of the parameter."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in ("__get__", "__set__"):  # attribute access, such as `.data =`
            args, kwargs = tree_map_only(nn.Parameter, _behind, (args, kwargs))
        return func(*args, **kwargs)


def _behind(parameter: nn.Parameter) -> Tensor:
    if parameter.requires_grad:
        return parameter
    found = parameter.detach()
    found._attnguide_owner = parameter  # type: ignore[attr-defined]
    return found


@contextmanager
def weights_on_demand(network: nn.Module) -> Iterator[None]:
    """Run a forward whose graph saves no swapped weights; the backward pass loads each one again when it needs it.

    The weights must be frozen and not written to in between. A no-op for a network without such hooks.
    """
    if not exchanges_weights(network):
        yield
        return
    with OwnWeights(), saved_tensors_hooks(_pack, _unpack):
        yield


def _pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
    """The tensor for autograd to save; for a weight, a function that loads it again."""
    owner = getattr(tensor._base if tensor._is_view() else tensor, "_attnguide_owner", None)
    if owner is None:
        return tensor
    shape, stride, start = tensor.shape, tensor.stride(), tensor.storage_offset()
    device, dtype = tensor.device, tensor.dtype
    return lambda: owner.data.to(device, dtype).as_strided(shape, stride, start)


def _unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept()
