"""Judges by name: parses values of ``--judge`` and opens the judges. Importing this needs no torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from attnguide.judges.base import Judge
from attnguide.outside import entry_point_targets, is_target, load_target
from attnguide.rows.values import nearest
from attnguide.text.hints import fits, spelt
from attnguide.text.parsing import shown

JUDGES: dict[str, str] = {
    "shapes": "attnguide.judges.shapes:ShapesJudge",
    "patches": "attnguide.judges.patches:PatchesJudge",
    "detector": "attnguide.judges.detector:DetectorJudge",
    "clip": "attnguide.judges.clip:ClipJudge",
    "vqa": "attnguide.judges.vqa:VqaJudge",
}
"""Name of a judge of this package -> its class as ``module:Class``."""

ASKED_TAG, RELATION_TAG = "asked", "relation"
"""Tags of a row: all objects and relations that it asks for, or only the relation of its first object to its second."""

COUNT_FOUND = "count_found"
"""Name of the number of objects found; all other numbers of judges lie in [0, 1]."""

NONE = "none"
"""Value of ``--judge`` for no judge at all."""

GROUP = "attnguide.judges"
"""Entry point group in which other packages register judges."""

NEEDS_MODEL = ("detector", "clip", "vqa")


def judge_config(value: Any) -> dict[str, Any]:
    """Parse a judge into a mapping ``{"name": ..., "model": ..., option: value, ...}``.

    Args:
        value: ``shapes``, ``detector=MODEL``, ``module:Class``, the name of an entry point; or a mapping with ``name``.

    Raises:
        ValueError: If there is no such judge, or it lacks its model.
    """
    given = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    if not isinstance(given.get("name"), str) or not all(isinstance(key, str) for key in given):
        raise ValueError(f"expected a name like shapes or detector=MODEL, or a name and options; got {shown(value)}")
    name, divider, model = given.pop("name").strip().partition("=")
    if divider:
        if "model" in given and given["model"] != model:
            raise ValueError(f"{name}: option 'model' is given twice")
        given["model"] = model
    if name not in JUDGES and not is_target(name) and name not in entry_point_targets(GROUP):
        known = [*JUDGES, *entry_point_targets(GROUP)]
        raise ValueError(
            f"unknown judge {shown(name)}{nearest(name, known)}; choose from {', '.join(known)}, {NONE}, or name your own as "
            "module:Class"
        )
    if name in NEEDS_MODEL and not (isinstance(given.get("model"), str) and given["model"].strip()):
        raise ValueError(f"expected {name}=MODEL, a folder or a hub id; got {name!r} alone")
    return {"name": name, **given}


def judge_configs(value: Any) -> list[dict[str, Any]]:
    """Parse several judges, each as :func:`judge_config`; an empty list for ``none``.

    Raises:
        ValueError: As for :func:`judge_config`, or if a judge is given twice.
    """
    items: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    if any(item == NONE or (isinstance(item, Mapping) and item.get("name") == NONE) for item in items):
        if len(items) > 1:
            raise ValueError(f"expected {NONE} alone, or judges; got {shown(value)}")
        return []
    found = [judge_config(item) for item in items]
    names = [one["name"] for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"expected every judge once; got {twice[0]} more than once")
    return found


def open_judge(config: Mapping[str, Any] | str) -> Judge:
    """Open a judge from its configuration, with its networks loaded.

    Raises:
        ValueError: If the judge does not exist, an option is unknown or out of range, or its model cannot be opened.
    """
    options = judge_config(config)
    name = options.pop("name")
    targets = {**entry_point_targets(GROUP), **JUDGES}
    kind = load_target(targets.get(name, name))
    if not isinstance(kind, type) or not issubclass(kind, Judge):
        raise ValueError(f"judge {shown(name)}: expected a subclass of attnguide.Judge; got {shown(kind)}")
    _check_options(name, kind, options)
    return kind(**options)


def open_judges(configs: Sequence[Mapping[str, Any] | str]) -> list[Judge]:
    """Open each judge; see :func:`open_judge`."""
    return [open_judge(config) for config in configs]


def _signature(kind: type[Judge]) -> inspect.Signature:
    try:
        return inspect.signature(kind, eval_str=True)
    except NameError:  # annotations with names that are imported under TYPE_CHECKING
        return inspect.signature(kind)


def _check_options(name: str, kind: type[Judge], options: Mapping[str, Any]) -> None:
    signature = _signature(kind)
    parameters = {key: one for key, one in signature.parameters.items() if one.kind is not inspect.Parameter.VAR_KEYWORD}
    open_ended = len(parameters) < len(signature.parameters)
    for option, value in options.items():
        if option not in parameters:
            if open_ended:
                continue
            has = ", ".join(parameters) or "none"
            raise ValueError(f"judge {name}: unknown option {shown(option)}{nearest(option, parameters)}; it has {has}")
        hint = parameters[option].annotation
        if hint is not inspect.Parameter.empty and not isinstance(hint, str) and not fits(value, hint):
            raise ValueError(f"judge {name}: {option} must be {spelt(hint)}; got {shown(value)}")
    missing = [key for key, one in parameters.items() if one.default is inspect.Parameter.empty and key not in options]
    if missing and not open_ended:
        raise ValueError(f"judge {name}: expected a value for {missing[0]}; got none")
