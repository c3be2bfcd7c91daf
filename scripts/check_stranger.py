"""Types the commands of README and docs in order, with the package installed from a wheel and away from the checkout.

python scripts/check_stranger.py                         # a minute or two
python scripts/check_stranger.py README.md docs/regions.md

A wheel is built and installed into an environment of its own, which sees the libraries of the one that runs this script but not
the checkout. Each page gets an empty folder, in which its ``bash`` blocks are typed line by line. README's first
``attnguide sample`` runs as it is typed, by the installed command; what else makes pictures makes them in few steps and of few
seeds, within one process, which spares loading the libraries again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

QUICK: dict[str, tuple[str, ...]] = {
    "sample": ("--steps", "2", "--logger", "none"),
    "maps": ("--steps", "4"),
    "ablate": ("--steps", "2", "--logger", "none", "--no-maps"),
    "eval": ("--steps", "2", "--logger", "none", "--best-of", "0"),
}
"""Command -> options that are added so that it ends soon."""

ELSEWHERE = ("ui", "dashboard", "completion")
"""Commands that need an extra or do not end by themselves; the suite has tests of each."""

RUNNER = """
import contextlib, io, json, os, sys, time
from pathlib import Path
import attnguide
from attnguide.cli import main
assert Path(attnguide.__file__).is_relative_to(sys.prefix), attnguide.__file__
for kind, *words in json.load(sys.stdin):
    if kind == "cd":
        os.chdir(words[0])
    elif kind == "file":
        Path(words[0]).write_text(words[1], encoding="utf-8")
    else:
        said, began = io.StringIO(), time.monotonic()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main(words)
        print(f"{'ok' if status == 0 else 'FAILED':6} {time.monotonic() - began:5.1f} s  attnguide", *words, flush=True)
        if status:
            print(said.getvalue())
            sys.exit(1)
"""


def main() -> int:
    """Build, install, type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="README and all of docs by default")
    pages = parser.parse_args().pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        python = installed(Path(temporary))
        print(f"installed after {time.monotonic() - began:.0f} s", flush=True)
        folder = Path(temporary) / "empty"
        folder.mkdir()
        if ROOT / "README.md" in [page.resolve() for page in pages]:
            typed([python.with_name("attnguide"), "sample"], folder)
        orders = [order for page in pages for order in page_orders(page, Path(temporary) / page.stem)]
        print(run([python, "-c", RUNNER], folder, json.dumps(orders)), end="")
    print(f"{sum(kind == 'run' for kind, *_ in orders)} commands of {len(pages)} pages, {time.monotonic() - began:.0f} s")
    return 0


def installed(folder: Path) -> Path:
    """Python of a new environment with the package from a wheel; other libraries are those of this one."""
    source = folder / "source"
    for name in ("attnguide", "configs"):  # building leaves files behind, and takes those that an earlier build left
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], folder)
    (wheel,) = folder.glob("attnguide-*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], folder)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # What a .pth file names is searched, but not for further .pth files: an editable checkout stays out of sight.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def page_orders(page: Path, folder: Path) -> Iterator[tuple[str, ...]]:
    """Orders of a page for an empty folder: changes of folder, commands, and files to write."""
    folder.mkdir(exist_ok=True)
    yield "cd", str(folder)
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if named := re.match(r"# (\w+\.(?:py|yaml))\n", block):
            yield "file", named[1], block
        if language == "bash":
            yield from block_orders(block)


def block_orders(block: str) -> Iterator[tuple[str, ...]]:
    """Changes of folder and commands of one block; installing is done."""
    for line in re.split(r" && |\n", block.replace("\\\n", " ")):
        words = shlex.split(line, comments=True)
        if words[:1] == ["cd"]:
            yield "cd", words[1]
        if words[:1] == ["attnguide"] and words[1] not in ELSEWHERE:
            yield from quickly(words[1:])


def quickly(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A command with options that make it end soon; none for the bare ``sample``, which is run as it is typed."""
    if list(words) == ["sample"]:
        return
    asks_only = "--print_config" in words or "--dry-run" in words
    seed = ("--seed", "0") if words[0] in ("sample", "ablate") and not {"--seed", "--rows", "--config"} & set(words) else ()
    yield ("run", *words, *(() if asks_only else (*QUICK.get(words[0], ()), *seed)))


def typed(command: Sequence[str | Path], folder: Path) -> None:
    """Run a command as it is typed, and say so."""
    run(command, folder)
    print("ok     as typed  attnguide", *command[1:], flush=True)


def run(command: Sequence[str | Path], folder: Path, given: str | None = None) -> str:
    """Run a command away from the checkout; ends the script if it fails.

    Returns:
        Text on its standard output.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=folder, env=environment, input=given, text=True, capture_output=True, check=False)
    if ended.returncode:
        sys.exit(f"{ended.stdout}{ended.stderr}\n{command[0]} ended with {ended.returncode}")
    return ended.stdout


if __name__ == "__main__":
    sys.exit(main())
