"""Bounded reader and writer of YAML by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema).

``1:30``, ``no``, ``1_000`` and ``2024-01-01`` are the texts that they look like, ``1e5`` and ``1e-3`` are numbers, ``0o17`` is
15 and ``017`` is 17. Everything in the package that reads or writes YAML does it here. Importing this needs no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from attnguide.text.parsing import MOST_DEPTH, MOST_DIGITS, REAL, WHOLE, is_unicode, read_text, shown

MOST_ALIASED = 100_000
"""Most entries that aliases may add to those written in a file."""

_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + word: float(sign + "inf") for sign in ("", "-", "+") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_TAG = "tag:yaml.org,2002:"
_KINDS = {"int": int, "float": float, "bool": bool, "null": type(None)}
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class YamlError(ValueError):
    """Text is not YAML, or uses a feature that is not supported here.

    Attributes:
        line: Line of the error, from 1.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def parse_yaml(text: str) -> tuple[Any, Any]:
    """Parse YAML into its node tree, which has line numbers, and its value; both ``None`` if the text is empty.

    Raises:
        YamlError: If the text is no YAML or nested too deeply, a key is repeated or no scalar, an alias contains itself,
            aliases add too many entries, or a value has a type that JSON lacks.
    """
    try:
        return _Builder(text).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or " ".join(str(error).split())
        line = min(mark.line, text.count("\n")) + 1 if mark else 1  # an error at the end may be placed after the last line
        raise YamlError(line, f"not valid YAML: {said}.") from error
    except UnicodeEncodeError as error:
        raise YamlError(1, "text must be valid Unicode; got half of a surrogate pair.") from error


def read_yaml(path: Path, what: str = "") -> tuple[Any, Any]:
    """Parse a YAML file into its node tree, which has line numbers, and its value; both ``None`` if the file is empty.

    Args:
        path: The file.
        what: Start of the error message if the file cannot be read; ``File 'NAME'`` by default.

    Raises:
        ValueError: With file and line, as for :func:`parse_yaml`; or if the file cannot be read.
    """
    text = read_text(path, what or f"File {shown(str(path))}")
    try:
        return parse_yaml(text)
    except YamlError as error:
        raise ValueError(f"{path}, line {error.line}: {error}") from error


def yaml_value(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: As for :func:`parse_yaml`.
    """
    return parse_yaml(text)[1]


class _Builder:
    """Builds nodes and values from the parser's event stream; limits are checked before each node is built."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, tuple[Any, Any, int]] = {}
        self._open: set[str] = set()
        self._entries = 0
        self._aliased = 0

    def document(self) -> tuple[Any, Any]:
        next(self._events)  # the stream begins
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None, None
        node, value = self._build(next(self._events), 0)
        next(self._events)  # the document ends
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            _refuse(event, "expected one document; got a second one")
        return node, value

    def _build(self, event: Any, depth: int) -> tuple[Any, Any]:
        kind = type(event)
        if kind is yaml.AliasEvent:
            return self._alias(event)
        if depth > MOST_DEPTH:
            _refuse(event, f"nested more than {MOST_DEPTH} deep")
        before = self._entries + self._aliased
        self._entries += 1
        if event.anchor is not None:
            self._open.add(event.anchor)
        if kind is yaml.ScalarEvent:
            value = _scalar(event)
            node = _node(yaml.ScalarNode, event, event.value)
        elif kind is yaml.SequenceStartEvent:
            node, value = self._sequence(event, depth)
        else:
            node, value = self._mapping(event, depth)
        if event.anchor is not None:
            self._open.discard(event.anchor)
            self._anchors[event.anchor] = (node, value, self._entries + self._aliased - before)
        return node, value

    def _alias(self, event: Any) -> tuple[Any, Any]:
        if event.anchor in self._open:
            _refuse(event, "an alias stands inside what it stands for")
        if event.anchor not in self._anchors:
            _refuse(event, f"not valid YAML: alias {shown(event.anchor)} stands for nothing before it")
        node, value, size = self._anchors[event.anchor]
        self._aliased += size
        if self._aliased > MOST_ALIASED:
            _refuse(event, f"aliases must add at most {MOST_ALIASED:,} entries; its aliases make more")
        return node, value

    def _sequence(self, event: Any, depth: int) -> tuple[Any, list[Any]]:
        if event.tag not in (None, "!", _TAG + "seq"):
            _refuse(event, f"expected a plain list; got the tag {shown(event.tag)}")
        nodes: list[Any] = []
        values: list[Any] = []
        while type(inner := next(self._events)) is not yaml.SequenceEndEvent:
            node, value = self._build(inner, depth + 1)
            nodes.append(node)
            values.append(value)
        return _node(yaml.SequenceNode, event, nodes), values

    def _mapping(self, event: Any, depth: int) -> tuple[Any, dict[Any, Any]]:
        if event.tag not in (None, "!", _TAG + "map"):
            _refuse(event, f"expected a plain mapping; got the tag {shown(event.tag)}")
        pairs: list[tuple[Any, Any]] = []
        own: dict[Any, Any] = {}
        merged: list[Mapping[Any, Any]] = []
        while type(inner := next(self._events)) is not yaml.MappingEndEvent:
            key_node, key = self._build(inner, depth + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                _refuse(inner, "expected a name as key; got a list or a mapping")
            node, value = self._build(next(self._events), depth + 1)
            if key == "<<" and isinstance(inner, yaml.ScalarEvent) and not inner.style:
                merged += _merged(inner, value)
                continue
            if key in own:
                _refuse(inner, f"key {shown(key_node.value)} stands twice")
            own[key] = value
            pairs.append((key_node, node))
        for other in merged:  # keys of the mapping itself win, then those merged first
            own |= {key: value for key, value in other.items() if key not in own}
        return _node(yaml.MappingNode, event, pairs), own


def _node(kind: Any, event: Any, value: Any) -> Any:
    return kind(event.tag, value, event.start_mark, event.end_mark)


def _merged(event: Any, value: Any) -> list[Mapping[Any, Any]]:
    """Mappings that the key ``<<`` merges in."""
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(item, dict) for item in found):
        _refuse(event, "'<<' takes over a mapping, or a list of them; got something else")
    return found


def _scalar(event: Any) -> Any:
    text: str = event.value
    if not is_unicode(text):
        _refuse(event, "text must be valid Unicode; got half of a surrogate pair")
    if event.tag in (None, _TAG + "str", "!"):
        return text if event.style or event.tag else _resolved(event, text)
    kind = _KINDS.get(event.tag.removeprefix(_TAG))
    value = _resolved(event, text)
    if kind is float and type(value) is int:
        return float(value)
    if kind is None or type(value) is not kind:
        _refuse(event, f"expected a plain value; got {shown(text)} with the tag {shown(event.tag)}")
    return value


def _resolved(event: Any, text: str) -> Any:
    """Value of a plain scalar by the core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if WHOLE.fullmatch(text) or _BASED.fullmatch(text):
        if len(text) > MOST_DIGITS:
            _refuse(event, f"a number must have at most {MOST_DIGITS} digits; got {len(text)}")
        return int(text, 0) if _BASED.fullmatch(text) else int(text)
    return float(text) if REAL.fullmatch(text) else text


def _refuse(event: Any, message: str) -> NoReturn:
    raise YamlError(event.start_mark.line + 1, f"{message}.")


class _Dumper(_DUMPER):  # type: ignore[misc]
    """Quotes texts that YAML 1.1 or 1.2 would read as another type, and writes repeated values in full instead of aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _pattern, _name in ((WHOLE, "int"), (_BASED, "int"), (REAL, "float")):
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern.pattern})$"), list("-+0123456789."))


def dump_yaml(value: Any) -> str:
    """Plain values as YAML text that :func:`parse_yaml` and readers of YAML 1.1 parse to the same values."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
