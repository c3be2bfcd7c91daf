"""Make the README's figure: fixed prompts and seeds plain, with injected maps, and guided, with the asked boxes drawn.

python scripts/make_figures.py                       # writes docs/plain_vs_guided.png
python scripts/make_figures.py --model ./sd15 --out figure.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from attnguide.cli.plan import DEMO
from attnguide.models.load import load_model, quiet_libraries
from attnguide.prompt.regions import parse_region
from attnguide.records import replacing
from attnguide.sampling.table import sample_rows
from attnguide.types import MethodConfig, Sample
from attnguide.visual import contact_sheet, draw_regions

CELL = 224
"""Side of one picture in pixels."""

LIMIT = 500_000
"""Most bytes of a figure; with more the colours are reduced."""


@dataclass(frozen=True)
class Scene:
    """One line of the figure."""

    prompt: str
    regions: tuple[str, ...]
    seed: int


SCENES = (
    Scene(DEMO["prompt"], tuple(DEMO["regions"]), 0),
    Scene(
        "a green ring and a yellow heart on a gray background",
        ("green ring=0.05,0.05,0.45,0.45", "yellow heart=0.55,0.55,0.95,0.95"),
        1,
    ),
    Scene(
        "a yellow circle and a purple star on a white background",
        ("yellow circle=0.55,0.1,0.95,0.5", "purple star=0.1,0.5,0.5,0.9"),
        2,
    ),
)


def columns() -> list[tuple[str, tuple[MethodConfig, ...]]]:
    """Heading and methods of every column: plain, then the demonstration's methods."""
    found: list[tuple[str, tuple[MethodConfig, ...]]] = [("plain", ())]
    for method in DEMO["methods"]:
        options = {key: value for key, value in method.items() if key != "name"}
        found.append((method["name"], (MethodConfig(method["name"], options),)))
    return found


def rows() -> list[Sample]:
    """All pictures, line by line."""
    samples = []
    for number, scene in enumerate(SCENES):
        regions = tuple(parse_region(text) for text in scene.regions)
        common = Sample("row", scene.prompt, scene.seed, regions)
        for name, methods in columns():
            samples.append(replace(common, id=f"{number}-{name}", methods=methods))
    return samples


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG of at most ``LIMIT`` bytes."""
    for shown in (picture, picture.quantize(256), picture.quantize(64)):
        with replacing(path) as temporary:
            shown.save(temporary, optimize=True)
        if path.stat().st_size <= LIMIT:
            return


def main() -> None:
    """Sample and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "plain_vs_guided.png")
    args = parser.parse_args()
    quiet_libraries()
    samples = rows()
    results = {result.sample.id: result for result in sample_rows(load_model(args.model), samples)}
    width = len(columns())
    cells: list[list[Image.Image | None]] = [[]]
    for sample in samples:
        picture = results[sample.id].image
        shown = picture and picture.resize((CELL, CELL), Image.Resampling.LANCZOS)
        cells[-1].append(shown and draw_regions(shown, sample.regions))
        if len(cells[-1]) == width:
            cells.append([])
    labels = [f"{scene.prompt} (seed {scene.seed})" for scene in SCENES]
    save(contact_sheet(cells[:-1], column_labels=[name for name, _ in columns()], row_labels=labels, cell=CELL), args.out)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
