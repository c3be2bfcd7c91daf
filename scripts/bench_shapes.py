"""Score a model on the shapes benchmark with plain sampling, and say whether its attention localises.

    python scripts/bench_shapes.py                                    # benchmark file, 8 seeds a prompt
    python scripts/bench_shapes.py --categories single two_objects --seeds 4 --layouts development
    python scripts/bench_shapes.py --model shapes-mmdit --true-cfg-scale 2 --blocks   # the joint-attention model

A second table counts objects by their colour alone, however badly they are drawn: it tells placing from drawing.
Resumable: rows already in OUT/records.csv are not sampled again; other settings need another OUT. OUT/sheet.png shows the first
pictures of every category.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from attnguide.benchmark import Localisation, bootstrap_interval, layout_samples, read_records, run_benchmark, values_of
from attnguide.models.base import ModelAdapter
from attnguide.models.load import load_model
from attnguide.sampling.table import sample_rows
from attnguide.shapes.layouts import choose_layouts, load_layouts

METRICS = ("all_present", "presence", "binding", "count", "region_hit", "relation", "explained")


def main() -> None:
    """Sample, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--layouts", default="benchmark", help="benchmark, development, or a CSV file")
    parser.add_argument("--categories", nargs="*", default=None)
    parser.add_argument("--seeds", type=int, default=8, help="seeds a prompt")
    parser.add_argument("--prompts", type=int, default=None, help="as many of each category, spread evenly over it")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cfg-scale", type=float, default=5.0)
    parser.add_argument(
        "--true-cfg-scale", type=float, default=None, help="for pipelines of FLUX.1's kind, instead of --cfg-scale"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_shapes"))
    parser.add_argument("--localisation", action="store_true", help="also measure where the words' attention lies")
    parser.add_argument("--blocks", action="store_true", help="the same for each block")
    parser.add_argument("--any-shape", action="store_true", help="look for words' objects by colour alone")
    parser.add_argument("--time", action="store_true", help="also time one picture alone")
    args = parser.parse_args()

    layouts = load_layouts(args.layouts)
    names = list(dict.fromkeys(layout.category for layout in layouts))
    chosen = args.categories or names
    layouts = choose_layouts(layouts, chosen, args.prompts)
    model = load_model(args.model)
    observer = Localisation(args.blocks, args.any_shape) if args.localisation or args.blocks else None
    guidance: dict[str, Any] = {"cfg_scale": args.cfg_scale}
    if args.true_cfg_scale is not None:
        guidance = {"true_cfg_scale": args.true_cfg_scale, "negative_prompt": ""}
    samples = layout_samples(layouts, range(args.seeds), steps=args.steps, **guidance)
    _require_same(args.out, {"model": args.model, "layouts": args.layouts, "steps": args.steps, **guidance})
    records = run_benchmark(model, layouts, samples, args.out, batch_size=args.batch_size, observer=observer)

    weight = args.true_cfg_scale or args.cfg_scale
    print(f"{len(records)} pictures, {args.seeds} seeds a prompt, {args.steps} steps, cfg {weight}\n")
    _print_scores(records, chosen)
    print("\nby colour alone")
    _print_scores(records, chosen, "patches.")
    if isinstance(observer, Localisation):
        _print_localisation(observer)
    if args.time:
        _print_time(model, args.steps)
    _sheet(args.out, chosen)


def _require_same(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder whose pictures were made with other settings; their scores would be told as if of these."""
    path = folder / "settings.json"
    if path.exists() and (before := json.loads(path.read_text())) != settings:
        raise SystemExit(f"--out {folder} holds pictures made with {before}; give another folder for {settings}")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def _print_scores(records: list[dict[str, str]], chosen: list[str], judge: str = "") -> None:
    """Table of means with intervals, by category; ``judge`` stands before the metrics' names in the records."""
    print(f"{'category':<28}{'rows':>6}" + "".join(f"{metric:>22}" for metric in METRICS))
    groups: dict[str, list[dict[str, str]]] = {}
    for name in chosen:
        groups[name] = [record for record in records if record["category"] == name]
        if name == "counting":
            groups["counting 2 to 4"] = [record for record in groups[name] if int(record["objects"]) <= 4]
    for label, rows in {**groups, "all": records}.items():
        cells = (_cell(values_of(rows, judge + metric)) for metric in METRICS)
        print(f"{label:<28}{len(rows):>6}" + "".join(f"{cell:>22}" for cell in cells))


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    low, high = bootstrap_interval(values)
    return f"{fmean(values):.3f} [{low:.2f}, {high:.2f}]"


def _print_localisation(observer: Localisation) -> None:
    print("\nshare of a word's attention inside its object, against the object's share of the picture")
    width = max(map(len, ("block", *observer.table)))
    print(f"{'block' if observer.per_block else 'map':<{width}}{'words':>8}{'inside':>10}{'area':>10}{'ratio':>10}")
    for name, pairs in observer.table.items():
        inside, area = fmean(p[0] for p in pairs), fmean(p[1] for p in pairs)
        print(f"{name:<{width}}{len(pairs):>8}{inside:>10.3f}{area:>10.3f}{inside / area:>10.2f}")


def _print_time(model: ModelAdapter, steps: int) -> None:
    row = layout_samples(load_layouts("development")[:1], [0], steps=steps)
    list(sample_rows(model, row))
    start = time.perf_counter()
    list(sample_rows(model, row))
    print(f"\none picture, {steps} steps: {time.perf_counter() - start:.2f} s")


def _sheet(folder: Path, categories: list[str], columns: int = 12, rows: int = 2) -> None:
    records = read_records(folder / "records.csv")
    sheet = Image.new("RGB", (columns * 132, len(categories) * rows * 132), "white")
    for index, name in enumerate(categories):
        of = [record for record in records if record["category"] == name and record["status"] == "ok"]
        step = max(len(of) // (columns * rows), 1)
        for place, record in enumerate(of[::step][: columns * rows]):
            picture = Image.open(folder / "samples" / f"{record['id']}.png")
            sheet.paste(picture, ((place % columns) * 132, (index * rows + place // columns) * 132))
    sheet.save(folder / "sheet.png")
    print(f"\nsheet: {folder / 'sheet.png'} (rows of pictures: {', '.join(categories)})")


if __name__ == "__main__":
    main()
