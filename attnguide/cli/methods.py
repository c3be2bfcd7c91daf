"""``attnguide methods``: lists the methods, or the options of one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from attnguide.cli.arguments import parse
from attnguide.cli.errors import UsageError
from attnguide.cli.signatures import options_of
from attnguide.cli.values import Setting, words
from attnguide.method_docs import method_meaning, option_meanings, option_range
from attnguide.methods import GROUP, METHODS, method_info
from attnguide.outside import entry_point_targets

EXAMPLES = """\
examples:
  attnguide methods
  attnguide methods mask_guidance
  attnguide methods my_file:MyGuidance"""

_KINDS = {"PerRow": "float, or one a row", "Thresholds": "progress -> value, or one such table a row"}
"""Type of an option -> the words that describe it."""

DESCRIPTION = "List methods, or show the options of one."


def settings() -> list[Setting]:
    """Settings of ``attnguide methods``."""
    return [Setting("name", words, None, "method whose options to show", metavar="NAME")]


def run(argv: Sequence[str]) -> int:
    """Print a line for each method or, if a method is named, its options with their meanings."""
    asked = parse("attnguide methods", argv, settings(), description=DESCRIPTION, examples=EXAMPLES)
    if asked["name"] is None:
        named = {**METHODS, **{name: method_info(name) for name in entry_point_targets(GROUP)}}
        print("\n".join(_lines({method: f"{info.family}: {info.summary}" for method, info in named.items()})))
        return 0
    try:
        info, options = method_info(asked["name"]), options_of(asked["name"])
    except ValueError as error:
        raise UsageError(str(error)) from error
    needs = {"place": "needs a region with a place", "phrase": "needs a region's phrase", None: "needs no region"}[
        info.needs_regions
    ]
    reads = "; reads groups of words (--group), found by rule where none are given" if info.reads_groups else ""
    print(f"{asked['name']}  {info.family}: {info.summary}; {needs}{reads}\n")
    print(textwrap.indent(method_meaning(asked["name"]).replace("``", ""), "  "), end="\n\n")
    meanings = option_meanings(asked["name"])
    for option in options.values():
        told = ", ".join(
            filter(None, [_KINDS.get(option.annotation, option.annotation), option_range(asked["name"], option.name)])
        )
        print(f"  {option.name} = {option.default or '(required)'}  {told}".rstrip())
        print(textwrap.fill(meanings.get(option.name, ""), 96, initial_indent=" " * 6, subsequent_indent=" " * 6) or "      ")
    return 0


def _lines(texts: dict[str, str]) -> list[str]:
    width = max(map(len, texts))
    return [f"{name:<{width}}  {text}" for name, text in texts.items()]
