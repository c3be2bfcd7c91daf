"""Every method on the shapes benchmark by `attnguide eval`; also how much editing methods keep of the source, and operations.

    python scripts/bench_methods.py                              # all methods, all categories, 4 seeds a prompt
    python scripts/bench_methods.py --methods box_diff masactrl --limit 8
    python scripts/bench_methods.py --costs                      # operations and memory too, a process per method

Settings come from configs/methods/shapes/, chosen on the development file, and where a method has no file there from its
paper's, configs/methods/. Methods that edit another prompt's picture are compared on rows of one or two objects, whose first
object has another colour in the source. Runs lie in OUT/places, OUT/editing and OUT/source and go on where they stopped;
OUT/table.md has their tables.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from bench_cost import NoModules
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attnguide.benchmark import layout_samples
from attnguide.cli import main as attnguide
from attnguide.engine.ledger import high_water_mb
from attnguide.judges.boxes import box_iou
from attnguide.methods import METHODS, method_info
from attnguide.models.load import load_model, quiet_libraries
from attnguide.sampling.table import sample_rows
from attnguide.shapes.expectation import expectation_from_prompt
from attnguide.shapes.judge import judge
from attnguide.shapes.layouts import Layout, choose_layouts, layout_scene, load_layouts
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import COLORS
from attnguide.types import PLAIN, MethodConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "methods"
EDITING = ("prompt_to_prompt", "cross_attention_control", "masactrl", "plug_and_play")
EDITABLE = ("single", "two_objects", "color_attribution")
ALONE = ("map_injection",)
"""A method that is left out, because its variants are methods of their own."""


def method_file(name: str) -> Path:
    """Settings chosen for the embedded model, or published ones.

    Raises:
        ValueError: If there is no such method.
    """
    method_info(name)
    tuned = CONFIGS / "shapes" / f"{name}.yaml"
    return tuned if tuned.exists() else CONFIGS / f"{name}.yaml"


def source_layout(layout: Layout) -> Layout:
    """The layout with its first object's colour replaced by the next colour that no object of it has.

    Example:
        "a red circle and a blue square" becomes "a green circle and a blue square".
    """
    taken = {name.split()[0] for name in layout.names}
    color, colors = layout.names[0].split()[0], list(COLORS)
    other = next(one for one in colors[colors.index(color) + 1 :] + colors if one not in taken)
    old, new = (f"{'an' if one[0] in 'aeiou' else 'a'} {one}" for one in (color, other))
    phrases = (layout.phrases[0].replace(color, other, 1), *layout.phrases[1:])
    return replace(layout, prompt=layout.prompt.replace(old, new, 1), phrases=phrases)


def write_rows(path: Path, layouts: Sequence[Layout], *, sources: bool) -> Path:
    """Write a table of the rows to edit, each with its source's prompt, or of the sources themselves."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "category", "prompt", "source_prompt", "regions"])
        for layout in layouts:
            shown, source = (source_layout(layout), "") if sources else (layout, source_layout(layout).prompt)
            regions = [{"phrase": phrase, "box": box} for phrase, box in zip(shown.phrases, shown.boxes, strict=True)]
            writer.writerow([shown.id, shown.category, shown.prompt, source, json.dumps(regions)])
    return path


def write_renders(folder: Path, layouts: Sequence[Layout]) -> Path:
    """Render the layouts as reference pictures for the kernel distance of each arm."""
    folder.mkdir(parents=True, exist_ok=True)
    for layout in layouts:
        asked = expectation_from_prompt(layout.prompt)
        background = asked.background if asked and asked.background else "white"
        render(layout_scene(layout, background)).save(folder / f"{layout.id}.png")
    return folder


def evaluate(out: Path, rows: str | Path, names: Sequence[str], *options: object) -> None:
    """Run `attnguide eval`, resuming a run that was begun before.

    Raises:
        SystemExit: If the command fails.
    """
    methods = [word for name in names for word in ("--method", method_file(name))]
    words = ["eval", rows, *methods, "--best-of", 0, "--logger", "none", "--out", out, "--resume", *options]
    if (status := attnguide([str(word) for word in words])) not in (0, 1):
        raise SystemExit(status)


# ------------------------------------------------------------------------------------------------------------- measures


def kept(source: Image.Image, picture: Image.Image) -> float | None:
    """Share of the source picture's objects that are found in the edited one: same shape, box IoU at least 0.5."""
    before, after = judge(source).detections, judge(picture).detections
    if not before:
        return None
    found = [any(new.shape == old.shape and box_iou(new.box, old.box) >= 0.5 for new in after) for old in before]
    return fmean(map(float, found))


def keeping(sources: Path, edited: Path, arm: str) -> float | None:
    """Mean of :func:`kept` over an arm's pictures, without those whose source shows no object."""
    values = []
    for path in sorted((edited / "samples").glob(f"*-{arm}-*.png")):
        id, seed = path.stem.split(f"-{arm}-")
        source = sources / "samples" / f"{id}-{PLAIN}-{seed}.png"
        if source.exists() and (value := kept(Image.open(source), Image.open(path))) is not None:
            values.append(value)
    return fmean(values) if values else None


def operations(model_name: str, methods: tuple[MethodConfig, ...], layout: Layout, steps: int, cfg_scale: float) -> list[float]:
    """Floating-point operations of one picture, and the highest resident memory in MB; to be run in a process of its own."""
    quiet_libraries()
    model = load_model(model_name)
    (row,) = layout_samples([layout], [0], methods, steps=steps, cfg_scale=cfg_scale)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()  # type: ignore[assignment]
    # Explicit attention: the fused kernels of a CPU are not counted.
    with sdpa_kernel(SDPBackend.MATH), counter:
        list(sample_rows(model, [row]))
    return [counter.get_total_flops(), high_water_mb()]


def read_methods(name: str) -> tuple[MethodConfig, ...]:
    """The methods of :func:`method_file`; none for plain sampling."""
    if name == PLAIN:
        return ()
    entries: list[dict[str, Any]] = yaml.safe_load(method_file(name).read_text(encoding="utf-8"))["methods"]
    return tuple(MethodConfig(entry.pop("name"), entry) for entry in entries)


def costs(path: Path, names: Sequence[str], *settings: Any) -> dict[str, list[float]]:
    """:func:`operations` of each method, kept in a file; one fresh process per method, so that peaks do not mix."""
    known: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    model, layout, *rest = settings
    for name in names:
        if name not in known:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                known[name] = pool.apply(operations, (model, read_methods(name), layout, *rest))
            path.write_text(json.dumps(known, indent=1) + "\n")
    return known


# ------------------------------------------------------------------------------------------------------------------ run


def lines_beside(out: Path, edited: Sequence[str], counted: dict[str, list[float]]) -> list[str]:
    """Markdown table of the numbers that `attnguide eval` has no column for."""
    lines = []
    if edited:
        lines += ["", "## Editing", "", "| method | kept |", "| --- | --- |"]
        for name in edited:
            share = keeping(out / "source", out / "editing", name)
            lines.append(f"| {name} | {'' if share is None else f'{100 * share:.1f}'} |")
    if counted:
        lines += ["", "## Operations of one picture", ""]
        lines += ["| method | operations / plain | peak memory, MB |", "| --- | --- | --- |"]
        lines += [f"| {name} | {own[0] / counted[PLAIN][0]:.2f} | {own[1]:.0f} |" for name, own in counted.items()]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Sample what is missing, then write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=[name for name in METHODS if name not in ALONE], metavar="NAME")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--categories", nargs="*", default=None)
    parser.add_argument("--limit", type=int, default=None, help="as many prompts of each category, spread evenly over it")
    parser.add_argument("--seed", default="0..3", help="seeds of each prompt")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cfg-scale", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_methods"))
    parser.add_argument("--costs", action="store_true", help="count operations and memory")
    args = parser.parse_args(argv)
    try:
        files = {name: method_file(name) for name in args.methods}
    except ValueError as error:
        raise SystemExit(f"--methods: {error}") from error
    layouts = choose_layouts(load_layouts(), args.categories, args.limit)
    edited = [name for name in files if name in EDITING]
    shared = ("--model", args.model, "--steps", args.steps, "--cfg-scale", args.cfg_scale, "--seed", args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = ["--categories", *args.categories] if args.categories else []
    chosen += ["--limit", args.limit] if args.limit else []
    placed = [name for name in files if name not in EDITING]
    evaluate(
        args.out / "places", "benchmark", placed, *shared, *chosen, "--reference", write_renders(args.out / "drawn", layouts)
    )
    tables = [args.out / "places" / "table.md"]
    if edited:
        rows = [layout for layout in layouts if layout.category in EDITABLE]
        evaluate(args.out / "source", write_rows(args.out / "source.csv", rows, sources=True), [], *shared)
        evaluate(args.out / "editing", write_rows(args.out / "editing.csv", rows, sources=False), edited, *shared)
        tables.append(args.out / "editing" / "table.md")
    pair = next((row for row in layouts if row.category in EDITABLE and len(row.boxes) > 1), layouts[0])
    counting = (args.model, pair, args.steps, args.cfg_scale)
    counted = costs(args.out / "costs.json", [PLAIN, *files], *counting) if args.costs else {}
    text = "\n".join([*(path.read_text(encoding="utf-8") for path in tables), *lines_beside(args.out, edited, counted)]) + "\n"
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
