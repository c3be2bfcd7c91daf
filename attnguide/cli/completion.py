"""``attnguide completion``: prints a shell script that completes subcommands, options and names."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from attnguide.cli import COMMANDS, DEBUG
from attnguide.cli.arguments import parse
from attnguide.cli.errors import UsageError
from attnguide.cli.signatures import options_of
from attnguide.cli.values import WANDB_KEYS, Setting
from attnguide.loggers import LOGGERS
from attnguide.methods import METHODS
from attnguide.models.names import DTYPE_NAMES, SCHEDULERS

DESCRIPTION = """\
Print a script that makes a shell complete subcommands, options, and the names of methods, schedulers and devices."""

EXAMPLES = """\
examples:
  attnguide completion bash > ~/.local/share/bash-completion/completions/attnguide
  attnguide completion zsh > ~/.zfunc/_attnguide   # a folder of $fpath
  attnguide completion tcsh > ~/.attnguide.csh     # source it in ~/.tcshrc"""

SHELLS = ("bash", "zsh", "tcsh")

_CHOICES: dict[str, Sequence[str]] = {
    "methods": ("plain", *METHODS),
    "name": tuple(METHODS),
    "scheduler": tuple(SCHEDULERS),
    "device": ("cpu", "cuda", "mps"),
    "dtype": DTYPE_NAMES,
    "logger": LOGGERS,
    "by": ("invert", "noise"),
    "shell": SHELLS,
}
"""Name of a setting -> its closed set of values."""

_FILES = ("FILE", "MODEL")
_FOLDERS = ("DIR", "FOLDER")


def _shell(value: Any) -> str:
    if value in SHELLS:
        return str(value)
    raise ValueError(f"expected one of {', '.join(SHELLS)}; got {value!r}")


def settings() -> list[Setting]:
    """Settings of ``attnguide completion``."""
    return [Setting("shell", _shell, None, f"one of {', '.join(SHELLS)}", metavar="SHELL")]


def run(argv: Sequence[str]) -> int:
    """Print the script of the shell that ``argv`` names."""
    asked = parse("attnguide completion", argv, settings(), description=DESCRIPTION, examples=EXAMPLES)
    if asked["shell"] is None:
        raise UsageError(f"shell: expected one of {', '.join(SHELLS)}; got none")
    try:
        import shtab
    except ImportError as error:
        raise UsageError("completion needs a package that is not installed: pip install 'attnguide[completion]'") from error
    print(shtab.complete(command_parser(shtab.FILE, shtab.DIRECTORY), asked["shell"]))
    return 0


def command_parser(file: Any, folder: Any) -> argparse.ArgumentParser:
    """An argparse parser of all subcommands and options, for shtab to read; it parses nothing.

    Args:
        file: Value of ``action.complete`` for options that take a file.
        folder: Value of ``action.complete`` for options that take a folder.
    """
    parser = argparse.ArgumentParser("attnguide")
    parser.add_argument("--version", action="store_true", help="tell the version")
    commands = parser.add_subparsers()
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"attnguide.cli.{name}")
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--config", help="YAML with any of these settings").complete = file  # type: ignore[attr-defined]
        command.add_argument("--print_config", action="store_true", help="print the settings and end")
        command.add_argument(DEBUG, action="store_true", help="show where an error comes from")
        for position, setting in enumerate(module.settings()):
            for option in [setting.name] if position == 0 else _options(setting):
                _add(command, option, setting, file, folder)
    return parser


def _options(setting: Setting) -> Iterator[str]:
    """Option strings of a setting; one with keys (``--wandb``, ``--method``) gets ``--name.KEY`` for each known key."""
    if not isinstance(setting.default, dict):
        yield setting.option
    if setting.name == "wandb":
        yield from (f"{setting.option}.{key}" for key in WANDB_KEYS)
    if setting.name == "methods":
        yield from (f"{setting.option}.{key}" for key in sorted({key for method in METHODS for key in options_of(method)}))


def _add(command: argparse.ArgumentParser, option: str, setting: Setting, file: Any, folder: Any) -> None:
    if isinstance(setting.default, bool):
        command.add_argument(option, action="store_true", help=setting.help)
        return
    action = command.add_argument(option, metavar=setting.metavar, help=setting.help)
    if setting.name in _CHOICES and option in (setting.name, setting.option):
        action.choices = _CHOICES[setting.name]
    elif setting.metavar in _FILES:
        action.complete = file  # type: ignore[attr-defined]
    elif setting.metavar in _FOLDERS:
        action.complete = folder  # type: ignore[attr-defined]
