"""``attnguide init``: copies configurations and example inputs into the user's folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from attnguide.cli.arguments import parse
from attnguide.cli.errors import RunError, UsageError, reason
from attnguide.cli.folders import filling, local_path
from attnguide.cli.values import Setting

DESCRIPTION = """\
Copy the configurations that come with attnguide into DIR/configs: methods with their papers' settings, ablations, models,
trainers, and a table, a mask and a drawing to try them with. Each .yaml begins with the command that runs it, typed in DIR.
Nothing is overwritten."""

EXAMPLES = """\
examples:
  attnguide init
  attnguide init study && cd study && attnguide sample --config configs/methods/shapes/box_diff.yaml"""

CONFIGS = "configs"
_DATA = Path("share", "attnguide")
"""Folder of a wheel's data files, below the installation prefix."""


def settings() -> list[Setting]:
    """Settings of ``attnguide init``."""
    return [Setting("folder", local_path, ".", "where configs/ is made; the working directory by default", metavar="DIR")]


def run(argv: Sequence[str]) -> int:
    """Copy the files and print the next command to type."""
    asked = parse("attnguide init", argv, settings(), description=DESCRIPTION, examples=EXAMPLES)
    folder = Path(asked["folder"])
    source = configs_beside(Path(__file__).parents[1])
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    target = folder / CONFIGS
    taken = [path for path in (*(target / file for file in files), target) if os.path.lexists(path)]
    if taken:
        raise UsageError(f"folder: expected one without {CONFIGS}/; {str(taken[0])!r} is there already; choose another")
    try:
        with filling(folder) as temporary:
            for file in files:
                copy = temporary / CONFIGS / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes((source / file).read_bytes())
    except OSError as error:
        raise UsageError(f"folder: {str(folder)!r} cannot be written ({reason(error)}); choose another") from error
    print(f"{len(files)} files in {target}: {', '.join(sorted({file.parts[0] for file in files}))}")
    away = [] if folder.resolve() == Path.cwd() else [f"cd {folder}"]
    print(" && ".join([*away, f"attnguide sample --config {CONFIGS}/methods/shapes/box_diff.yaml"]))
    return 0


def configs_beside(package: Path) -> Path:
    """The folder ``configs`` of the package's checkout, or of the wheel it was installed from.

    Args:
        package: Folder of the package. A wheel's data lies below one of its parents, whether it was installed into an
            environment, for a user, or with ``--target`` (for which pip's own record of files is wrong).

    Raises:
        RunError: If there is no such folder.
    """
    checkout = package.parent
    places = [checkout / CONFIGS] if (checkout / "pyproject.toml").is_file() else []
    places += [parent / _DATA / CONFIGS for parent in package.parents]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise RunError(f"the configurations that come with attnguide are not beside {str(package)!r}; install it again")
    return found
