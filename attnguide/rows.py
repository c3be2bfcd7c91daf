"""Rows of the table as plain values, and what can be found wrong with them early. Importing this needs no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from attnguide.fields import FOREIGN_NAMES
from attnguide.methods import baseline_of, check_methods, check_options, method_info
from attnguide.parsing import MOST_DEPTH, as_real, as_whole, check_depth, is_unicode, shown
from attnguide.prompt.nested import settle
from attnguide.prompt.notation import parse_region, region_from_dict, region_to_dict, regions_from_places
from attnguide.prompt.pairs import explicit_groups
from attnguide.prompt.regions import check_region
from attnguide.prompt.syntax import warn_of_syntax
from attnguide.sampling.problems import naming_row, require_rows, with_problem
from attnguide.types import MethodConfig, PlaceError, Region, Sample

ROW_KEYS: tuple[str, ...] = (
    "id",
    "prompt",
    "seed",
    "regions",
    "groups",
    "negative_prompt",
    "methods",
    "height",
    "width",
    "steps",
    "cfg_scale",
    "scheduler",
    "tags",
    "problem",
)
"""What a row may say; the fields of :class:`~attnguide.types.Sample`."""

MOST_ROWS = 100_000
"""Of a table."""

Words = dict[tuple[str, int, int], tuple[str | None, Sample]]
"""By prompt and the identities of regions and groups: what is wrong with them, and a row that keeps them alive."""

_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,150}")


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
            read[key] = _READERS[key](key, value)
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
        settle(sample.prompt, sample.regions)
    except ValueError as error:
        return replace(sample, problem=str(error))
    return sample


def sample_to_dict(sample: Sample) -> dict[str, Any]:
    """A row as plain values for YAML or JSON; :func:`sample_from_dict` undoes it.

    Raises:
        ValueError: If a value cannot be written down: a mask tensor, or an option that is not a plain value.
    """
    plain: dict[str, Any] = {"id": sample.id, "prompt": sample.prompt, "seed": sample.seed}
    if sample.negative_prompt:
        plain["negative_prompt"] = sample.negative_prompt
    if sample.regions:
        plain["regions"] = [region_to_dict(region) for region in sample.regions]
    if sample.groups:
        plain["groups"] = [list(words) for words in sample.groups]
    if sample.methods:
        plain["methods"] = [_method_to_plain(config) for config in sample.methods]
    for key in ("height", "width", "steps", "cfg_scale", "scheduler"):
        if getattr(sample, key) is not None:
            plain[key] = getattr(sample, key)
    if sample.tags:
        plain["tags"] = _plain(sample.tags, "tags")
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
        _read_id("id", sample.id)
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
    words: Words = {}
    for sample in samples:
        with naming_row(sample, samples):
            marked.append(checked_row(sample, words))
    require_rows(marked, strict=strict)
    sound = [sample for sample in marked if sample.problem is None]
    warn_of_syntax(text for sample in sound for text in (sample.prompt, sample.negative_prompt))
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


def checked_row(sample: Sample, words: Words) -> Sample:
    """One row of :func:`checked_samples`, its methods' options not judged yet.

    Args:
        sample: The row.
        words: What came of the words and places of rows before, which rows share; filled in here.

    Raises:
        ValueError: If a method does not exist, or several baselines are named.
    """
    for config in sample.methods:
        method_info(config.name)
    baseline_of(sample)
    return with_problem(sample, partial(_check_row, words=words))


def _check_row(sample: Sample, words: Words) -> None:
    check_methods(sample)
    key = (sample.prompt, id(sample.regions), id(sample.groups))
    if key not in words:
        try:
            _check_words(sample)
            words[key] = (None, sample)
        except ValueError as error:
            words[key] = (str(error), sample)
    if (problem := words[key][0]) is not None:
        raise ValueError(problem)
    if sample.methods and not sample.prompt.strip():
        raise ValueError(f"prompt must contain a word for methods to steer; got {sample.prompt!r}.")


def _check_words(sample: Sample) -> None:
    for region in sample.regions:
        check_region(region, sample.prompt)
    settle(sample.prompt, sample.regions)
    explicit_groups(sample.prompt, sample.groups)


# ------------------------------------------------------------------------------------------------------------- one value


def _read_text(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{key} must be text{quotes(value)}; got {shown(value)}.")


def _read_prompt(key: str, value: Any) -> str:
    if _read_text(key, value).strip():
        return str(value)
    raise ValueError(f"{key} must contain a word; got {shown(value)}.")


def _read_id(key: str, value: Any) -> str:
    text = str(value) if type(value) is int else _read_text(key, value)
    if _SAFE_ID.fullmatch(text):
        return text
    raise ValueError(f"{key} names files: letters, digits, '.', '_' and '-', not beginning with '.' or '-'; got {shown(text)}.")


def _read_whole(key: str, value: Any) -> int:
    if (number := as_whole(value)) is not None:
        return number
    raise ValueError(f"{key} must be a whole number; got {shown(value)}.")


def _read_number(key: str, value: Any) -> float:
    if (number := as_real(value)) is not None:
        return number
    raise ValueError(f"{key} must be a number; got {shown(value)}.")


def read_mapping(key: str, value: Any) -> dict[str, Any]:
    """A mapping from names, or a ValueError."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} must be a mapping from names to values; got {shown(value)}.")
    try:
        check_depth(value)
    except ValueError as error:
        raise ValueError(f"{key} must not be {error}") from error
    return dict(value)


def _read_regions(key: str, value: Any) -> tuple[Region, ...]:
    if isinstance(value, Mapping) and "phrase" not in value:
        return regions_from_places(read_mapping(key, value))
    if not isinstance(value, list | tuple):
        raise ValueError(f"{key} must be a list, or a mapping from phrases to places; got {shown(value)}.")
    return tuple(_read_region(item) for item in value)


def _read_region(value: Any) -> Region:
    if isinstance(value, Region):
        return value
    if isinstance(value, str):
        return parse_region(value)
    return region_from_dict(read_mapping("a region", value))


def _read_groups(key: str, value: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{key} must be a list of groups of words, the noun last; got {shown(value)}.")
    return tuple(_read_group(key, item) for item in value)


def _read_group(key: str, value: Any) -> tuple[str, ...]:
    words = value.split() if isinstance(value, str) else value
    if isinstance(words, list | tuple) and words and all(isinstance(word, str) and word.strip() for word in words):
        return tuple(words)
    raise ValueError(f"each of {key} is words of the prompt, the noun last, like [red, circle]; got {shown(value)}.")


def _read_methods(key: str, value: Any) -> tuple[MethodConfig, ...]:
    if isinstance(value, str):
        return tuple(MethodConfig(name) for name in method_names(value))
    return tuple(_read_method(item) for item in (value if isinstance(value, list | tuple) else [value]))


def _read_method(value: Any) -> MethodConfig:
    if isinstance(value, MethodConfig):
        return value
    if isinstance(value, str):
        return MethodConfig(value)
    plain = read_mapping("a method", value)
    unknown = [key for key in plain if key not in ("name", "options")]
    if unknown or "name" not in plain:
        raise ValueError(f"a method is a name, or a mapping with name and options; got {shown(value)}.")
    return MethodConfig(_read_text("name", plain["name"]), read_mapping("options", plain.get("options") or {}))


def method_names(text: str) -> list[str]:
    """Names of ``a+b``; none for ``plain`` and the empty text."""
    names = [name.strip() for name in text.split("+")]
    return [] if names in ([""], ["plain"]) else names


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "id": _read_id,
    "prompt": _read_prompt,
    "seed": _read_whole,
    "regions": _read_regions,
    "groups": _read_groups,
    "negative_prompt": _read_text,
    "methods": _read_methods,
    "height": _read_whole,
    "width": _read_whole,
    "steps": _read_whole,
    "cfg_scale": _read_number,
    "scheduler": _read_text,
    "tags": read_mapping,
    "problem": _read_text,
}


def _method_to_plain(config: MethodConfig) -> str | dict[str, Any]:
    if not config.options:
        return config.name
    return {"name": config.name, "options": _plain(config.options, f"option of {config.name}")}


def _plain(value: Any, what: str, depth: int = 0) -> Any:
    """Only what YAML and JSON know."""
    if depth > MOST_DEPTH:
        raise ValueError(f"{what} cannot be written to a file: it is nested more than {MOST_DEPTH} deep.")
    if isinstance(value, str) and not is_unicode(value):
        raise ValueError(f"{what} cannot be written to a file: {value[:60]!a} is no valid Unicode.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        inner = {key: what if depth else f"{what} {key!r}" for key in value}
        return {_key(key, what): _plain(item, inner[key], depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, what, depth + 1) for item in value]
    if isinstance(value, Path):
        return str(value)
    for number in (as_whole(value), as_real(value)):
        if number is not None:
            return number
    raise ValueError(f"{what} cannot be written to a file: {type(value).__name__} is not a plain value.")


def _key(key: Any, what: str) -> str:
    if is_unicode(str(key)):
        return str(key)
    raise ValueError(f"{what} cannot be written to a file: {str(key)[:60]!a} is no valid Unicode.")


def quotes(value: Any) -> str:
    """How text is written that YAML reads as something else."""
    return " (in quotes)" if isinstance(value, bool | int | float) else ""


def nearest(key: str, known: Collection[str] = ROW_KEYS) -> str:
    """`` (did you mean 'seed'?)`` if a known key is close, else nothing."""
    foreign = FOREIGN_NAMES.get(key.lower().replace("-", "_"))
    near = [foreign] if foreign in known else difflib.get_close_matches(key[:100], known, 1, cutoff=0.7)
    return f" (did you mean {near[0]!r}?)" if near else ""
