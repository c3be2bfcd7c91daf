"""Which rows share a batch, and the method objects of a batch. Importing this needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnguide.inputs import strength_of
from attnguide.methods import build_method, check_one_row, method_info, method_options
from attnguide.types import MethodConfig, Sample

if TYPE_CHECKING:
    from attnguide.guidance.base import Guidance
    from attnguide.injection.base import Injection


def batch_key(sample: Sample) -> str:
    """Key that rows of one batch share: they differ at most in words, seeds, regions and per-row options.

    Some rows with different methods, hence different keys, can share a batch too (:func:`mixes`).
    """
    alone = sample.kind is not None  # one call of a pipeline has one value of every option
    methods = [
        (c.name, {k: v for k, v in sorted(c.options.items()) if alone or k not in method_info(c.name).per_row})
        for c in sample.methods
    ]
    return json.dumps([*picture_key(sample), methods], default=str)


def picture_key(sample: Sample) -> tuple[Any, ...]:
    """Settings that all rows of one batch share, whatever their methods: height, width, steps, scheduler, prompt syntax.

    Rows with input pictures also share the arguments that one call of their pipeline takes once.
    """
    common = sample.height, sample.width, sample.steps, sample.scheduler, sample.prompt_syntax
    if sample.kind is None:
        return common
    scales = sample.cfg_scale, sample.true_cfg_scale, sample.negative_prompt is None
    return (
        *common,
        sample.kind,
        strength_of(sample),
        *scales,
        sample.groups,
        tuple((one.type, one.scale) for one in sample.control),
    )


def mixes(samples: Sequence[Sample]) -> bool:
    """Whether rows with one :func:`batch_key` can also share a batch with rows of other methods.

    Plain rows can, and rows whose injections are edits alone (:attr:`~attnguide.injection.base.Injection.mixes`).

    Raises:
        ValueError: If an option's value is out of range.
    """
    if samples[0].kind is not None or any(method_info(config.name).family != "injection" for config in samples[0].methods):
        return False
    return all(injection.mixes for injection in _build_alike(samples)[1])


def build_methods(samples: Sequence[Sample]) -> tuple[list[Guidance], list[Injection]]:
    """Guidances and injections of rows that share a batch, with per-row options as one value a row.

    Where rows have different methods that mix, every injection is given the rows that name it.

    Raises:
        ValueError: If the rows do not share a batch.
    """
    alike: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        alike.setdefault(batch_key(sample), []).append(row)
    if len(alike) <= 1:
        return _build_alike(samples)
    parts = [(rows, [samples[row] for row in rows]) for rows in alike.values()]
    if len({picture_key(sample) for sample in samples}) > 1 or not all(mixes(part) for _, part in parts):
        raise ValueError(f"Rows {', '.join(s.id for s in samples)} cannot share a batch: their settings or methods differ.")
    from attnguide.injection.by_row import ForRows

    return [], [ForRows(injection, rows) for rows, part in parts for injection in _build_alike(part)[1]]


def _build_alike(samples: Sequence[Sample]) -> tuple[list[Guidance], list[Injection]]:
    """Guidances and injections (:func:`build_methods`) of rows with one batch key."""
    guidances: list[Guidance] = []
    injections: list[Injection] = []
    for index, config in enumerate(samples[0].methods):
        if method_info(config.name).family == "baseline":
            continue
        configs = [sample.methods[index] for sample in samples]
        for one in configs:
            check_one_row(one)
        built = build_method(config.name, _merged_options(config, configs))
        (guidances if method_info(config.name).family == "guidance" else injections).append(built)  # type: ignore[arg-type]
    return guidances, injections


def _merged_options(first: MethodConfig, configs: Sequence[MethodConfig]) -> dict[str, Any]:
    options = dict(first.options)
    defaults = method_options(first.name)
    for option in sorted(method_info(first.name).per_row):
        values = [config.options.get(option, defaults.get(option)) for config in configs]
        if any(value != values[0] for value in values):
            options[option] = values
    return options
