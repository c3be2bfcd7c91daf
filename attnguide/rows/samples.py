"""Converts rows from and to plain values, and checks them before a model is loaded. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from attnguide.methods import baseline_of, check_methods, check_options, method_info
from attnguide.prompt.inputs import Sizes, check_inputs
from attnguide.prompt.nested import settle
from attnguide.prompt.notation import region_to_dict
from attnguide.prompt.pairs import explicit_groups
from attnguide.prompt.regions import check_region
from attnguide.prompt.syntax import warn_of_syntax
from attnguide.rows.values import READERS, ROW_KEYS, method_to_plain, nearest, plain_value, read_id
from attnguide.sampling.problems import naming_row, require_rows, with_problem
from attnguide.text.parsing import shown
from attnguide.types import MethodConfig, PlaceError, Sample
from attnguide.weighted import Prompt, require_compel, written

MOST_ROWS = 100_000
"""Most rows of a table."""

_UNSAID: dict[str, Any] = {
    **dict.fromkeys(("height", "width", "steps", "cfg_scale", "scheduler", "init_image", "strength", "inpaint_mask")),
    "true_cfg_scale": 1,
    "prompt_syntax": "plain",
}
"""Setting of a row -> default value, with which it is not written."""


@dataclass
class Checked:
    """Cache of check results that rows share.

    Attributes:
        words: Prompt and ``id()`` of regions and groups -> the error in them, if any, and a row that keeps them alive.
        sizes: Sizes of input pictures.
    """

    words: dict[tuple[Prompt, int, int], tuple[str | None, Sample]] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=dict)


class RowError(ValueError):
    """A value of a row is invalid.

    Attributes:
        key: Key of the invalid value, if it is known.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


def sample_from_dict(values: Mapping[str, Any], *, id: str | None = None) -> Sample:
    """Make a row from plain values, as :func:`sample_to_dict` writes them.

    Args:
        values: Keys of :data:`ROW_KEYS`. Regions are a mapping from phrases to places
            (:func:`~attnguide.prompt.notation.regions_from_places`), or a list; in it a region is a mapping or text as on the
            command line (``cat=0,0,0.5,1``). A group is a list of words or text, the noun last (``red circle``); a method is a
            name, or a mapping with ``name`` and ``options``.
        id: Id of a row that has none.

    Raises:
        ValueError: If a key is unknown or missing, or a value has the wrong type or range.
    """
    for key in values:
        if key not in ROW_KEYS:
            raise RowError(f"A row has no key {shown(key)}{nearest(str(key))}; it has {', '.join(ROW_KEYS)}.", str(key))
    given = {key: value for key, value in values.items() if value is not None}
    if id is not None:
        given.setdefault("id", id)
    for key in ("id", "prompt"):
        if key not in given:
            raise RowError(f"A row needs the key {key!r}.", key)
    read: dict[str, Any] = {}
    for key, value in given.items():
        try:
            read[key] = READERS[key](key, value)
        except ValueError as error:
            raise RowError(str(error), key) from error
    try:
        return Sample(**read)
    except ValueError as error:  # its messages begin with the field
        raise RowError(str(error), str(error).split()[0]) from error


def table_row(values: Mapping[str, Any], *, id: str | None = None) -> Sample:
    """Make a row of a table from plain values, as :func:`sample_from_dict` does, but keep a row with invalid regions.

    A region whose box has no area, or whose phrase the prompt lacks or gives to another region, becomes the row's
    :attr:`~attnguide.types.Sample.problem` instead of refusing the table.

    Args:
        values: Keys of :data:`ROW_KEYS`.
        id: Id of a row that has none.

    Raises:
        ValueError: As for :func:`sample_from_dict`.
    """
    try:
        sample = sample_from_dict(values, id=id)
    except RowError as error:
        if not isinstance(error.__cause__, PlaceError):
            raise
        # A row with a problem is never sampled, so that its regions can be dropped.
        rest = {key: value for key, value in values.items() if key != "regions"}
        return sample_from_dict({**rest, "problem": values.get("problem") or str(error)}, id=id)
    if sample.problem is not None:
        return sample
    try:
        settle(sample.text, sample.regions)
    except ValueError as error:
        return replace(sample, problem=str(error))
    return sample


def sample_to_dict(sample: Sample) -> dict[str, Any]:
    """A row as plain values for YAML or JSON, the inverse of :func:`sample_from_dict`.

    Raises:
        ValueError: If a value cannot be written to a file: a mask tensor, or an option that is not a plain value.
    """
    plain: dict[str, Any] = {"id": sample.id, "prompt": sample.prompt, "seed": sample.seed}
    if sample.negative_prompt is not None:
        plain["negative_prompt"] = sample.negative_prompt
    if sample.regions:
        plain["regions"] = [region_to_dict(region) for region in sample.regions]
    if sample.groups:
        plain["groups"] = [list(words) for words in sample.groups]
    if sample.methods:
        plain["methods"] = [method_to_plain(config) for config in sample.methods]
    plain |= {key: value for key, unsaid in _UNSAID.items() if (value := getattr(sample, key)) != unsaid}
    if sample.control:
        plain["control"] = [control.to_dict() for control in sample.control]
    if sample.tags:
        plain["tags"] = plain_value(sample.tags, "tags")
    if sample.problem is not None:
        plain["problem"] = sample.problem
    return plain


def check_ids(samples: Sequence[Sample]) -> None:
    """Check that ids can name files and are unique.

    Ids that differ only in case count as equal, since not every file system tells them apart.

    Raises:
        ValueError: With the id.
    """
    seen: set[str] = set()
    for sample in samples:
        read_id("id", sample.id)
        if sample.id.lower() in seen:
            raise ValueError(f"Row ids must be unique whatever their case; {sample.id!r} stands for more than one row.")
        seen.add(sample.id.lower())


def check_samples(samples: Sequence[Sample]) -> None:
    """Raise if any row has a problem; see :func:`checked_samples`.

    Raises:
        ValueError: With the row's id where there are several.
    """
    checked_samples(samples, strict=True)


def checked_samples(samples: Sequence[Sample], *, strict: bool = False) -> list[Sample]:
    """Check rows before any model is loaded: ids, phrases, places, mask files, methods and their options.

    An error within one row becomes its :attr:`~attnguide.types.Sample.problem`; that row is then refused and the others are
    made. Errors in ids, names of methods and options refuse the whole table. Options are checked last, once for each set of
    methods, by building the methods, which imports torch.

    Args:
        samples: The rows.
        strict: Raise if any row has a problem.

    Returns:
        The rows in the same order, with problems filled in.

    Raises:
        ValueError: With the row's id if there are several rows; also if every row has a problem.
    """
    if len(samples) > MOST_ROWS:
        raise ValueError(f"A run must have at most {MOST_ROWS:,} rows; got {len(samples):,}.")
    check_ids(samples)
    marked: list[Sample] = []
    known = Checked()
    for sample in samples:
        with naming_row(sample, samples):
            marked.append(checked_row(sample, known))
    require_rows(marked, strict=strict)
    sound = [sample for sample in marked if sample.problem is None]
    letters = [sample for sample in sound if sample.prompt_syntax == "plain"]
    warn_of_syntax(text for sample in letters for text in (sample.prompt, sample.negative_prompt or ""))
    judged: set[str] = set()
    last: tuple[MethodConfig, ...] = ()
    for sample in marked:
        if not sample.methods or sample.methods is last:
            continue
        last = sample.methods
        if (text := repr(sample.methods)) not in judged:
            judged.add(text)
            with naming_row(sample, samples):
                check_options(sample.methods)
    return marked


def checked_row(sample: Sample, known: Checked) -> Sample:
    """Check one row as :func:`checked_samples` does, without the options of its methods.

    Args:
        sample: The row.
        known: Cache of the results of earlier rows; filled in here.

    Raises:
        ValueError: If a method does not exist, or several baselines are named.
    """
    for config in sample.methods:
        method_info(config.name)
    baseline_of(sample)
    return with_problem(sample, partial(_check_row, known=known))


def _check_row(sample: Sample, known: Checked) -> None:
    check_methods(sample)
    check_inputs(sample, known.sizes)
    words = known.words
    key = (written(sample.prompt, sample.prompt_syntax), id(sample.regions), id(sample.groups))
    if key not in words:
        try:
            _check_words(sample)
            words[key] = (None, sample)
        except ValueError as error:
            words[key] = (str(error), sample)
    if (problem := words[key][0]) is not None:
        raise ValueError(problem)
    if sample.negative_prompt is not None:
        written(sample.negative_prompt, sample.prompt_syntax)
    if sample.methods and not sample.text.strip():
        raise ValueError(f"prompt must contain a word for methods to steer; got {sample.prompt!r}.")


def _check_words(sample: Sample) -> None:
    if sample.prompt_syntax == "weights":
        require_compel()
    for region in sample.regions:
        check_region(region, sample.text)
    settle(sample.text, sample.regions)
    explicit_groups(sample.text, sample.groups)
