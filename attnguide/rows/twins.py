"""Plain twins: the unsteered row that a steered row is compared with, once for all rows that share it. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from attnguide.inputs import inputs_key
from attnguide.prompt.notation import region_to_dict
from attnguide.types import Region, Sample

Row = TypeVar("Row")


def with_twins(rows: Sequence[Row], sample_of: Callable[[Row], Sample], twin_of: Callable[[Row], Row]) -> list[Row]:
    """The rows, each missing plain twin inserted before the first steered row that needs it.

    Args:
        rows: In the order in which they are sampled.
        sample_of: The :class:`~attnguide.types.Sample` of a row.
        twin_of: Makes the plain twin of a steered row.

    Returns:
        Rows and twins. A row with a :attr:`~attnguide.types.Sample.problem` gets no twin.
    """
    keys = _PlainKeys()
    seen = {keys.of(sample_of(row)) for row in rows if not sample_of(row).methods}
    found: list[Row] = []
    for row in rows:
        sample = sample_of(row)
        if sample.methods and sample.problem is None and (key := keys.of(sample)) not in seen:
            seen.add(key)
            found.append(twin_of(row))
        found.append(row)
    return found


class _PlainKeys:
    """Keys of rows' plain pictures: rows with equal keys have the same plain picture and the same scores for it."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}  # by id() of regions or groups, tuples that many rows of a table share

    def of(self, sample: Sample) -> tuple[Any, ...]:
        size = (sample.height, sample.width, sample.steps, sample.cfg_scale, sample.true_cfg_scale, sample.scheduler)
        words = (sample.prompt, sample.prompt_syntax, sample.negative_prompt, sample.seed)
        return (*words, self._text(sample.regions), self._text(sample.groups), *size, *inputs_key(sample))

    def _text(self, given: tuple[Any, ...]) -> str:
        if id(given) not in self._texts:
            self._texts[id(given)] = repr([region_to_dict(item) if isinstance(item, Region) else item for item in given])
        return self._texts[id(given)]
