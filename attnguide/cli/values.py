"""From text of a command line or a YAML value to a checked setting. Importing this needs neither torch nor numpy."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from attnguide.cli.signatures import check_value, options_of
from attnguide.loggers import check_loggers
from attnguide.models.names import check_device, check_dtype, check_scheduler, nearest

WANDB_KEYS = ("project", "name", "group", "tags")

Reader = Callable[[Any], Any]
"""Takes text or a YAML value, gives the setting; accepts its own results; raises ``ValueError`` naming what was expected."""


class Setting:
    """A reader under the name of its setting, as jsonargparse wants it.

    Args:
        name: Key in YAML; ``--name`` on the command line.
        read: Checks one value.
        default: Where the user says nothing; where it is ``None``, so may the value be.
        help: For people.
        metavar: Stands for the value in the help.
        option: How the command line calls it, where that differs from the name.
        follows: For an option that may be repeated: whether a further word after its first still belongs to it.
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
        self.__name__ = name

    def __call__(self, value: Any) -> Any:
        """Check a value.

        Raises:
            argparse.ArgumentTypeError: ``name: expected ...; got ...``.
        """
        if value is None and self.default is None:
            return None
        try:
            # Repeated options come from the command line as one JSON list.
            packed = self.follows is not None and isinstance(value, str) and value.startswith("[")
            return self.read(json.loads(value) if packed else value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{self.name}: {error}".rstrip(".")) from error


def scalar(text: Any) -> Any:
    """Text of a command line read as a YAML value; ``1e-3`` is a number."""
    if not isinstance(text, str):
        return text
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", text.strip()):
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"expected a YAML value; got {text!r}") from None


def text(value: Any) -> str:
    """Any text."""
    if isinstance(value, str):
        return value
    raise ValueError(f"expected text; got {value!r}")


def words(value: Any) -> str:
    """Text that says something."""
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError(f"expected words; got {value!r}")


def whole(least: int, multiple: int = 1) -> Reader:
    """A whole number of at least ``least``, divisible by ``multiple``."""
    what = f"a whole number of at least {least}" + (f", a multiple of {multiple}" if multiple > 1 else "")

    def read(value: Any) -> int:
        number = _integer(value)
        if number is None or number < least or number % multiple:
            raise ValueError(f"expected {what}; got {value!r}")
        return number

    return read


def box_size(value: Any) -> list[int]:
    """Height and width in pixels: ``128``, ``128x192`` or ``[128, 192]``."""
    sides = value.split("x") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    numbers = [_integer(side) for side in sides]
    if len(numbers) not in (1, 2) or any(side is None or side < 1 for side in numbers):
        raise ValueError(f"expected a picture's side in pixels, or HEIGHTxWIDTH; got {value!r}")
    return [side for side in (numbers * 2)[:2] if side is not None]


def number(value: Any) -> float:
    """A finite number."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if math.isfinite(found):
        return found
    raise ValueError(f"expected a finite number; got {value!r}")


def flag(value: Any) -> bool:
    """``true`` or ``false``."""
    if isinstance(value, bool):
        return value
    raise ValueError(f"expected true or false; got {value!r}")


def mapping(value: Any) -> dict[str, Any]:
    """Names and values."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise ValueError(f"expected names and values; got {value!r}")


def names(value: Any) -> list[str]:
    """At least one name, each once."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items or not all(isinstance(item, str) and item.strip() for item in items) or len(set(items)) < len(items):
        raise ValueError(f"expected names, each once; got {value!r}")
    return items


def wandb(value: Any) -> dict[str, Any]:
    """What a W&B run is called and filed under."""
    given = mapping(value)
    for key, item in given.items():
        if key not in WANDB_KEYS:
            raise ValueError(f"unknown key {key!r}{nearest(key, WANDB_KEYS)}; choose from {', '.join(WANDB_KEYS)}")
        texts = item if key == "tags" and isinstance(item, list | tuple) else [item]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{key}: expected text; got {item!r}")
    return given


def scheduler(value: Any) -> str:
    """The name of a noise scheduler."""
    return check_scheduler(text(value))


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
    if not found:
        raise ValueError("expected at least one whole number, like 0 1 2 or 0..7; got none")
    repeated = [seed for seed, count in Counter(found).items() if count > 1]
    if repeated:
        raise ValueError(f"expected every seed once; got {min(repeated)} more than once")
    return found


def _seed_range(item: Any) -> list[int]:
    single = _integer(item)
    if single is not None and single >= 0:
        return [single]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", item.strip()) if isinstance(item, str) else None
    if ends and int(ends[1]) <= int(ends[2]) < int(ends[1]) + 1_000_000:
        return list(range(int(ends[1]), int(ends[2]) + 1))
    raise ValueError(f"expected whole numbers of at least 0, like 0 1 2 or 0..7; got {item!r}")


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,18}", value.strip()) else None


def loggers(value: Any) -> list[str]:
    """Names of loggers: ``csv``, ``[wandb, csv]``, ``wandb,csv``; ``none`` for none."""
    items = value if isinstance(value, list | tuple) else [value]
    names = [name.strip() for item in items for name in (item.split(",") if isinstance(item, str) else [str(item)])]
    check_loggers(names)
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
            raise ValueError(f"expected PHRASE=x0,y0,x1,y1 or PHRASE=mask.png; got {item!r}")
    return list(items)


def groups(value: Any) -> list[list[str]]:
    """Words that belong together, the noun last: ``red circle``, or lists of words."""
    items = value if isinstance(value, list | tuple) else [value]
    words = [item.split() if isinstance(item, str) else item for item in items]
    for group, item in zip(words, items, strict=True):
        if not isinstance(group, list | tuple) or not group or not all(isinstance(word, str) and word for word in group):
            raise ValueError(f"expected words of the prompt, the noun last, like 'red circle'; got {item!r}")
    return [list(group) for group in words]


def methods(value: Any) -> list[dict[str, Any]]:
    """Methods with their options, each ``{"name": ..., option: value, ...}``; ``plain`` stands for none."""
    items = value if isinstance(value, list | tuple) else [value]
    return [method for method in map(_method, items) if method["name"] != "plain"]


def _method(item: Any) -> dict[str, Any]:
    given = {"name": item} if isinstance(item, str) else mapping(item)
    if not isinstance(given.get("name"), str):
        raise ValueError(f"expected a name, or a name and options; got {item!r}")
    given |= mapping(given.pop("options", None) or {})
    name, options = given["name"], {key: value for key, value in given.items() if key != "name"}
    if name == "plain" and not options:
        return {"name": name}
    known = options_of(name)
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}{nearest(option, known)}; it has {', '.join(known)}")
        try:
            check_value(known[option], value)
        except ValueError as error:
            raise ValueError(f"{name}: {option}: {error}") from error
    return {"name": name, **options}
