"""Arms of a comparison, and the rows that each gets. Importing this needs no torch."""

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
from attnguide.types import ExpectedCost, MethodConfig, Sample

PLAIN = "plain"
BEST = "best_of_"
"""Begins the name of the arm that keeps the best of some plain pictures."""

ARM, SUBJECT, ATTEMPT = "arm", "subject", "attempt"
"""Tags of a row: its arm, the row of the benchmark it is of, and which of several tries it is, from 0."""

SOURCE = "source_prompt"
"""Tag of a row, and the option of methods that it is for: the prompt of the picture that is edited."""

MOST_TRIES = 16

_LONGEST = 60
"""Characters of a name that becomes part of a file's."""

_STRIDE = 1_000_003
"""Between the seeds of tries, so that rows with neighbouring seeds do not draw the same pictures."""


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: Of its methods, with the options that tell it from other arms of these.
        methods: Applied together; none for plain sampling.
    """

    name: str
    methods: tuple[MethodConfig, ...] = ()


def make_arms(given: Sequence[Sequence[Mapping[str, Any]]]) -> list[Arm]:
    """Plain sampling, then one arm for each set of methods.

    Args:
        given: Sets of methods as plain values, ``{"name": ..., option: value}``.

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
            raise ValueError(f"expected every method once, or with other options; got {own} more than once")
        arms.append(Arm(own, methods))
    return arms


def tries_for(arm: ExpectedCost, plain: ExpectedCost) -> int:
    """Plain pictures that cost at least as much as one of an arm: network passes, rounded up.

    A pass is a forward or a backward pass of one branch. Where thresholds decide how many there are, the mean of the least and
    the most counts.

    Example:
        >>> tries_for(ExpectedCost(115, 15, 115, 15), ExpectedCost(60, 0, 60, 0))
        3
    """
    passes = (arm.forwards + arm.backwards + arm.most + arm.most_backwards) / 2
    alone = (plain.forwards + plain.backwards + plain.most + plain.most_backwards) / 2
    return min(MOST_TRIES, max(1, math.ceil(passes / alone - 1e-9)))


def arm_rows(rows: Sequence[Sample], arms: Sequence[Arm], seeds: Sequence[int], tries: int) -> list[Sample]:
    """Each row of a benchmark under each arm and seed, and further plain tries to choose among.

    Arms have the same subjects and seeds, so that differences can be taken pair by pair. A row that a method cannot take keeps
    the reason as its :attr:`~attnguide.types.Sample.problem`; the other arms are made. A row that asks for nothing possible at
    all is in every arm with its reason.

    Args:
        rows: Of the benchmark, without methods.
        arms: The plain one among them.
        seeds: One picture for each.
        tries: Plain pictures for each seed, at least 1.

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
    """A method that reads another prompt's picture, with the prompt that the row names for it."""
    if not row.tags.get(SOURCE) or SOURCE not in method_info(config.name).per_row:
        return config
    return MethodConfig(config.name, {**config.options, SOURCE: row.tags[SOURCE]})


def _try(row: Sample, attempt: int) -> Sample:
    seed = (row.seed + attempt * _STRIDE) % 2**63
    return replace(row, id=f"{row.id}-try{attempt}", seed=seed, tags={**row.tags, ATTEMPT: attempt})


def slug(name: str) -> str:
    """A name as part of a file's name; long ones are cut, and told apart by a number of their own."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "_", name).strip("_.") or "arm"
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 9]}_{zlib.crc32(name.encode()):08x}"
