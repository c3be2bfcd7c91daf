"""Steer text-to-image diffusion models through their attention maps, and measure it.

Importing this does no work: each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES: dict[str, str] = {
    # one call
    "sample": "attnguide.api",
    # nouns
    "Region": "attnguide.types",
    "MapSource": "attnguide.types",
    "MethodConfig": "attnguide.types",
    "Sample": "attnguide.types",
    "SampleResult": "attnguide.types",
    "Step": "attnguide.types",
    # models and rows
    "load_model": "attnguide.models.load",
    "adapt": "attnguide.models.load",
    "read_samples": "attnguide.tables",
    # the engine, in plain torch
    "METHODS": "attnguide.methods",
    "Sampler": "attnguide.sampling.sampler",
    "Observer": "attnguide.sampling.observer",
    "sample_rows": "attnguide.sampling.table",
    # methods of one's own
    "Guidance": "attnguide.guidance.base",
    "LossOutput": "attnguide.guidance.base",
    "Update": "attnguide.guidance.update",
    "Injection": "attnguide.injection.base",
    "Edit": "attnguide.attention.edits",
    "SiteSelector": "attnguide.attention.sites",
    "Window": "attnguide.schedules",
    # under Lightning
    "GuidanceModule": "attnguide.module",
    "SampleDataModule": "attnguide.data",
    "make_trainer": "attnguide.module",
    "standard_callbacks": "attnguide.callbacks",
}
"""Public name -> module."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attnguide' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
