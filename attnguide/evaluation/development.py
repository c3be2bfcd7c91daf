"""Splits a benchmark into test rows and development rows for tuning, without common prompts. Importing this needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnguide.evaluation.entries import CATEGORY
from attnguide.types import Sample

SHARE = 4
"""One prompt in four of each category becomes a development prompt."""

DEVELOPMENT, TEST = "development", "test"

TUNE_FOLDER = "tune"
"""Subfolder of the run folder with the pictures of the development rows."""


@dataclass(frozen=True)
class Parts:
    """A benchmark in two parts that share no prompt.

    Attributes:
        test: Rows of the comparison.
        development: Rows for tuning; empty without tuning.
        split: ``id``, ``prompt`` and ``part`` of each row of the file; empty if the parts are two files.
    """

    test: Sequence[Sample]
    development: Sequence[Sample] = ()
    split: Sequence[Mapping[str, str]] = ()

    @property
    def told(self) -> str:
        """Number and origin of the development rows, in words."""
        rows = f"{len(self.development)} row{'' if len(self.development) == 1 else 's'}"
        if not self.split:
            return f"{rows} of the development file"
        prompts = {line["prompt"] for line in self.split}
        kept = {line["prompt"] for line in self.split if line["part"] == DEVELOPMENT}
        return f"{rows} of {len(kept)} of the file's {len(prompts)} prompts, which are left out of all tables"


def split_rows(rows: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Test and development rows of a file that has no development part: a quarter of the prompts of each category.

    The prompts with the least SHA-256 are taken, so that the split depends neither on the machine nor on the order of rows. All
    rows of a prompt fall on one side, also if several categories have it.

    Raises:
        ValueError: If all rows have one prompt.
    """
    by_category: dict[str, set[str]] = {}
    for row in rows:
        by_category.setdefault(str(row.tags.get(CATEGORY, "")), set()).add(row.prompt)
    every = sorted({row.prompt for row in rows}, key=_digest)
    if len(every) < 2:
        raise ValueError(f"tune: expected rows with at least two prompts, so that one can be tuned on; got {len(every)}")
    chosen = {prompt for own in by_category.values() for prompt in sorted(own, key=_digest)[: len(own) // SHARE]}
    chosen = chosen or {every[0]}
    return [row for row in rows if row.prompt not in chosen], [row for row in rows if row.prompt in chosen]


def _digest(prompt: str) -> str:
    return hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest()


def split_lines(test: Sequence[Sample], development: Sequence[Sample]) -> list[dict[str, str]]:
    """Lines of ``split.csv``, one for each row: ``id``, ``prompt``, ``part``."""
    parts = ((TEST, test), (DEVELOPMENT, development))
    return [{"id": row.id, "prompt": row.prompt, "part": part} for part, rows in parts for row in rows]
