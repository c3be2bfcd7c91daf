"""Error messages for sites whose attention cannot be intercepted, with the remedy."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from attnguide.attention.sites import Site

_CURES = {
    r"^Sliced": "attention slicing is on: call pipeline.disable_attention_slicing()",
    r"XFormers": "xformers is on: call pipeline.disable_xformers_memory_efficient_attention()",
    r"^(Attn|CustomDiffusionAttn|AttnAddedKV|Flex)Processor$|FlexAttnProcessor$": (
        "set the library's default processor, such as pipeline.unet.set_attn_processor(AttnProcessor2_0())"
    ),
}
"""Remedies by class name (regex) of diffusers' processors that do not call ``scaled_dot_product_attention``."""


def check_readable(modules: Mapping[Site, nn.Module], sites: Iterable[Site]) -> None:
    """Refuse sites whose processor is known not to call ``scaled_dot_product_attention``, before any pass.

    Raises:
        ValueError: Naming the site, its processor or backend, and the remedy.
    """
    for site in sites:
        processor = getattr(modules.get(site), "processor", None)
        cure = None if processor is None else _cure(processor)
        if cure is not None:
            raise ValueError(
                f"Attention site {site.name!r} cannot be read or edited with the processor {type(processor).__name__}: {cure}."
            )


def _cure(processor: object) -> str | None:
    """Remedy for a processor whose attention cannot be read; ``None`` where it can, or where that is not known."""
    backend = attention_backend(processor)
    if backend is not None and "native" not in backend:
        return _other_backend(backend)
    return next((cure for name, cure in _CURES.items() if re.search(name, type(processor).__name__)), None)


def _other_backend(name: str) -> str:
    return (
        f"the attention backend {name!r} is active, which diffusers' set_attention_backend sets for every model of the "
        "process: call set_attention_backend('native') on this one, and leave DIFFUSERS_ATTN_BACKEND alone"
    )


def silent(site: Site, module: nn.Module, passed: Sequence[tuple[int, int]], tokens: int | None, hooks: Sequence[str]) -> str:
    """Error message for a site whose module ran without an attention call of the site's shape.

    Args:
        site: The site.
        module: The site's module.
        passed: Numbers of queries and keys of the attention calls that the module made.
        tokens: Length of the text states that the module was given, where known.
        hooks: Names of other libraries' hooks on the path to the module.
    """
    if passed:
        calls = ", ".join(f"{queries}x{keys}" for queries, keys in passed)
        text = "" if tokens is None else f" and a text of {tokens} tokens"
        return (
            f"Attention site {site.name!r} ({site.kind}) made attention calls over {calls} positions; none is that of a "
            f"{site.height}x{site.width} map{text}, so nothing can be read or edited there (does token merging change them?)."
        )
    processor = getattr(module, "processor", None)
    backend = attention_backend(processor)
    hint = "use the library's default processor (no attention slicing, no xformers)"
    hint = hint if backend is None else _other_backend(backend)
    return (
        f"Attention site {site.name!r} ran without calling scaled_dot_product_attention (its processor is "
        f"{type(processor).__name__}), so nothing can be read or edited there; {hint}{_named(hooks)}."
    )


def attention_backend(processor: object) -> str | None:
    """Attention backend that a processor of diffusers dispatches to; ``None`` where it does not dispatch.

    A processor without a backend of its own uses the process's active one, which is looked up if diffusers is loaded.
    """
    if not hasattr(processor, "_attention_backend"):
        return None
    registry = getattr(sys.modules.get("diffusers.models.attention_dispatch"), "_AttentionBackendRegistry", None)
    backend = processor._attention_backend or getattr(registry, "_active_backend", None)
    return str(getattr(backend, "value", backend))


def absent(missing: Sequence[Site], ran: int, hooks: Sequence[str]) -> str:
    """Error message for sites whose modules never ran in a pass in which ``ran`` other sites did."""
    names = repr(missing[0].name) + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    return (
        f"Attention site {names} did not run in a pass that reads or edits it ({ran} others did): a cache that skips blocks, "
        "or compiled code, keeps it from running; disable the cache (disable_cache()), and compile with module.compile()"
        f"{_named(hooks)}."
    )


def _named(hooks: Sequence[str]) -> str:
    return f" (hooks of other libraries here: {', '.join(hooks)})" if hooks else ""
