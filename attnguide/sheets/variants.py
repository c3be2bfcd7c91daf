"""Short labels that tell the rows of a run apart. Importing this needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attnguide.inputs import INPUTS
from attnguide.run_folder.records import AXIS, CELL
from attnguide.types import PLAIN

SETTINGS = (
    *("steps", "cfg_scale", "true_cfg_scale", "prompt_syntax", "scheduler", "height", "width", "negative_prompt"),
    *INPUTS,
)
"""Columns of a record, beside method and options, that change the picture of a prompt, seed and regions."""

Record = Mapping[str, str]


def varied_axes(records: Sequence[Record]) -> dict[str, list[str]]:
    """Axes of an ablation with more than one value -> their values: numbers rising, others in order of first occurrence.

    Example:
        >>> varied_axes([{"axis.scale": "10", "axis.start": "0"}, {"axis.scale": "2", "axis.start": "0"}, {"axis.scale": ""}])
        {'scale': ['2', '10']}
    """
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith(AXIS) and value:
                found.setdefault(name.removeprefix(AXIS), {})[value] = None
    varied = {name: list(values) for name, values in found.items() if len(values) > 1}
    return {name: sorted(values, key=float) if all(map(_is_number, values)) else values for name, values in varied.items()}


def across_axis(axes: Mapping[str, Sequence[str]]) -> str:
    """The axis that goes across a sheet: the last numeric one, else the last.

    Example:
        >>> across_axis({"method": ["inject1", "inject5"], "scale": ["1", "2"], "form": ["probs", "scores"]})
        'scale'
    """
    numeric = [name for name, values in axes.items() if all(map(_is_number, values))]
    return (numeric or list(axes))[-1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def variant_labels(records: Sequence[Record], *, method: bool = False) -> list[str]:
    """A label for each record: the values in which it differs from other records of the run.

    In an ablation, the values of the axes (``scale = 2``); else the method, if there are several, and the options and settings
    in which rows of the same method differ (``step_size = 40``). Rows without a method are ``plain``.

    Args:
        records: Lines of ``records.csv``; the labels depend on all of them.
        method: Whether to name the method even if it is the only one; labels of an ablation never do.

    Example:
        >>> rows = [{"method": "inject5", "options": f'{{"inject5": {{"scale": {scale}, "start": 0}}}}'} for scale in (0.5, 1)]
        >>> variant_labels([{"method": "plain"}, *rows])
        ['plain', 'scale = 0.5', 'scale = 1']
    """
    facts = [_facts(record) for record in records]
    steered = {record.get("method", "") for record in records} - {"plain", ""}
    alike: dict[str, list[dict[str, str]]] = {}
    for record, found in zip(records, facts, strict=True):
        alike.setdefault(_family(record), []).append(found)
    told = {family: _differing(group) for family, group in alike.items()}
    return [
        _label(record, found, told[_family(record)], named=method or len(steered) > 1)
        for record, found in zip(records, facts, strict=True)
    ]


def _family(record: Record) -> str:
    """Key of the records that are compared for a label: those of one method, or all cells of an ablation."""
    return CELL if record.get(CELL) else record.get("method", "")


def _label(record: Record, facts: Mapping[str, str], told: Sequence[str], *, named: bool) -> str:
    method = record.get("method", "") or PLAIN
    words = [f"{name} = {facts[name]}" for name in told if name in facts]
    cell = record.get(CELL, "")
    if cell:
        return ", ".join([PLAIN, *words] if cell.split(", ")[0] == PLAIN else words) or cell
    return ", ".join([method, *words] if named or method == PLAIN or not words else words)


def _differing(group: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of facts that differ within a group, in order of first occurrence."""
    names = dict.fromkeys(name for facts in group for name in facts)
    return [name for name in names if len({facts.get(name) for facts in group}) > 1]


def _facts(record: Record) -> dict[str, str]:
    """Facts of a record, by name: values of an ablation's axes; otherwise the methods' options and the settings."""
    if record.get(CELL):
        return {name.removeprefix(AXIS): value for name, value in record.items() if name.startswith(AXIS) and value}
    settings = {name: record[name] for name in SETTINGS if record.get(name)}
    return {**_options(record.get("options", "")), **settings}


def _options(text: str) -> dict[str, str]:
    """Options of a record's methods, as ``option`` for a single method and ``method.option`` for several."""
    try:
        methods: Any = json.loads(text) if text else {}
    except (ValueError, RecursionError):  # a damaged cell is compared as text
        return {"options": text}
    if not isinstance(methods, dict) or not all(isinstance(options, dict) for options in methods.values()):
        return {"options": text}
    prefix = len(methods) > 1
    return {
        f"{method}.{option}" if prefix else option: _short(value)
        for method, options in methods.items()
        for option, value in options.items()
    }


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
