"""Rows of the table as plain values, and what can be found wrong with them early. Importing this needs no torch."""

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
"""Of a table."""

_UNSAID: dict[str, Any] = {
    **dict.fromkeys(("height", "width", "steps", "cfg_scale", "scheduler", "init_image", "strength", "inpaint_mask")),
    "true_cfg_scale": 1,
    "prompt_syntax": "plain",
}
"""Settings of a row, and the value with which they are not written down."""


@dataclass
class Checked:
    """What was found of rows before, which rows share.

    Attributes:
        words: By prompt and the identities of regions and groups: what is wrong with them, and a row that keeps them alive.
        sizes: Of input pictures that can be read.
    """

    words: dict[tuple[Prompt, int, int], tuple[str | None, Sample]] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=dict)


class RowError(ValueError):
    """A row's value cannot be used.

    Attributes:
        key: The key at fault, if one is.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


def sample_from_dict(values: Mapping[str, Any], *, id: str | None = None) -> Sample:
    """A row from plain values, as :func:`sample_to_dict` writes them.

    Args:
        values: Keys of :data:`ROW_KEYS`. Regions are a mapping from phrases to places
            (:func:`~attnguide.prompt.notation.regions_from_places`), or a list; in it a region is a mapping or text as on the
            command line (``cat=0,0,0.5,1``). A group is a list of words or text, the noun last (``red circle``); a method is a
            name, or a mapping with ``name`` and ``options``.
        id: For a row that has none.

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
    """A row of a table from plain values, as :func:`sample_from_dict` reads them.

    A region whose box has no area, or whose phrase the prompt lacks or gives to another region, does not refuse the table: it
    becomes the row's :attr:`~attnguide.types.Sample.problem`.

    Args:
        values: Keys of :data:`ROW_KEYS`.
        id: For a row that has none.

    Raises:
        ValueError: As for :func:`sample_from_dict`.
    """
    try:
        sample = sample_from_dict(values, id=id)
    except RowError as error:
        if not isinstance(error.__cause__, PlaceError):
            raise
        # The places of a row that ends before it is drawn are of no use.
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
    """A row as plain values for YAML or JSON; :func:`sample_from_dict` undoes it.

    Raises:
        ValueError: If a value cannot be written down: a mask tensor, or an option that is not a plain value.
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
    """Refuse ids that cannot name files, and ids that two rows share.

    Capitals make no difference: not every disk tells them apart.

    Raises:
        ValueError: Naming the id.
    """
    seen: set[str] = set()
    for sample in samples:
        read_id("id", sample.id)
        if sample.id.lower() in seen:
            raise ValueError(f"Row ids must be unique; {sample.id!r} stands for more than one row.")
        seen.add(sample.id.lower())


def check_samples(samples: Sequence[Sample]) -> None:
    """Refuse rows if anything is wrong with any of them; see :func:`checked_samples`.

    Raises:
        ValueError: With the row's id where there are several.
    """
    checked_samples(samples, strict=True)


def checked_samples(samples: Sequence[Sample], *, strict: bool = False) -> list[Sample]:
    """Find what is wrong with rows before any model is loaded: ids, phrases, places, mask files, methods and their options.

    What one row says impossibly of itself becomes its :attr:`~attnguide.types.Sample.problem`, with which it will end alone.
    Ids, names of methods and options are mistakes in the table as a whole. Options are judged by the methods themselves, last
    and once each, since that loads torch.

    Args:
        samples: The rows.
        strict: Refuse all rows on account of one row's problem.

    Returns:
        The same rows.

    Raises:
        ValueError: With the row's id where there are several; also if no row is without a problem.
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
    """One row of :func:`checked_samples`, its methods' options not judged yet.

    Args:
        sample: The row.
        known: What came of rows before; filled in here.

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
