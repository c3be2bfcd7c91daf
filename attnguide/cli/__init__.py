"""The command line: ``attnguide`` with ``sample``, ``ablate``, ``maps``, ``report``, ``methods`` or ``models``.

Each subcommand is a file with ``run(argv) -> int``. Help and errors in the arguments come without loading torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from attnguide.cli.errors import UsageError, one_line

COMMANDS: dict[str, str] = {
    "sample": "make pictures: plain and steered, with maps, numbers and a log",
    "ablate": "run a table of cells spanned by axes: sheets, curves, a summary",
    "maps": "record where words look, as pictures that can be edited and used as regions",
    "report": "write a run folder as one page of HTML",
    "methods": "list methods, or show the options of one",
    "models": "list what --model takes",
}
"""Subcommand (a module of this package) and what it does."""


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
            *lines,
            "",
            "attnguide COMMAND --help tells more; attnguide --version tells the version.",
            "attnguide sample, without anything else, makes pictures on the embedded model.",
        ]
    )


def installed_version() -> str:
    """Version of the installed package; ``unknown`` where it is imported from a folder."""
    from importlib import metadata

    try:
        return metadata.version("attnguide")
    except metadata.PackageNotFoundError:
        return "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit status: 0; 1 if a row failed; 2 for a mistake in what was asked (one line on stderr, nothing written); 130 after
        Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"attnguide {installed_version()}")
        return 0
    try:
        if words[0] not in COMMANDS:
            from attnguide.models.names import nearest

            raise UsageError(f"unknown command {words[0]!r}{nearest(words[0], COMMANDS)}; choose from {', '.join(COMMANDS)}")
        status: int = importlib.import_module(f"attnguide.cli.{words[0]}").run(words[1:])
    except UsageError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except SystemExit as end:  # after --help and --print_config
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    return status
