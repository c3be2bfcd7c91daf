"""The command line ``attnguide``, with one module for each subcommand in :data:`COMMANDS`.

Each module has ``settings()`` and ``run(argv) -> int``. Help and errors in the arguments are shown without importing torch.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from attnguide.cli.errors import UsageError, one_line, reason, verdict
from attnguide.cli.signals import ended_like_ctrl_c
from attnguide.cli.streams import tolerant_streams

DEBUG = "--debug"
"""Option that shows the traceback of an error, at any position of the command line."""

COMMANDS: dict[str, str] = {
    "sample": "make pictures: plain and steered, with maps, numbers and a log",
    "ablate": "run a table of cells spanned by axes: sheets, curves, a summary",
    "eval": "compare methods on a layout benchmark: judged pictures, tables of a paper",
    "maps": "record where words look, as pictures that can be edited and used as regions",
    "tune": "find a method's strength on a model, without a judge",
    "report": "write a run folder as one page of HTML",
    "ui": "draw regions with the mouse, in the browser",
    "dashboard": "arrange logged runs as a W&B workspace and a report",
    "methods": "list methods, or show the options of one",
    "models": "list what --model takes",
    "init": "copy configurations and example inputs into a folder",
    "completion": "print a script that completes commands and options in a shell",
}
"""Subcommand (a module of this package) -> its summary in the help."""


TOUR: dict[str, str] = {
    "attnguide sample": "pictures on the embedded model, plain and steered; it says where their page is",
    "attnguide methods mask_guidance": "what a method does, and its options",
    'attnguide sample "a red circle on white" --region "red circle=0,0,0.5,0.5"': "a prompt of yours, a word where you want it",
    "attnguide init study && cd study": "configurations and examples, each with its command in the first line",
    "attnguide ablate configs/ablations/strength.yaml --dry-run": "a grid of settings; without --dry-run it is made",
}
"""Five first commands to type in an empty folder, in order -> what each does."""


def usage() -> str:
    """The top-level help."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: attnguide COMMAND [--option value ...]",
            "",
            "Steer text-to-image diffusion models through their attention maps.",
            "",
            "five commands to begin with, in an empty folder:",
            *(f"  {command}\n      {what}" for command, what in TOUR.items()),
            "",
            "commands:",
            *lines,
            "",
            "attnguide COMMAND --help tells more; attnguide --version tells the version.",
            "attnguide COMMAND ... --debug shows where an error comes from.",
        ]
    )


def installed_version() -> str:
    """Version of the installed package; ``unknown`` if it is not installed but imported from a checkout."""
    from importlib import metadata

    try:
        return metadata.version("attnguide")
    except metadata.PackageNotFoundError:
        return "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit status: 0; 1 if a row failed, the run stopped or standard output could not be written; 2 for a mistake in what was
        asked (one line on stderr, nothing written); 130 after Ctrl-C, SIGTERM or SIGHUP.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG in words
    words = [word for word in words if word != DEBUG]
    with tolerant_streams() as (out, _), _warnings_in_one_line(debug):
        with _told(debug) as outcome:
            command = _command(words)
            outcome.status = 0 if command is None else command.run(words[1:])
        out.flush()
        if out.failure is not None:
            print(f"error: standard output could not be written ({reason(out.failure)})", file=sys.stderr)
            return outcome.status or 1
    return outcome.status


@dataclass
class _Outcome:
    """Outcome of a command.

    Attributes:
        status: Exit status, as :func:`main` returns it.
    """

    status: int = 0


@contextmanager
def _told(debug: bool) -> Iterator[_Outcome]:
    """Turn an exception of the block into a line on standard error and an exit status."""
    outcome = _Outcome()
    try:
        with ended_like_ctrl_c():
            yield outcome
    except SystemExit as end:  # after --help and --print_config
        outcome.status = end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        outcome.status = 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        outcome.status, message = verdict(error)
        print(f"error: {message}", file=sys.stderr)


def _command(words: Sequence[str]) -> ModuleType | None:
    """The module of the subcommand; ``None`` if help or the version was printed instead.

    Raises:
        UsageError: If there is no such command, its words are not text, or the current folder was removed.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return None
    if words[0] == "--version":
        print(f"attnguide {installed_version()}")
        return None
    _check_text(words)
    if words[0] not in COMMANDS:
        from attnguide.models.names import nearest

        raise UsageError(f"unknown command {words[0]!r}{nearest(words[0], COMMANDS)}; choose from {', '.join(COMMANDS)}")
    _check_here()
    return importlib.import_module(f"attnguide.cli.{words[0]}")


def _check_here() -> None:
    """Refuse to run in a folder that was removed; the system's own message would not name it.

    Raises:
        UsageError: If the current folder does not exist.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(f"the current folder is gone ({reason(error)}); change to one that exists") from error


def _check_text(words: Sequence[str]) -> None:
    """Refuse words with NUL or bytes that are no UTF-8, which no file of a run could hold.

    Raises:
        UsageError: With the option's name.
    """
    for before, word in itertools.pairwise(["", *words]):
        if "\0" in word or any("\ud800" <= letter <= "\udfff" for letter in word):
            option, divider, _ = word.partition("=") if word.startswith("--") else (before, "", "")
            place = f"{option}: " if option.startswith("--") and (divider or option == before) else ""
            raise UsageError(f"{place}expected text in UTF-8 without NUL; got {word!r}")


@contextmanager
def _warnings_in_one_line(debug: bool) -> Iterator[None]:
    """Show this package's warnings as lines like errors, and none of the libraries'; with ``--debug`` all as Python does."""
    package = str(Path(__file__).parents[1])

    def show(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
        if filename.startswith(package):
            print(f"warning: {one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = show  # type: ignore[assignment]
        yield
