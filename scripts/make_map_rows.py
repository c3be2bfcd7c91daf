"""Write rows that ask where maps may come from, and for which words: ``python scripts/make_map_rows.py --out runs/map_rows``.

The benchmark's prompts with two objects, and those with a background, as tables that `attnguide eval` takes:

    first.jsonl, second.jsonl    a box for one of the two objects alone
    seed.jsonl                   each object's map as it was in the same prompt's picture of another seed
    picture.jsonl                each object's map in a picture that shows both in their boxes (pictures/), noised
    background.jsonl             a box for every object of the prompts that name a background
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from attnguide.shapes.layouts import Layout, choose_layouts, layout_scene, load_layouts, spread
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import BACKGROUNDS

SEED = 100
"""Seed of the pictures that ``seed.jsonl`` takes maps from."""


def boxes(row: Layout, *which: int) -> list[str]:
    """Regions of some of the row's objects: their boxes as fractions."""
    return [f"{row.phrases[index]}={','.join(f'{corner:.6g}' for corner in row.boxes[index])}" for index in which]


def borrowed(row: Layout, source: str) -> list[str]:
    """Regions of all of the row's objects: their maps in one source."""
    return [f"{phrase}={source}" for phrase in row.phrases]


def lines(rows: Iterable[Layout], regions: Callable[[Layout], list[str]]) -> str:
    """JSON lines of the rows with the regions that a function gives each."""
    made = []
    for row in rows:
        tags = {"category": row.category, "held_out": row.held_out}
        made.append(json.dumps({"id": row.id, "prompt": row.prompt, "regions": regions(row), "tags": tags}))
    return "".join(line + "\n" for line in made)


def draw(row: Layout, folder: Path) -> Path:
    """Draw the row's objects in their boxes, on the prompt's background or white; returns the file."""
    background = next((name for name in BACKGROUNDS if f"{name} background" in row.prompt), "white")
    file = folder / f"{row.id}.png"
    render(layout_scene(row, background)).save(file)
    return file.resolve()


def main(argv: list[str] | None = None) -> None:
    """Write the tables and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/map_rows"))
    parser.add_argument("--prompts", type=int, default=None, help="so many of each table, spread evenly; all by default")
    args = parser.parse_args(argv)
    if args.prompts is not None and args.prompts < 1:
        parser.error(f"--prompts must be at least 1; got {args.prompts}")
    layouts = load_layouts("benchmark")
    rows = choose_layouts(layouts, ["two_objects"], args.prompts)
    grounds = spread([layout for layout in layouts if "background" in layout.prompt], args.prompts)
    pictures = args.out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    tables = {
        "first": lines(rows, lambda row: boxes(row, 0)),
        "second": lines(rows, lambda row: boxes(row, 1)),
        "seed": lines(rows, lambda row: borrowed(row, f"seed:{SEED}")),
        "picture": lines(rows, lambda row: borrowed(row, f"noise:{draw(row, pictures)}")),
        "background": lines(grounds, lambda row: boxes(row, *range(len(row.phrases)))),
    }
    for name, text in tables.items():
        (args.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{args.out / name}.jsonl: {text.count(chr(10))} prompts")


if __name__ == "__main__":
    main()
