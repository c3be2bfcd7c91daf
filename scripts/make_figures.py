"""Make the figures of docs/: the README's figure (fixed prompts and seeds under several methods, boxes drawn), and reduced
copies of ablations' sheets.

    python scripts/make_figures.py                       # writes docs/plain_vs_guided.png
    python scripts/make_figures.py --model ./sd15 --out figure.png
    attnguide ablate configs/ablations/number.yaml --seed 0 --out runs/number
    python scripts/make_figures.py --sheet runs/number/sheets/seed0.png --width 1600 --out docs/number.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from attnguide.cli.plan import DEMO
from attnguide.models.load import load_model, quiet_libraries
from attnguide.prompt.notation import parse_region
from attnguide.run_folder.files import replacing
from attnguide.sampling.table import sample_rows
from attnguide.sheets.grid import contact_sheet
from attnguide.sheets.overlays import draw_regions
from attnguide.types import MethodConfig, Sample

CELL = 224
"""Side of one picture in pixels."""

LIMIT = 400_000
"""Most bytes of a figure; larger ones get fewer colours."""


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


def smaller(picture: Image.Image, width: int) -> Image.Image:
    """The picture, at most ``width`` pixels wide."""
    if picture.width <= width:
        return picture
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def figure(model: str) -> Image.Image:
    """The README's figure, sampled now."""
    quiet_libraries()
    samples = rows()
    results = {result.sample.id: result for result in sample_rows(load_model(model), samples)}
    width = len(columns())
    cells: list[list[Image.Image | None]] = [[]]
    for sample in samples:
        picture = results[sample.id].image
        shown = picture and picture.resize((CELL, CELL), Image.Resampling.LANCZOS)
        cells[-1].append(shown and draw_regions(shown, sample.regions))
        if len(cells[-1]) == width:
            cells.append([])
    labels = [f"{scene.prompt} (seed {scene.seed})" for scene in SCENES]
    return contact_sheet(cells[:-1], column_labels=[name for name, _ in columns()], row_labels=labels, cell=CELL)


def main() -> None:
    """Sample and draw, or shrink."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "plain_vs_guided.png")
    parser.add_argument("--sheet", type=Path, default=None, help="a sheet to make smaller instead of sampling")
    parser.add_argument("--width", type=int, default=1600, help="of the smaller sheet, in pixels")
    args = parser.parse_args()
    if args.sheet is not None:
        if not args.sheet.is_file() or args.width < 1:
            parser.error(f"--sheet must be a picture's file and --width at least 1; got {args.sheet} and {args.width}")
        save(smaller(Image.open(args.sheet).convert("RGB"), args.width), args.out)
    else:
        save(figure(args.model), args.out)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
