"""Parses a command line and its configuration files into checked settings. Importing this needs no torch."""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attnguide.cli.errors import UsageError, one_line
from attnguide.cli.values import Setting, scalar
from attnguide.models.names import nearest
from attnguide.text.fields import FOREIGN_NAMES
from attnguide.text.parsing import real_number, shown
from attnguide.text.yaml12 import read_yaml, yaml_value

_NAMED = ("--method", "--judge")
"""Options whose value has options of its own: ``--method.OPTION``, ``--judge.OPTION``."""

_YAML = "yaml12"
"""Name under which the package's YAML reader is registered with jsonargparse."""


def parse(prog: str, argv: Sequence[str], settings: Sequence[Setting], *, description: str, examples: str) -> dict[str, Any]:
    """Read a command line and the configuration files it names.

    Args:
        prog: Command as the user types it.
        argv: Words after the command.
        settings: Settings of the command; the first, if any, is positional.
        description: First lines of the help.
        examples: Last lines of the help.

    Returns:
        Every setting's value by name.

    Raises:
        UsageError: If an option, a value or a configuration file is invalid.
        SystemExit: With status 0 after ``--help`` or ``--print_config``.
    """
    from jsonargparse import ArgumentParser, set_loader

    set_loader(_YAML, yaml_value, exceptions=(ValueError,))
    for path in _config_files(argv):
        check_config(path, settings)
    parser = ArgumentParser(
        prog=prog,
        usage=" ".join([prog, *(f"[{setting.metavar}]" for setting in settings[:1]), "[--option value ...]"]),
        description=description,
        epilog=examples,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_Formatter,
        parser_mode=_YAML,
    )
    parser.add_argument(
        "--config", action="config", metavar="FILE", help="YAML with any of these settings; repeatable, later files win"
    )
    sections: dict[str, Any] = {"": parser}
    for position, setting in enumerate(settings):
        if setting.section not in sections:
            sections[setting.section] = parser.add_argument_group(setting.section)
        _add(parser if position == 0 else sections[setting.section], setting, positional=position == 0)
    try:
        found = parser.parse_args(pack(argv, settings))
    except (argparse.ArgumentError, argparse.ArgumentTypeError) as error:
        raise UsageError(_mended(one_line(error), settings, argv)) from error
    values = {setting.name: found.get(setting.name, setting.default) for setting in settings}
    try:
        # Settings that are mappings (--wandb.KEY) were collected key by key without a check.
        return {s.name: s(values[s.name]) if isinstance(s.default, dict) else values[s.name] for s in settings}
    except argparse.ArgumentTypeError as error:
        raise UsageError(one_line(error)) from error


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=120)


def _add(parser: Any, setting: Setting, *, positional: bool) -> None:
    if positional:  # a default would override the value of a configuration file
        parser.add_argument(
            setting.name, nargs="?", type=setting, default=argparse.SUPPRESS, metavar=setting.metavar, help=setting.help
        )
    elif setting.option.startswith("--no-"):
        parser.add_argument(setting.option, dest=setting.name, action="store_false", help=setting.help)
    elif setting.default is False:
        parser.add_argument(setting.option, dest=setting.name, action="store_true", help=setting.help)
    else:
        kind = dict[str, Any] if isinstance(setting.default, dict) else setting
        parser.add_argument(
            setting.option, dest=setting.name, type=kind, default=setting.default, metavar=setting.metavar, help=setting.help
        )


def pack(argv: Sequence[str], settings: Sequence[Setting]) -> list[str]:
    """Gather each repeatable option into one option with a JSON list as its value.

    Configuration files go first, so that typed options override them. ``--seed 0 1`` takes several words, ``--region A
    --region B`` may be repeated, and ``--method.OPTION VALUE`` belongs to the ``--method`` before it (``--judge`` alike).

    Raises:
        UsageError: If a value is missing, or an option of a method or judge stands before any.
    """
    repeatable = {setting.option: setting for setting in settings if setting.follows is not None}
    # A W&B agent types the names of settings as files have them: --cfg_scale=3.
    spelt = {f"--{s.name}": s.option for s in settings if "_" in s.name and not isinstance(s.default, bool)}
    found: dict[str, list[Any]] = {}
    files: list[str] = []
    rest: list[str] = []
    named = [setting.option for setting in settings if isinstance(setting.default, dict)]
    words = list(argv)
    while words:
        option, divider, value = words.pop(0).partition("=")
        option = spelt.get(option, option)
        if option == "--config":
            files += [option, value if divider else _values(option, words, None)[0]]
            continue
        base, _, inner = option.partition(".")
        if inner and base in named:
            rest.append(f"{option}={_mapped(base, inner, value if divider else _values(option, words, None)[0])}")
            continue
        if base not in repeatable or (inner and base not in _NAMED):
            rest.append(option + divider + value)
            if option == "--":
                rest, words = rest + words, []
            continue
        values = [value] if divider else _values(option, words, repeatable[base])
        if inner:
            _named_option(base, found.get(base, []), inner, values[0])
        else:
            found.setdefault(base, []).extend({"name": v} if base in _NAMED else v for v in values)
    packed = [f"{option}={json.dumps(values)}" for option, values in found.items()]
    return [*files, *packed, *rest]


def _values(option: str, words: list[str], setting: Setting | None) -> list[str]:
    if not words or words[0].startswith("--"):
        raise UsageError(f"{option}: expected {setting.metavar if setting else 'FILE'}; got nothing")
    values = [words.pop(0)]
    while words and setting is not None and setting.follows is not None and "." not in option[2:] and setting.follows(words[0]):
        values.append(words.pop(0))
    return values


def _mapped(base: str, key: str, value: str) -> str:
    """The value of ``--wandb.KEY`` or ``--trainer.KEY``, encoded so that jsonargparse decodes it to the intended type.

    W&B's names are texts even if they look like numbers; those are quoted here and :func:`attnguide.cli.values.wandb` unquotes.
    """
    try:
        read = scalar(value)
    except ValueError as error:
        raise UsageError(f"{base}.{key}: {error}") from error
    if base == "--wandb" and key != "tags":
        return value if isinstance(read, str) else json.dumps(value)
    return value if isinstance(read, str) else json.dumps(read)


def _named_option(base: str, named: list[Any], option: str, value: str) -> None:
    """Set an option of the newest method or judge.

    Raises:
        UsageError: If no method or judge stands before it, or the value is not YAML.
    """
    if not named:
        raise UsageError(f"{base}.{option}: expected a {base} before it, which it belongs to; got none")
    if option in ("name", "options"):
        raise UsageError(f"{base}.{option}: expected an option of {named[-1]['name']}, by its name; got {option!r}")
    try:
        named[-1][option] = scalar(value)
    except ValueError as error:
        raise UsageError(f"{base}.{option}: {error}") from error


def _config_files(argv: Sequence[str]) -> Iterator[str]:
    for position, word in enumerate(argv):
        if word == "--config":
            yield from argv[position + 1 : position + 2]
        elif word.startswith("--config="):
            yield word.removeprefix("--config=")


def check_config(path: str, settings: Sequence[Setting]) -> None:
    """Check that a configuration file exists and that all its keys and values are valid.

    Raises:
        UsageError: With file, line and key of the first error.
    """
    try:
        if not Path(path).is_file():
            raise UsageError(f"config: expected a YAML file; {path!r} does not exist")
    except OSError as error:
        raise UsageError(f"config: expected a YAML file; {path[:80]!r} cannot be read: {error.strerror}") from error
    try:
        root, content = read_yaml(Path(path))
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    if root is None:
        raise UsageError(f"{path}: expected settings as 'name: value'; the file is empty")
    if not isinstance(content, dict):
        raise UsageError(f"{path}, line 1: expected settings as 'name: value'; got something else")
    for key, _ in root.value:
        _check_entry(path, key, content.get(key.value), settings)
    if merged := [key for key in content if key not in {node.value for node, _ in root.value}]:
        raise UsageError(f"{path}: expected every setting by its name; got {shown(merged[0])}, which is none")


def _check_entry(path: str, key: Any, value: Any, settings: Sequence[Setting]) -> None:
    known = {setting.name: setting for setting in settings}
    where = f"{path}, line {key.start_mark.line + 1}"
    if key.value not in known:
        raise UsageError(f"{where}: unknown key {key.value!r}{nearest(str(key.value), known)}; known are {', '.join(known)}")
    try:
        known[key.value](value)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{where}: {one_line(error)}") from error


def _mended(message: str, settings: Sequence[Setting], argv: Sequence[str]) -> str:
    """An error message of jsonargparse, reworded as ``name: expected ...; got ...``."""
    options = ["--config", "--print_config", "--help", *(setting.option for setting in settings[1:])]
    if message.startswith("unrecognized arguments: "):
        first = message.removeprefix("unrecognized arguments: ").split("=")[0].partition(" ")[0]
        foreign = FOREIGN_NAMES.get(first.strip("-").replace("-", "_").lower())
        if ours := [setting.option for setting in settings if setting.name == foreign]:
            return f"unknown option {first!r} (did you mean {ours[0]!r}?); see --help"
    if message.startswith("unrecognized arguments: "):
        word = message.removeprefix("unrecognized arguments: ").split("=")[0]
        first = word.split()[0] if word.split() else "''"
        if settings and first == settings[0].option:
            return f"{settings[0].name}: expected by itself, in quotes; {first} is no option"
        if not first.startswith("-"):
            if listed := _listed(argv):
                return listed
            place = (
                f"{settings[0].name}: expected one argument (put it in quotes); got"
                if settings
                else "expected no argument; got"
            )
            return f"{place} {word!r}"
        return f"unknown option {first!r}{nearest(first, options)}; see --help"
    if found := re.match(r'Parser key "(\w+)": .*Got value: (.*)', message):
        return f"{found[1]}: expected --{found[1]}.KEY VALUE; got {found[2]!r}"
    if message.startswith("argument "):
        option, _, problem = message.removeprefix("argument ").partition(": ")
        name = option.split("/")[-1]
        return f"{name}: expected a value; got nothing" if problem == "expected one argument" else problem
    return message


def _listed(argv: Sequence[str]) -> str | None:
    """What to say where several words follow an option of a method or judge, which takes one value."""
    for place, word in enumerate(argv):
        base, dot, _ = word.partition(".")
        if base in _NAMED and dot and "=" not in word:
            after = list(itertools.takewhile(lambda one: not one.startswith("--"), argv[place + 1 :]))
            if len(after) > 1 and all(map(_is_number, after)):
                return f"{word}: expected one value, a list in brackets: '[{','.join(after)}]'; got {' '.join(after)}"
    return None


def _is_number(word: str) -> bool:
    return real_number(word) is not None
