"""Problems of single rows, which do not stop other rows. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from attnguide.types import Sample


def with_problem(sample: Sample, check: Callable[[Sample], None]) -> Sample:
    """The row, with a check's ValueError as its problem; a row that has a problem already is not checked."""
    if sample.problem is not None:
        return sample
    try:
        check(sample)
    except ValueError as error:
        return replace(sample, problem=" ".join(str(error).split()))
    return sample


def require_rows(samples: Sequence[Sample], *, strict: bool = False) -> None:
    """Refuse a table in which every row has a problem; plain twins of such rows do not count.

    Args:
        samples: Rows whose problems are known.
        strict: Refuse the table for one row's problem.

    Raises:
        ValueError: With the first problem, and the row's id where there are several.
    """
    bad = [sample for sample in samples if sample.problem is not None]
    asked = [sample for sample in samples if sample.methods or not sample.id.endswith("-plain")] or list(samples)
    none_left = bool(bad) and all(sample.problem is not None for sample in asked)
    if bad and (strict or none_left):
        with naming_row(bad[0], samples):
            raise ValueError(bad[0].problem)


@contextmanager
def naming_row(sample: Sample, samples: Sequence[Sample]) -> Iterator[None]:
    """Put the row's id before the message of a ValueError where there are several rows."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Row {sample.id!r}: {error}" if len(samples) > 1 else str(error)) from error
