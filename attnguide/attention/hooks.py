"""Torch's forward hooks for the length of a ``with`` block, and compiled modules made eager meanwhile."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

_registering = threading.Lock()
"""Torch numbers the hooks of all modules with one counter that two threads may read at once."""


@contextmanager
def hooked(
    module: nn.Module, after: Callable[..., Any], before: Callable[..., None] | None = None, *, always: bool = False
) -> Iterator[None]:
    """Hooks on one module, taken out again whatever happened to its forward or to its other hooks in between.

    Args:
        module: Module to hook.
        after: Forward hook ``(module, args, result)``; among hooks with ``always`` the newest runs first.
        before: Forward pre-hook ``(module, args, kwargs)``.
        always: Call ``after`` with the result ``None`` where the forward raises.
    """
    with _registering:
        handles = [module.register_forward_hook(after, prepend=always, always_call=always)]
        if before is not None:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def eager(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Run modules that were compiled in place (``module.compile()``) eagerly.

    Compiled code calls no hooks of submodules. It is kept, and used again afterwards.
    """
    compiled = {module: module._compiled_call_impl for module in modules if _compiled(module)}
    if compiled:
        names = ", ".join(sorted({type(module).__name__ for module in compiled}))
        warnings.warn(
            f"{names} is compiled; passes in which attention is read or edited run without the compiled code.", stacklevel=2
        )
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


def _compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def path_modules(network: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The named modules and all their ancestors by path; the network itself is ``""``."""
    found: dict[str, nn.Module] = {"": network}
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            path = ".".join(parts[:length])
            if path not in found:
                found[path] = getattr(found[".".join(parts[: length - 1])], parts[length - 1])
    return found


def foreign_hooks(modules: Mapping[str, nn.Module]) -> list[str]:
    """Class names of hooks that diffusers (caches, offloading) and accelerate put on modules, each once."""
    found: list[str] = []
    for module in modules.values():
        registry = getattr(module, "_diffusers_hook", None)
        found += [type(hook).__name__ for hook in getattr(registry, "hooks", {}).values()]
        if getattr(module, "_hf_hook", None) is not None:
            found.append(type(module._hf_hook).__name__)
    return list(dict.fromkeys(found))
