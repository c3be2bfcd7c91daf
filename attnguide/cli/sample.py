"""``attnguide sample``: makes pictures, plain and steered, with heat maps, metrics and logs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from attnguide.cli.arguments import parse
from attnguide.cli.errors import UsageError
from attnguide.cli.folders import local_path
from attnguide.cli.settings import run_settings
from attnguide.cli.values import Setting

DESCRIPTION = """\
Make pictures of a prompt: plain, and steered by methods, with the same seeds. Without a prompt: a demonstration on the
embedded model. Everything goes to one folder: pictures, heat maps, records.csv, sheet.png, report.html, config.yaml."""

EXAMPLES = """\
examples:
  attnguide sample
  attnguide sample "a red circle and a blue square" --region "red circle=0.05,0.25,0.45,0.75" --seed 0..3
  attnguide sample "a cat and a dog" --model ./sd15 --region "cat=cat.png" --region "dog=0.5,0.2,1,0.9" \\
      --method mask_guidance --method.step_size 40 --method inject7 --method.scale 2
  attnguide sample --rows rows.csv --method attend_and_excite --batch-size 4 --out runs/rows
  attnguide sample --config runs/rows/config.yaml --out runs/again
  attnguide sample --resume --out runs/rows
  attnguide methods mask_guidance"""


def settings() -> list[Setting]:
    """Settings of ``attnguide sample``."""
    return run_settings()


def going_on(argv: Sequence[str], inner: str = "") -> list[str]:
    """The words with, for ``--resume``, ``--config`` of the run in ``--out`` before them, so that settings need no retyping.

    Args:
        argv: Words after the command.
        inner: Subfolder whose ``config.yaml`` is used if the run folder has none yet.
    """
    words = list(argv)
    if "--resume" not in words:
        return words
    from attnguide.run_folder.made_with import CONFIG_FILE

    out = next((after for word, after in itertools.pairwise(words) if word == "--out"), None)
    out = next((word.removeprefix("--out=") for word in words if word.startswith("--out=")), out)
    if not out:
        return words
    try:
        folder = Path(local_path(out))
    except ValueError as error:
        raise UsageError(f"out: {error}") from error
    kept = folder / CONFIG_FILE
    if inner and not kept.is_file():
        kept = folder / inner / CONFIG_FILE
    return ["--config", str(kept), *words] if kept.is_file() else words


def run(argv: Sequence[str]) -> int:
    """Run the command; see :func:`attnguide.cli.main` for the status."""
    asked = parse("attnguide sample", going_on(argv), settings(), description=DESCRIPTION, examples=EXAMPLES)
    if asked["resume"] and asked["out"] and asked["prompt"] is None and asked["rows"] is None:
        from attnguide.run_folder.made_with import CONFIG_FILE

        there = Path(asked["out"], CONFIG_FILE).is_file()
        holds = f"a {CONFIG_FILE} that names no prompt and no rows" if there else f"no {CONFIG_FILE}"
        raise UsageError(f"out: expected the folder of a run to go on with; {asked['out']!r} holds {holds}")
    from attnguide.cli.plan import make_plan

    plan = make_plan(asked)
    from attnguide.cli.execute import execute

    return execute(plan)
