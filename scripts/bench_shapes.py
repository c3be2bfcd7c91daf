"""Score a model on the shapes benchmark with plain sampling, and say whether its attention localises.

    python scripts/bench_shapes.py                                    # benchmark file, 8 seeds a prompt
    python scripts/bench_shapes.py --categories single two_objects --seeds 4 --layouts development
    python scripts/bench_shapes.py --model shapes-mmdit --true-cfg-scale 2 --blocks   # the joint-attention model

A second table counts objects by their colour alone, however badly they are drawn: it tells placing from drawing.
Resumable: rows already in OUT/records.csv are not sampled again, and the tables are of the rows asked for. By default OUT is
runs/bench_shapes-MODEL-LAYOUTS; other settings, and other weights of a folder that was trained further, need another OUT.
OUT/sheet.png shows the first pictures of every category.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from attnguide.benchmark import (
    RECORDS_FILE,
    Localisation,
    OtherSettingsError,
    bootstrap_interval,
    layout_samples,
    read_records,
    run_benchmark,
    values_of,
)
from attnguide.evaluation.arms import slug
from attnguide.models.base import ModelAdapter
from attnguide.models.identity import model_fingerprint
from attnguide.models.load import UnsupportedModelError, load_model
from attnguide.sampling.table import sample_rows
from attnguide.shapes.layouts import Layout, choose_layouts, load_layouts
from attnguide.types import Sample

METRICS = ("all_present", "presence", "binding", "count", "region_hit", "relation", "explained")


def main(argv: Sequence[str] | None = None) -> None:
    """Sample, judge, print."""
    parser = build_parser()
    args = parser.parse_args(argv)
    layouts = _layouts(parser, args)
    chosen = list(dict.fromkeys(layout.category for layout in layouts))
    guidance: dict[str, Any] = {"cfg_scale": args.cfg_scale}
    if args.true_cfg_scale is not None:
        guidance = {"true_cfg_scale": args.true_cfg_scale, "negative_prompt": ""}
    try:
        samples = layout_samples(layouts, range(args.seeds), steps=args.steps, **guidance)
        model = load_model(args.model)
        model.check_row(samples[0])  # all have the same settings
    except (ValueError, UnsupportedModelError) as error:
        parser.error(str(error))
    out = args.out or default_out(args.model, args.layouts)
    settings = {"model": args.model, "weights": model_fingerprint(args.model), "layouts": args.layouts, "steps": args.steps}
    observer = Localisation(args.blocks, args.any_shape) if args.localisation or args.blocks else None
    before = {record["id"] for record in read_records(out / RECORDS_FILE)}
    try:
        records = run_benchmark(
            model, layouts, samples, out, batch_size=args.batch_size, observer=observer, settings={**settings, **guidance}
        )
    except OtherSettingsError as error:
        raise SystemExit(f"--out {error}") from error

    print(f"{len(records)} pictures, {args.seeds} seeds a prompt, {args.steps} steps, {told_guidance(model, samples[0])}\n")
    _print_scores(records, chosen)
    print("\nby colour alone")
    _print_scores(records, chosen, "patches.")
    if observer is not None:
        _print_localisation(observer, sum(sample.id in before for sample in samples), len(records))
    if args.time:
        _print_time(model, args.steps, guidance)
    _sheet(out, records, chosen)


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--layouts", default="benchmark", help="benchmark, development, or a CSV file")
    parser.add_argument("--categories", nargs="*", default=None)
    parser.add_argument("--seeds", type=_positive, default=8, help="seeds a prompt")
    parser.add_argument("--prompts", type=_positive, default=None, help="as many of each category, spread evenly over it")
    parser.add_argument("--steps", type=_positive, default=30)
    parser.add_argument("--cfg-scale", type=float, default=5.0)
    parser.add_argument(
        "--true-cfg-scale", type=float, default=None, help="for pipelines of FLUX.1's kind, instead of --cfg-scale"
    )
    parser.add_argument("--batch-size", type=_positive, default=32)
    parser.add_argument("--out", type=Path, default=None, help="default: runs/bench_shapes-MODEL-LAYOUTS")
    parser.add_argument(
        "--localisation", action="store_true", help="also measure where the words' attention lies, in new pictures"
    )
    parser.add_argument("--blocks", action="store_true", help="the same for each block")
    parser.add_argument("--any-shape", action="store_true", help="look for words' objects by colour alone")
    parser.add_argument("--time", action="store_true", help="also time one picture alone")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {number}")
    return number


def _layouts(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[Layout]:
    """The layouts asked for, of the categories in the order of ``--categories`` or of the file."""
    try:
        layouts = load_layouts(args.layouts)
    except (FileNotFoundError, ValueError) as error:
        parser.error(f"--layouts: {error}")
    known = dict.fromkeys(layout.category for layout in layouts)
    chosen = dict.fromkeys(args.categories or known)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"--categories must be some of {', '.join(known)}; got {', '.join(unknown)}")
    if not layouts:
        parser.error(f"--layouts: {args.layouts} has no rows")
    return choose_layouts(layouts, list(chosen), args.prompts)


def default_out(model: str, layouts: str) -> Path:
    """Folder of a model's pictures for a layout file, so that two models, or two files, never share one."""
    return Path("runs") / f"bench_shapes-{slug(model)}-{slug(Path(layouts).stem)}"


def told_guidance(model: ModelAdapter, sample: Sample) -> str:
    """The classifier-free guidance that acts on a row; a distilled network reads no ``cfg_scale`` for it."""
    scale = model.combining_scale(sample)
    return "no classifier-free guidance" if scale == 1 else f"cfg {scale:g}"


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


def _print_localisation(observer: Localisation, made: int, pictures: int) -> None:
    """Table of attention's shares; it lacks the ``made`` of all ``pictures`` whose attention an earlier call did not keep."""
    print("\nshare of a word's attention inside its object, against the object's share of the picture")
    if made:
        print(f"of the {pictures - made} pictures of this call alone: {made} were made before; another --out measures all")
    width = max(map(len, ("block", *observer.table)))
    print(f"{'block' if observer.per_block else 'map':<{width}}{'words':>8}{'inside':>10}{'area':>10}{'ratio':>10}")
    for name, pairs in observer.table.items():
        inside, area = fmean(p[0] for p in pairs), fmean(p[1] for p in pairs)
        print(f"{name:<{width}}{len(pairs):>8}{inside:>10.3f}{area:>10.3f}{inside / area:>10.2f}")


def _print_time(model: ModelAdapter, steps: int, guidance: Mapping[str, Any]) -> None:
    row = layout_samples(load_layouts("development")[:1], [0], steps=steps, **guidance)
    list(sample_rows(model, row))
    start = time.perf_counter()
    list(sample_rows(model, row))
    print(f"\none picture, {steps} steps: {time.perf_counter() - start:.2f} s")


def _sheet(folder: Path, records: list[dict[str, str]], categories: list[str], columns: int = 12, rows: int = 2) -> None:
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
