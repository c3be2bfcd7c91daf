"""Readers and writers of a row's single values, from and to plain values. Importing this needs no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from attnguide.inputs import INPUTS, Control, read_control
from attnguide.prompt.notation import parse_region, region_from_dict, regions_from_places
from attnguide.text.fields import FOREIGN_NAMES
from attnguide.text.parsing import MOST_DEPTH, as_real, as_whole, check_depth, is_unicode, quotes, shown
from attnguide.types import MethodConfig, Region

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
    "true_cfg_scale",
    "prompt_syntax",
    "scheduler",
    *INPUTS,
    "tags",
    "problem",
)
"""Keys of a row: the fields of :class:`~attnguide.types.Sample`."""

_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,150}")


def _read_text(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{key} must be text{quotes(value)}; got {shown(value)}.")


def _read_prompt(key: str, value: Any) -> str:
    if _read_text(key, value).strip():
        return str(value)
    raise ValueError(f"{key} must contain a word; got {shown(value)}.")


def read_id(key: str, value: Any) -> str:
    """Read a row's id; ValueError if it cannot name files."""
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
    """Read a mapping with text as keys; ValueError for anything else."""
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


def _read_control(key: str, value: Any) -> tuple[Control, ...]:
    return tuple(read_control(item) for item in (value if isinstance(value, list | tuple) else [value]))


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
    """Names of methods in ``a+b``; empty for ``plain`` and the empty text."""
    names = [name.strip() for name in text.split("+")]
    return [] if names in ([""], ["plain"]) else names


READERS: dict[str, Callable[[str, Any], Any]] = {
    "id": read_id,
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
    "true_cfg_scale": _read_number,
    "prompt_syntax": _read_text,
    "scheduler": _read_text,
    "init_image": _read_text,
    "strength": _read_number,
    "inpaint_mask": _read_text,
    "control": _read_control,
    "tags": read_mapping,
    "problem": _read_text,
}
"""Key of a row -> its reader, which takes the key (for errors) and a plain value."""


def method_to_plain(config: MethodConfig) -> str | dict[str, Any]:
    """A method as its name, or as a mapping of name and options.

    Raises:
        ValueError: If an option is no plain value.
    """
    if not config.options:
        return config.name
    return {"name": config.name, "options": plain_value(config.options, f"option of {config.name}")}


def plain_value(value: Any, what: str, depth: int = 0) -> Any:
    """A value in types of YAML and JSON: numbers of numpy and torch become Python's, tuples lists, paths text.

    Args:
        value: The value.
        what: Name of the value, for errors.
        depth: Nesting depth of the value.

    Raises:
        ValueError: If it has another type, is nested too deeply, or holds text that is not valid Unicode.
    """
    if depth > MOST_DEPTH:
        raise ValueError(f"{what} cannot be written to a file: it is nested more than {MOST_DEPTH} deep.")
    if isinstance(value, str) and not is_unicode(value):
        raise ValueError(f"{what} cannot be written to a file: {value[:60]!a} is no valid Unicode.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        inner = {key: what if depth else f"{what} {key!r}" for key in value}
        return {_key(key, what): plain_value(item, inner[key], depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item, what, depth + 1) for item in value]
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


def nearest(key: str, known: Collection[str] = ROW_KEYS) -> str:
    """Hint `` (did you mean 'seed'?)`` if a known key is close, else empty text."""
    foreign = FOREIGN_NAMES.get(key.lower().replace("-", "_"))
    near = [foreign] if foreign in known else difflib.get_close_matches(key[:100], known, 1, cutoff=0.7)
    return f" (did you mean {near[0]!r}?)" if near else ""
