"""Arms of a comparison, and the rows of each arm. Importing this needs no torch."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from attnguide.methods import check_methods, method_info
from attnguide.rows.samples import MOST_ROWS
from attnguide.sampling.problems import with_problem
from attnguide.types import PLAIN, ExpectedCost, MethodConfig, Sample

BEST = "best_of_"
"""Prefix of the arm ``best_of_K``, which keeps the best of K plain pictures."""

ARM, SUBJECT, ATTEMPT = "arm", "subject", "attempt"
"""Tags of a row: its arm, the id of its benchmark row, and the index of the try for best of k, from 0."""

SOURCE = "source_prompt"
"""Name of a row's tag, and of the option of editing methods that it sets: the prompt of the picture to edit."""

MOST_TRIES = 16

_LONGEST = 60
"""Most characters of an arm's name within a file name."""

_STRIDE = 1_000_003
"""Offset between the seeds of tries, so that rows with neighbouring seeds do not share pictures."""


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison: a set of methods, or plain sampling.

    Attributes:
        name: Names of its methods, with options if another arm has the same methods.
        methods: Methods applied together; empty for plain sampling.
    """

    name: str
    methods: tuple[MethodConfig, ...] = ()


def make_arms(given: Sequence[Sequence[Mapping[str, Any]]]) -> list[Arm]:
    """Plain sampling, then one arm for each set of methods.

    Args:
        given: Sets of methods, each method a mapping ``{"name": ..., option: value}``.

    Raises:
        ValueError: If two sets are the same.
    """
    sets = [
        tuple(MethodConfig(method["name"], {k: v for k, v in method.items() if k != "name"}) for method in methods)
        for methods in given
    ]
    names = ["+".join(config.name for config in methods) for methods in sets]
    arms = [Arm(PLAIN)]
    for name, methods in zip(names, sets, strict=True):
        options = [f"{key}={value}" for config in methods for key, value in config.options.items()]
        own = f"{name} {' '.join(options)}" if names.count(name) > 1 and options else name
        if any(arm.name == own for arm in arms):
            raise ValueError(f"method: expected every one once, or with other options; got {own} more than once")
        arms.append(Arm(own, methods))
    return arms


def tries_for(arm: ExpectedCost, plain: ExpectedCost) -> int:
    """Number of plain pictures that cost at least as many network passes as one picture of an arm; at most 16.

    A pass is a forward or a backward pass of one branch. If thresholds decide how many there are, the mean of the least and the
    most counts.

    Example:
        >>> tries_for(ExpectedCost(115, 15, 115, 15), ExpectedCost(60, 0, 60, 0))
        3
    """
    passes = (arm.forwards + arm.backwards + arm.most + arm.most_backwards) / 2
    alone = (plain.forwards + plain.backwards + plain.most + plain.most_backwards) / 2
    return min(MOST_TRIES, max(1, math.ceil(passes / alone - 1e-9)))


def arm_rows(rows: Sequence[Sample], arms: Sequence[Arm], seeds: Sequence[int], tries: int) -> list[Sample]:
    """Each row of a benchmark under each arm and seed, and further plain tries for best of k.

    Arms have the same benchmark rows and seeds, so that paired differences can be taken. A row that an arm's method cannot take
    has the reason as its :attr:`~attnguide.types.Sample.problem` in that arm; a row that is invalid by itself has it in every
    arm.

    Args:
        rows: Rows of the benchmark, without methods.
        arms: Arms of the comparison, plain sampling among them.
        seeds: Seeds; one picture of each row and arm for each.
        tries: Plain pictures of each row and seed, at least 1.

    Raises:
        ValueError: If there are too many rows.
    """
    if (count := len(rows) * len(seeds) * (len(arms) + tries - 1)) > MOST_ROWS:
        raise ValueError(f"expected at most {MOST_ROWS:,} pictures in all; got {count:,}")
    found = []
    for arm in arms:
        for row in rows:
            for seed in seeds:
                found.append(_row(row, arm, seed))
                if arm.methods or row.problem is not None:
                    continue
                found += [_try(found[-1], attempt) for attempt in range(1, tries)]
    return found


def _row(row: Sample, arm: Arm, seed: int) -> Sample:
    tags = {**row.tags, ARM: arm.name, SUBJECT: row.id}
    methods = tuple(_with_source(config, row) for config in arm.methods)
    made = replace(row, id=f"{row.id}-{slug(arm.name)}-{seed}", seed=seed, methods=methods, tags=tags)
    return with_problem(made, partial(check_methods))


def _with_source(config: MethodConfig, row: Sample) -> MethodConfig:
    """The method with the row's tag ``source_prompt`` as its option of that name, if it has such an option."""
    if not row.tags.get(SOURCE) or SOURCE not in method_info(config.name).per_row:
        return config
    return MethodConfig(config.name, {**config.options, SOURCE: row.tags[SOURCE]})


def _try(row: Sample, attempt: int) -> Sample:
    seed = (row.seed + attempt * _STRIDE) % 2**63
    return replace(row, id=f"{row.id}-try{attempt}", seed=seed, tags={**row.tags, ATTEMPT: attempt})


def slug(name: str) -> str:
    """A name as part of a file name; long names are cut and end in a checksum that keeps them distinct."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "_", name).strip("_.") or "arm"
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 9]}_{zlib.crc32(name.encode()):08x}"
