"""Gradients through weights that are elsewhere, or of another precision, by the time the backward pass needs them."""

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
"""Hooks of diffusers that put other numbers behind a parameter around every forward, but not around the backward pass."""


def exchanges_weights(network: nn.Module) -> bool:
    """Whether parameters of a network are moved or change their precision around its forwards.

    Autograd remembers a frozen parameter itself, behind which there are other numbers when a gradient is computed.
    """
    return bool(_EXCHANGING & set(foreign_hooks(dict(network.named_modules()))))


class OwnWeights(TorchFunctionMode):
    """Operations take what is behind parameters now, so that autograd remembers that and not the parameters."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in ("__get__", "__set__"):  # which exchange what is behind a parameter
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
    """A forward whose graph holds no exchanged weights: the backward pass brings each one back when it is needed.

    The weights must be frozen and not written to in between. Nothing changes for a network that exchanges none.
    """
    if not exchanges_weights(network):
        yield
        return
    with OwnWeights(), saved_tensors_hooks(_pack, _unpack):
        yield


def _pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
    """A tensor that autograd keeps, or, of a weight, how it is brought back."""
    owner = getattr(tensor._base if tensor._is_view() else tensor, "_attnguide_owner", None)
    if owner is None:
        return tensor
    shape, stride, start = tensor.shape, tensor.stride(), tensor.storage_offset()
    device, dtype = tensor.device, tensor.dtype
    return lambda: owner.data.to(device, dtype).as_strided(shape, stride, start)


def _unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept()
