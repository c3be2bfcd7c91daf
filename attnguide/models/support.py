"""Checks that a diffusers pipeline is supported: whatever would be dropped or misread is refused by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import diffusers
from diffusers import AutoencoderKL, AutoencoderTiny

from attnguide.models.compiled import plain_module
from attnguide.models.fitting import channel_problems, class_problems, width_problems
from attnguide.models.folder import UnsupportedModelError
from attnguide.models.names import FAMILIES, no_adapter

if TYPE_CHECKING:
    from attnguide.models.base import ModelAdapter

_DECODERS = (AutoencoderKL, AutoencoderTiny)


def adapter_class(pipeline: str) -> type[ModelAdapter]:
    """The adapter of a supported pipeline, by the name of its class."""
    module, _, name = FAMILIES[pipeline].adapter.partition(":")
    found: type[ModelAdapter] = getattr(importlib.import_module(f"attnguide.models.{module}"), name)
    return found


def check_pipeline(pipeline: Any) -> None:
    """Refuse a pipeline that this package would run differently from diffusers.

    Raises:
        UnsupportedModelError: Naming the pipeline's class or part, and what would work.
    """
    name = type(pipeline).__name__
    # An older diffusers lacks some of these classes; what a derived class adds would be dropped.
    if name not in FAMILIES or type(pipeline) is not getattr(diffusers, name, None):
        raise UnsupportedModelError(f"{no_adapter(name)}{_way(pipeline)}")
    check_parts(pipeline)


def check_parts(pipeline: Any) -> None:
    """Refuse a pipeline with parts that are missing, unsupported, or do not fit each other.

    Raises:
        UnsupportedModelError: Naming the part.
    """
    problem = next(_problems(pipeline, type(pipeline).__name__), None)
    if problem is not None:
        raise UnsupportedModelError(problem)


def _way(pipeline: Any) -> str:
    """Advice on plain text-to-image with the parts of an unsupported pipeline; empty where no supported pipeline fits."""
    kinds = (kind for kind in reversed(FAMILIES) if kind != "LatentConsistencyModelPipeline" and hasattr(diffusers, kind))
    found = next((kind for kind in kinds if next(_problems(pipeline, kind), None) is None), None)
    if found is None:
        return ""
    return (
        f" What {type(pipeline).__name__} adds would be dropped; for plain text-to-image with its parts, hand over "
        f"{found}.from_pipe(pipeline, torch_dtype=pipeline.dtype)."
    )


def _problems(pipeline: Any, kind: str) -> Iterator[str]:
    """Problems of a pipeline checked as class ``kind``; each check assumes that the earlier ones passed."""
    family = FAMILIES[kind]
    missing = [part for part in family.parts if getattr(pipeline, part, None) is None]
    if missing:
        yield f"{type(pipeline).__name__} lacks its {' and '.join(missing)}."
    there = [part for part in (*family.parts, *family.optional) if getattr(pipeline, part, None) is not None]
    yield from _weight_problems(pipeline, there)
    yield from _cache_problems(pipeline, there)
    adapter = adapter_class(kind)
    if "transformer" in family.parts:
        network = type(plain_module(pipeline.transformer)).__name__
        if network not in adapter.kinds:
            yield f"transformer must be a {' or '.join(adapter.kinds)}; got {network}."
    yield from class_problems(pipeline, kind)
    yield from adapter.problems(pipeline)
    yield from width_problems(pipeline, family.parts[0], adapter.reads)
    if "transformer" in family.parts:
        yield from channel_problems(pipeline, adapter.packs)


def _weight_problems(pipeline: Any, parts: Iterable[str]) -> Iterator[str]:
    """Problems of weights on the device ``meta``, which hold nothing unless accelerate's hooks load them on demand."""
    for part in parts:
        network = plain_module(getattr(pipeline, part))
        modules = list(network.modules()) if hasattr(network, "modules") else []
        empty = any(weight.is_meta for module in modules for weight in module.parameters(recurse=False))
        if empty and not any(hasattr(module, "_hf_hook") for module in modules):
            yield f"{part} has weights on the device 'meta', which holds none: load them first."


def _cache_problems(pipeline: Any, parts: Iterable[str]) -> Iterator[str]:
    """Problems of active caches, which would reuse activations across guided and plain passes."""
    for part in parts:
        if getattr(plain_module(getattr(pipeline, part)), "is_cache_enabled", False):
            yield f"{part} has an active cache of diffusers, which skips attention. Call pipeline.{part}.disable_cache() first."


def decoder_problems(vae: Any) -> Iterator[str]:
    """Problem where the autoencoder's class is not one whose latents this package can scale."""
    if type(vae) not in _DECODERS:
        yield f"vae must be {' or '.join(kind.__name__ for kind in _DECODERS)}; got {type(vae).__name__}."


def text_problems(tokenizer: Any, encoder: Any) -> Iterator[str]:
    """Problems where a tokenizer's vocabulary or length does not fit its text encoder."""
    words = encoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > words:
        yield f"tokenizer has {len(tokenizer)} tokens, but the text encoder knows {words}."
    if tokenizer.eos_token_id is None or len(tokenizer) < 2:
        yield "tokenizer has no vocabulary with an end token; its files are missing or empty."
    reads = getattr(encoder.config, "max_position_embeddings", None)
    if reads is not None and tokenizer.model_max_length > reads:
        yield (
            f"tokenizer's model_max_length must be at most {reads}, which the text encoder reads; got "
            f"{tokenizer.model_max_length:.6g}."
        )
