"""Readers that turn text of a command line or a YAML value into a checked setting. Importing this needs no torch or numpy."""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnguide.cli.signatures import check_value, options_of
from attnguide.inputs import read_control
from attnguide.judges.names import judge_configs
from attnguide.layouts.boxes import box_format as read_box_format
from attnguide.loggers import check_loggers
from attnguide.models.controlnets import check_controlnet, read_controlnets
from attnguide.models.loras import checked_loras
from attnguide.models.names import check_device, check_dtype, check_offload, check_scheduler, nearest
from attnguide.text.fields import MOST_SEED
from attnguide.text.parsing import as_real, as_whole, check_depth, parse_json, quotes, real_number, shown, whole_number
from attnguide.text.yaml12 import yaml_value
from attnguide.weighted import SYNTAXES

MOST_ROWS = 100_000
"""Most seeds of a run, and most rows of a table."""

WANDB_KEYS = ("project", "name", "group", "tags")

Reader = Callable[[Any], Any]
"""Text or YAML value -> value of a setting; idempotent; raises ``ValueError`` with the expected and the given value."""


class Setting:
    """A setting of a command: its name, reader, default and help; callable, as jsonargparse wants types to be.

    Args:
        name: Key in YAML; ``--name`` on the command line.
        read: Parses and checks one value.
        default: Value if the user gives none; if it is ``None``, the value may be ``None`` too.
        help: Its text in the help.
        metavar: Placeholder of the value in the help; the name in capitals by default.
        option: Option on the command line; ``--name`` by default.
        follows: Makes the option repeatable; tells whether a further word after its first value belongs to it.

    Attributes:
        section: Heading of the help that lists it; see :func:`under`.
    """

    def __init__(
        self,
        name: str,
        read: Reader,
        default: Any,
        help: str,
        *,
        metavar: str = "",
        option: str = "",
        follows: Callable[[str], bool] | None = None,
    ) -> None:
        self.name, self.read, self.default, self.help = name, read, default, help
        self.option = option or "--" + name.replace("_", "-")
        self.metavar = metavar or name.upper()
        self.follows = follows
        self.section = ""
        self.__name__ = name

    def __call__(self, value: Any) -> Any:
        """Parse and check a value.

        Raises:
            argparse.ArgumentTypeError: ``name: expected ...; got ...``.
        """
        if (value is None and self.default is None) or value is argparse.SUPPRESS:  # a positional argument that is not typed
            return value
        try:
            return self.read(self._unpacked(value))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{self.name}: {error}".rstrip(".")) from error

    def _unpacked(self, value: Any) -> Any:
        """The list of values of a repeatable option, which :func:`~attnguide.cli.arguments.pack` encoded as JSON."""
        if self.follows is None or not isinstance(value, str) or not value.startswith("["):
            return value
        try:
            return parse_json(value)
        except ValueError:
            return value  # a text of a configuration file that happens to begin with a bracket


def under(section: str, settings: Sequence[Setting]) -> Sequence[Setting]:
    """The settings, with ``section`` as their heading in the help."""
    for setting in settings:
        setting.section = section
    return settings


def alone(word: str) -> bool:
    """``follows`` of an option that takes one word each time: always False."""
    return False


def more_controls(word: str) -> bool:
    """Whether a word after a control picture is one, too: ``TYPE=IMAGE``."""
    return re.match(r"[A-Za-z0-9_-]+=.", word) is not None


def more_seeds(word: str) -> bool:
    """``follows`` of seeds: whether a further word is a seed or a range of seeds."""
    return re.fullmatch(r"\d+(\.\.\d+)?", word) is not None


def scalar(text: Any) -> Any:
    """Text of a command line read as a YAML value; ``1e-3`` is a number."""
    if not isinstance(text, str):
        return text
    try:
        return yaml_value(text)
    except ValueError as error:
        raise ValueError(f"expected a YAML value; got {shown(text)} ({str(error).rstrip('.')})") from error


def text(value: Any) -> str:
    """Any text."""
    if isinstance(value, str):
        return value
    raise ValueError(f"expected text{quotes(value)}; got {shown(value)}")


def words(value: Any) -> str:
    """Text that is not blank."""
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError(f"expected words{quotes(value)}; got {shown(value)}")


def whole(least: int, multiple: int = 1, most: int = 10**9) -> Reader:
    """A whole number from ``least`` to ``most``, divisible by ``multiple``."""
    what = f"a whole number of at least {least}" + (f", a multiple of {multiple}" if multiple > 1 else "")

    def read(value: Any) -> int:
        number = _integer(value)
        if number is None or number < least or number % multiple:
            raise ValueError(f"expected {what}; got {shown(value)}")
        if number > most:
            raise ValueError(f"expected a whole number of at most {most}; got {shown(value)}")
        return number

    return read


def box_size(value: Any) -> list[int]:
    """Height and width in pixels: ``128``, ``128x192`` or ``[128, 192]``."""
    sides = value.split("x") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    numbers = [_integer(side) for side in sides]
    if len(numbers) not in (1, 2) or any(side is None or side < 1 for side in numbers):
        raise ValueError(f"expected a picture's side in pixels, or HEIGHTxWIDTH; got {shown(value)}")
    return [side for side in (numbers * 2)[:2] if side is not None]


def box_format(value: Any) -> str:
    """Name of a box format: ``xywh``, ``permille``, ``xyxy-pixels``."""
    named = text(value)
    read_box_format(named)
    return named


def number(value: Any) -> float:
    """A finite number."""
    found = real_number(value) if isinstance(value, str) else as_real(value)
    if found is not None and math.isfinite(found):
        return found
    raise ValueError(f"expected a finite number; got {shown(value)}")


def flag(value: Any) -> bool:
    """``true`` or ``false``."""
    if isinstance(value, bool):
        return value
    raise ValueError(f"expected true or false; got {shown(value)}")


def mapping(value: Any) -> dict[str, Any]:
    """A mapping with names as keys, nested at most as deeply as files may be."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        check_depth(value)
        return dict(value)
    raise ValueError(f"expected names and values; got {shown(value)}")


def names(value: Any) -> list[str]:
    """At least one name, each once."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items or not all(isinstance(item, str) and item.strip() for item in items) or len(set(items)) < len(items):
        raise ValueError(f"expected names, each once; got {shown(value)}")
    return items


def _unquoted(value: Any) -> Any:
    """The text without the double quotes that :func:`~attnguide.cli.arguments.pack` adds to ``1``, ``true`` and the like."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"' and not isinstance(scalar(value[1:-1]), str):
        return value[1:-1]
    return value


def wandb(value: Any) -> dict[str, Any]:
    """Project, name, group and tags of a W&B run."""
    given = {key: _unquoted(item) for key, item in mapping(value).items()}
    for key, item in given.items():
        if key not in WANDB_KEYS:
            raise ValueError(f"unknown key {shown(key)}{nearest(key, WANDB_KEYS)}; choose from {', '.join(WANDB_KEYS)}")
        texts = item if key == "tags" and isinstance(item, list | tuple) else [item]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{key}: expected text; got {shown(item)}")
    return given


def scheduler(value: Any) -> str:
    """The name of a noise scheduler."""
    return check_scheduler(text(value))


def syntax(value: Any) -> str:
    """Name of a prompt syntax."""
    if value in SYNTAXES:
        return str(value)
    raise ValueError(f"expected {' or '.join(SYNTAXES)}; got {shown(value)}")


def offload(value: Any) -> str:
    """Name of an offload mode: the part of a model that waits in the CPU's memory."""
    return check_offload(text(value))


def loras(value: Any) -> list[str]:
    """LoRAs, each ``PATH[:WEIGHT]``; their files are checked."""
    return [str(lora) for lora in checked_loras(value if isinstance(value, list | tuple) else [value])]


def controlnets(value: Any) -> list[str]:
    """ControlNets, each ``[TYPE=]PATH``; their folders are checked."""
    found = read_controlnets(value)
    for one in found:
        check_controlnet(one)
    return [str(one) for one in found]


def picture(value: Any) -> str:
    """Absolute path of a picture; that the file exists is checked with each row."""
    return str(Path(words(value)).expanduser().absolute())


def controls(value: Any) -> list[dict[str, Any]]:
    """Control pictures: ``TYPE=IMAGE[:SCALE]``, or mappings as in a table of rows."""
    found = [read_control(item) for item in (value if isinstance(value, list | tuple) else [value])]
    return [{**one.to_dict(), "image": picture(one.image)} for one in found]


def share(value: Any) -> float:
    """A number in (0, 1]."""
    if 0 < (found := number(value)) <= 1:
        return found
    raise ValueError(f"expected a number above 0 and at most 1; got {shown(value)}")


def dtype(value: Any) -> str:
    """The name of a precision."""
    return check_dtype(text(value))


def device(value: Any) -> str:
    """The name of a device."""
    return check_device(text(value))


def seeds(value: Any) -> list[int]:
    """Whole numbers: ``3``, ``[0, 1]``, ``"0..7"``, or a list of such."""
    found: list[int] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        found += _seed_range(item)
        if len(found) > MOST_ROWS:
            raise ValueError(f"expected at most {MOST_ROWS:,} seeds; got {shown(item)}")
    if not found:
        raise ValueError("expected at least one whole number, like 0 1 2 or 0..7; got none")
    repeated = [seed for seed, count in Counter(found).items() if count > 1]
    if repeated:
        raise ValueError(f"expected every seed once; got {min(repeated)} more than once")
    return found


def _seed_range(item: Any) -> Sequence[int]:
    single = _integer(item)
    if single is not None and 0 <= single <= MOST_SEED:
        return [single]
    ends = [whole_number(end) for end in item.split("..", 2)] if isinstance(item, str) else []
    first, last = ends if len(ends) == 2 else (None, None)
    if first is None or last is None or not 0 <= first <= last <= MOST_SEED:
        raise ValueError(f"expected whole numbers from 0 to {MOST_SEED}, like 0 1 2 or 0..7; got {shown(item)}")
    if last - first >= MOST_ROWS:
        raise ValueError(f"expected at most {MOST_ROWS:,} seeds; got {shown(item)}")
    return range(first, last + 1)


def _integer(value: Any) -> int | None:
    return whole_number(value) if isinstance(value, str) else as_whole(value)


def loggers(value: Any) -> list[str]:
    """Names of loggers: ``csv``, ``[wandb, csv]``, ``wandb,csv``; ``none`` for none."""
    items = value if isinstance(value, list | tuple) else [value]
    names = [name.strip() for item in items for name in (item.split(",") if isinstance(item, str) else [str(item)])]
    check_loggers(names)
    if "none" in names and len(set(names)) > 1:
        raise ValueError(f"expected none alone, or loggers; got {', '.join(names)}")
    return [name for name in dict.fromkeys(names) if name != "none"]


def default_loggers() -> list[str]:
    """Weights & Biases where it is installed, else CSV."""
    try:
        check_loggers(["wandb"])
    except ValueError:
        return ["csv"]
    return ["wandb"]


def regions(value: Any) -> list[Any]:
    """Places of phrases: ``PHRASE=x0,y0,x1,y1``, ``PHRASE=mask.png``, or mappings as in a table of rows."""
    items = value if isinstance(value, list | tuple) else [value]
    for item in items:
        if not isinstance(item, str | Mapping):
            raise ValueError(f"expected PHRASE=x0,y0,x1,y1 or PHRASE=mask.png; got {shown(item)}")
    return list(items)


def groups(value: Any) -> list[list[str]]:
    """Words that belong together, the noun last: ``red circle``, or lists of words."""
    items = value if isinstance(value, list | tuple) else [value]
    words = [item.split() if isinstance(item, str) else item for item in items]
    for group, item in zip(words, items, strict=True):
        if not isinstance(group, list | tuple) or not group or not all(isinstance(word, str) and word for word in group):
            raise ValueError(f"expected words of the prompt, the noun last, like 'red circle'; got {shown(item)}")
    return [list(group) for group in words]


def judges(value: Any) -> list[dict[str, Any]]:
    """Judges: ``shapes``, ``detector=MODEL``, ``module:Class``, mappings with options; or ``none``."""
    return judge_configs(value)


def methods(value: Any) -> list[dict[str, Any]]:
    """Methods with their options, each ``{"name": ..., option: value, ...}``; ``plain`` stands for none."""
    items = value if isinstance(value, list | tuple) else [value]
    return [method for method in map(_method, items) if method["name"] != "plain"]


def _method(item: Any) -> dict[str, Any]:
    given = {"name": item} if isinstance(item, str) else mapping(item)
    if not isinstance(given.get("name"), str):
        raise ValueError(f"expected a name, or a name and options; got {shown(item)}")
    name = given.pop("name")
    options = mapping(given.pop("options", None) or {})
    if twice := [key for key in options if key in given]:
        raise ValueError(f"{name}: option {twice[0]!r} is given twice")
    options = {**given, **options}
    if name == "plain" and not options:
        return {"name": name}
    known = options_of(name)
    for option, value in options.items():
        if option not in known:
            has = ", ".join(known) or "none"
            raise ValueError(f"{name} has no option {shown(option)}{nearest(option[:100], known)}; it has {has}")
        try:
            check_value(known[option], value)
        except ValueError as error:
            raise ValueError(f"{name}: {option}: {error}") from error
    return {"name": name, **options}
