"""``made_with``: versions, model and method defaults, which decide a run's pictures beside its settings. Needs no torch.

``config.yaml`` keeps it under :data:`MADE_WITH`. A resumed or repeated run is warned of other versions, and an option whose
default has changed since keeps its former value.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from attnguide.methods import is_method, method_options
from attnguide.text.yaml12 import yaml_value
from attnguide.types import MethodConfig, Sample

CONFIG_FILE, MADE_WITH = "config.yaml", "made_with"
PACKAGES = ("attnguide", "torch", "diffusers", "transformers")

Options = Mapping[str, Mapping[str, Any]]
"""Method -> option -> value."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that pictures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # not installed, but imported from a checkout
            found[name] = "unknown"
    return found


def made_with(samples: Iterable[Sample], kept: Options | None = None, **further: Any) -> dict[str, Any]:
    """Versions, further entries, and the default of every option of the methods that rows use.

    Args:
        samples: The rows.
        kept: Defaults of an earlier run, which replace the present ones.
        further: Further entries, such as ``model`` and ``batch_size``.
    """
    names = dict.fromkeys(config.name for sample in samples for config in sample.methods)
    options = {name: _plain({**method_options(name), **_known(name, kept or {})}) for name in names}
    return {"versions": versions(), **further, "method_options": options}


def other_versions(before: Mapping[str, Any]) -> str | None:
    """A sentence on versions that differ from those of an earlier run; ``None`` if none differs.

    Args:
        before: Result of :func:`made_with` in the earlier run.
    """
    kept = before.get("versions")
    told, now = (kept if isinstance(kept, dict) else {}), versions()
    changed = [f"{name} {told[name]} (now {now[name]})" for name in now if name in told and told[name] != now[name]]
    return f"made with {', '.join(changed)}: pictures may differ from those" if changed else None


def with_kept_options(samples: Sequence[Sample], kept: Options) -> list[Sample]:
    """Rows that set options explicitly to an earlier run's defaults, if these have changed since."""
    changed = {
        name: {option: value for option, value in _known(name, kept).items() if value != _plain(method_options(name))[option]}
        for name in kept
        if is_method(name)
    }
    if not any(changed.values()):
        return list(samples)
    return [
        replace(sample, methods=tuple(MethodConfig(m.name, {**changed.get(m.name, {}), **m.options}) for m in sample.methods))
        for sample in samples
    ]


def full_options(sample: Sample, given: Options | None = None, kept: Options | None = None) -> dict[str, dict[str, Any]]:
    """Value of every option of a row's methods, by method and option.

    Args:
        sample: The row.
        given: Options that are set; the row's own when ``None``.
        kept: Defaults of an earlier run for options that are not set; the present defaults when ``None``.
    """
    own: Options = {config.name: config.options for config in sample.methods} if given is None else given
    return {
        config.name: _plain({**method_options(config.name), **_known(config.name, kept or {}), **own.get(config.name, {})})
        for config in sample.methods
    }


def read_made_with(folder: str | Path) -> dict[str, Any]:
    """``made_with`` of a run folder's ``config.yaml``; empty if there is none."""
    try:
        content = yaml_value((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    found = content.get(MADE_WITH) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def kept_options(kept: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The method options in a result of :func:`read_made_with`."""
    found = kept.get("method_options")
    return {name: value for name, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def _known(name: str, kept: Options) -> dict[str, Any]:
    """Kept values of options that the method still has."""
    return {option: value for option, value in kept.get(name, {}).items() if option in method_options(name)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values after a round trip through JSON (tuples become lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
