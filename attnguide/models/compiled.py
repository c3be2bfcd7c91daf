"""Networks that ``torch.compile`` wrapped."""

from __future__ import annotations

from typing import Any


def plain_module(module: Any) -> Any:
    """The network behind ``torch.compile``'s wrapper, or the network itself."""
    return getattr(module, "_orig_mod", module)
