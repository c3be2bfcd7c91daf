"""A run's configuration as a flat mapping, which loggers filter and compare runs by. Importing this needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attnguide.inputs import INPUTS
from attnguide.run_folder.made_with import MADE_WITH, versions
from attnguide.run_folder.records import AXIS, is_cell_column
from attnguide.types import Sample

Plain = str | int | float | bool

_OF_ROWS = (
    "rows",
    "samples",
    "methods",
    "regions",
    "groups",
    "seed",
    "prompt",
    "logger",
    "wandb",
    "trainer",
    "control",
    MADE_WITH,
)
"""Settings left out: those summarised over rows by :func:`_of_rows`, and those that do not decide the pictures."""

_COMMON = ("prompt", "negative_prompt", "steps", "cfg_scale", "scheduler", "height", "width", *INPUTS[:3])
"""Settings of rows that are logged if all rows have the same value."""

_LONGEST = 300
"""Characters after which a text is cut."""


def flat_config(
    config: Mapping[str, Any], samples: Sequence[Sample], facts: Mapping[str, Any] | None = None
) -> dict[str, Plain]:
    """Settings as ``name -> text or number``: nested names joined by ``/``, empty values and the table of rows left out.

    ``rows``, ``prompts`` and ``seeds`` are counts; ``methods`` lists the methods' names; ``axis/<name>`` holds the values of an
    ablation's axis, ``<method>/<option>`` an option that is equal in all rows of the method, ``version/<package>`` a version.

    Args:
        config: Configuration as in ``config.yaml`` of the run folder.
        samples: The rows.
        facts: Further entries, which override settings of the same name: the command, an ablation's file and base.

    Example:
        >>> flat_config({"model": "shapes", "height": None, "wandb": {}}, [], {"ablation": {"file": "a.yaml"}})["ablation/file"]
        'a.yaml'
    """
    flat = dict(_flattened({name: value for name, value in config.items() if name not in (*_OF_ROWS, *_COMMON)}))
    kept = config.get(MADE_WITH)
    made_with: Mapping[str, Any] = kept if isinstance(kept, Mapping) else {}
    flat |= _flattened({"model": made_with.get("model")}) if isinstance(made_with.get("model"), Mapping) else {}
    flat |= _of_rows(samples)
    flat |= {f"version/{name}": str(value) for name, value in made_with.get("versions", versions()).items()}
    return {**flat, **_flattened(facts or {})}


def _of_rows(samples: Sequence[Sample]) -> dict[str, Plain]:
    if not samples:
        return {}
    found: dict[str, Any] = {"rows": len(samples), "methods": ", ".join(sorted({sample.method for sample in samples}))}
    for name, plural in (("prompt", "prompts"), ("seed", "seeds")):
        found[plural] = len({getattr(sample, name) for sample in samples})
    for name in _COMMON:
        values = {getattr(sample, name) for sample in samples}
        if len(values) == 1:
            found[name] = values.pop()
    return _flattened({**found, **_options(samples), **_axes(samples)})


def _options(samples: Sequence[Sample]) -> dict[str, Any]:
    """Options that have the same value in all rows of their method, as ``<method>/<option>``."""
    given: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        for method in sample.methods:
            given.setdefault(method.name, []).append(method.options)
    return {
        f"{method}/{option}": value
        for method, options in given.items()
        for option, value in options[0].items()
        if all(option in other and other[option] == value for other in options)
    }


def axis_key(name: str) -> str:
    """``axis/<name>``; a dot becomes ``_``, since W&B reads dots as levels."""
    return f"axis/{name.replace('.', '_')}"


def _axes(samples: Iterable[Sample]) -> dict[str, Any]:
    """Values of an ablation's axes: the value itself if all rows share it, otherwise all values joined by commas."""
    values: dict[str, dict[str, Any]] = {}
    for sample in samples:
        for name, value in sample.tags.items():
            if is_cell_column(name) and name.startswith(AXIS):
                values.setdefault(axis_key(name.removeprefix(AXIS)), {})[str(value)] = value
    return {name: next(iter(found.values())) if len(found) == 1 else ", ".join(found) for name, found in values.items()}


def _flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Plain]:
    """Nested mappings with keys joined as ``a/b``, lists as JSON, without empty values."""
    flat: dict[str, Plain] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{name}/")
        elif value is not None and value != "" and value != [] and value != ():
            flat[f"{prefix}{name}"] = _plain(value)
    return flat


def _plain(value: Any) -> Plain:
    if isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
