"""Every method on the shapes benchmark, side by side: control, quality, cost; paired seeds, one table.

    python scripts/bench_methods.py                                   # all methods, all categories, 4 seeds a prompt
    python scripts/bench_methods.py --methods box_diff mask_guidance --prompts 8
    python scripts/bench_methods.py --methods mask_guidance mask_guidance,space=noise,fused=true  # options by name
    python scripts/bench_methods.py --costs                           # operations and memory too, a process per method
    python scripts/bench_methods.py --table-only                      # what is on disk

Settings come from configs/methods/shapes/, tuned by scripts/tune_methods.py on the development file, and where a method has no
file there from its paper's, configs/methods/. Resumable: rows in OUT/<method>/records.csv are not sampled again. The table goes
to the terminal and to OUT/table.md.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import yaml
from bench_cost import NoModules
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attnguide.benchmark import bootstrap_interval, layout_samples, read_records, run_benchmark, values_of
from attnguide.engine.ledger import high_water_mb
from attnguide.judges.boxes import box_iou
from attnguide.methods import METHODS, check_options, method_info
from attnguide.metrics.distance import PictureDistance
from attnguide.models.load import load_model, quiet_libraries
from attnguide.sampling.table import sample_rows
from attnguide.shapes.expectation import expectation_from_prompt
from attnguide.shapes.judge import judge
from attnguide.shapes.layouts import Layout, choose_layouts, layout_scene, load_layouts
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import COLORS
from attnguide.types import MethodConfig, Sample

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "methods"
EDITING = ("prompt_to_prompt", "cross_attention_control", "masactrl", "plug_and_play")
"""Methods that change another prompt's picture: measured on rows of one or two objects, see :func:`source_layout`."""

EDITABLE = ("single", "two_objects", "color_attribution")
SOURCE = "source"
"""The arm that samples the pictures which the editing methods start from."""

METRICS = ("presence", "all_present", "binding", "count", "region_hit", "region_iou", "background", "explained")
ALONE = ("map_injection",)
"""A family whose members stand in the table under their own names."""


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: Of the method, with the options that were given for it, ``plain`` or ``source``.
        methods: What is applied.
        tuned: Whether its settings were tuned for the embedded model.
    """

    name: str
    methods: tuple[MethodConfig, ...] = ()
    tuned: bool = False

    @property
    def edits(self) -> bool:
        """Whether its method changes another prompt's picture."""
        return bool(self.methods) and self.methods[0].name in EDITING

    @property
    def needs(self) -> str | None:
        """``phrase``, ``place`` or ``None``, as of its method."""
        return method_info(self.methods[0].name).needs_regions if self.methods else None


def read_methods(path: Path) -> tuple[MethodConfig, ...]:
    """The methods of a configuration file."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["methods"]
    return tuple(
        MethodConfig(entry["name"], {key: value for key, value in entry.items() if key != "name"}) for entry in entries
    )


def arms(names: Sequence[str] | None, settings: str) -> list[Arm]:
    """Plain first, then every method that is asked for; the editing methods bring their source along.

    Args:
        names: Methods; behind a name, ``option=value`` after commas changes the settings of its file. All when ``None``.
        settings: ``tuned`` or ``paper``.

    Raises:
        ValueError: If a name is no method, or an option has no value.
    """
    found = [Arm("plain")]
    for given in names or [name for name in METHODS if name not in ALONE]:
        name, *options = given.split(",")
        if name in ("plain", SOURCE):
            continue
        method_info(name)
        tuned, published = CONFIGS / "shapes" / f"{name}.yaml", CONFIGS / f"{name}.yaml"
        path = tuned if settings == "tuned" and tuned.exists() else published
        if name in EDITING and Arm(SOURCE) not in found:
            found.append(Arm(SOURCE))
        first, *others = read_methods(path)
        changed = MethodConfig(first.name, {**first.options, **dict(map(_option, options))})
        found.append(Arm(given, (changed, *others), path == tuned))
    return found


def _option(text: str) -> tuple[str, Any]:
    """Name and value of ``option=value``, the value as in YAML.

    Raises:
        ValueError: If there is none.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected option=value behind a method's comma; got {text!r}")
    return name, yaml.safe_load(value)


def source_layout(layout: Layout) -> Layout:
    """The row with its first object's colour exchanged for the next one that no object of the row has.

    Example:
        "a red circle and a blue square" becomes "a green circle and a blue square".
    """
    taken = {name.split()[0] for name in layout.names}
    color, colors = layout.names[0].split()[0], list(COLORS)
    other = next(one for one in colors[colors.index(color) + 1 :] + colors if one not in taken)
    old, new = (f"{'an' if one[0] in 'aeiou' else 'a'} {one}" for one in (color, other))
    phrases = (layout.phrases[0].replace(color, other, 1), *layout.phrases[1:])
    return replace(layout, prompt=layout.prompt.replace(old, new, 1), phrases=phrases)


def rows_of(arm: Arm, layouts: Sequence[Layout], seeds: int, steps: int, cfg_scale: float) -> list[Sample]:
    """The arm's rows; every arm has the same ids and seeds, so that differences can be taken row by row."""
    editing = arm.edits or arm.name == SOURCE
    chosen = [layout for layout in layouts if not editing or layout.category in EDITABLE]
    rows = layout_samples(chosen, range(seeds), arm.methods, steps=steps, cfg_scale=cfg_scale)
    if not editing:
        return rows
    sources = {layout.id: source_layout(layout).prompt for layout in chosen}
    if arm.name == SOURCE:
        return [replace(row, prompt=sources[row.id.rsplit("-", 1)[0]], regions=()) for row in rows]
    return [replace(row, methods=_with_source(row, sources[row.id.rsplit("-", 1)[0]])) for row in rows]


def expected_of(arm: Arm, layouts: Sequence[Layout]) -> list[Layout]:
    """What the arm's pictures are judged by."""
    if arm.name != SOURCE:
        return list(layouts)
    return [source_layout(layout) for layout in layouts if layout.category in EDITABLE]


def _with_source(row: Sample, source: str) -> tuple[MethodConfig, ...]:
    first, *others = row.methods
    return (MethodConfig(first.name, {**first.options, "source_prompt": source}), *others)


# ------------------------------------------------------------------------------------------------------------- measures


def kept(source: Image.Image, picture: Image.Image) -> float | None:
    """Share of the source picture's objects that stand in the edited one: same shape, IoU of bounds at least 0.5."""
    before, after = judge(source).detections, judge(picture).detections
    if not before:
        return None
    found = [any(new.shape == old.shape and box_iou(new.box, old.box) >= 0.5 for new in after) for old in before]
    return fmean(map(float, found))


def keeping(out: Path, arm: str, records: Sequence[Mapping[str, str]]) -> list[float]:
    """:func:`kept` of an arm's pictures, those without an object in their source left out."""
    pairs = [(out / SOURCE / "samples" / f"{r['id']}.png", out / arm / "samples" / f"{r['id']}.png") for r in records]
    values = [kept(Image.open(a), Image.open(b)) for a, b in pairs if a.exists() and b.exists()]
    return [value for value in values if value is not None]


def distance(pictures: Sequence[Path], layouts: Sequence[Layout]) -> float:
    """Kernel distance between pictures and renders of what their rows ask for; NaN for fewer than 8 of either."""
    if min(len(pictures), len(layouts)) < 8:
        return float("nan")
    metric = PictureDistance(subset_size=min(len(pictures), len(layouts), 50))
    backgrounds = [expectation_from_prompt(layout.prompt) for layout in layouts]
    named = [asked.background if asked and asked.background else "white" for asked in backgrounds]
    metric.update(_stack([render(layout_scene(row, on)) for row, on in zip(layouts, named, strict=True)]), real=True)
    metric.update(_stack([Image.open(path) for path in pictures]), real=False)
    torch.manual_seed(0)  # subsets are drawn
    return float(metric.compute()[0])


def _stack(pictures: Sequence[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(one.convert("RGB")) for one in pictures])).permute(0, 3, 1, 2)


def operations(model_name: str, arm: Arm, layout: Layout, steps: int, cfg_scale: float) -> tuple[int, float]:
    """Floating-point operations of one picture, and the highest resident memory in MB; to be run in a process of its own."""
    quiet_libraries()
    model = load_model(model_name)
    row = rows_of(arm, [layout], 1, steps, cfg_scale)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()  # type: ignore[assignment]
    # Explicit attention: the fused kernels of a CPU are not counted.
    with sdpa_kernel(SDPBackend.MATH), counter:
        list(sample_rows(model, row))
    return counter.get_total_flops(), high_water_mb()


def measure_costs(args: argparse.Namespace, chosen: Sequence[Arm], layout: Layout) -> None:
    """Fill ``OUT/costs.json``, one fresh process per method, so that peaks do not mix."""
    path = args.out / "costs.json"
    known: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    context = multiprocessing.get_context("spawn")
    for arm in chosen:
        if arm.name in known:
            continue
        with context.Pool(1) as pool:
            known[arm.name] = list(pool.apply(operations, (args.model, arm, layout, args.steps, args.cfg_scale)))
        path.write_text(json.dumps(known, indent=1) + "\n")
        print(f"cost of {arm.name}: {known[arm.name][0] / 1e9:.1f} GFLOP", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------- table


def cell(values: Sequence[float]) -> str:
    """Mean and 95 % bootstrap interval in percent."""
    if not values:
        return ""
    low, high = bootstrap_interval(values)
    return f"{100 * fmean(values):.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def paired(records: Sequence[Mapping[str, str]], plain: Mapping[str, Mapping[str, str]], metric: str) -> list[float]:
    """Differences to plain sampling of the same row and seed."""
    pairs = [
        (values_of([record], metric), values_of([plain[record["id"]]], metric)) for record in records if record["id"] in plain
    ]
    return [after[0] - before[0] for after, before in pairs if after and before]


def table(out: Path, chosen: Sequence[Arm], layouts: Sequence[Layout], seeds: int) -> str:
    """Three tables in Markdown: scores, differences to plain, cost; of the asked rows, whatever else is on disk."""
    asked = {f"{layout.id}-{seed}" for layout in layouts for seed in range(seeds)}
    records = {
        arm.name: list({r["id"]: r for r in read_records(out / arm.name / "records.csv") if r["id"] in asked}.values())
        for arm in chosen
        if (out / arm.name / "records.csv").exists()
    }
    by_id = {record["id"]: record for record in records.get("plain", [])}
    shown = [arm for arm in chosen if records.get(arm.name) and arm.name != SOURCE]
    lines = _header("method", "settings", "pictures", *METRICS, "kept", "distance")
    for arm in shown:
        rows = records[arm.name]
        keep = cell(keeping(out, arm.name, rows)) if arm.edits else ""
        drawn = {row["id"].rsplit("-", 1)[0] for row in rows}
        pictures = [out / arm.name / "samples" / f"{row['id']}.png" for row in rows if row["status"] == "ok"]
        far = distance(pictures, [layout for layout in layouts if layout.id in drawn])
        scores = [cell(values_of(rows, metric)) for metric in METRICS]
        origin = "" if arm.name == "plain" else "tuned" if arm.tuned else "published"
        lines.append(_line(arm.name, origin, len(rows), *scores, keep, "" if math.isnan(far) else f"{far:.3f}"))
    lines += ["", "Difference to plain sampling of the same rows and seeds, in points:", ""]
    lines += _header("method", *METRICS)
    for arm in shown[1:]:
        lines.append(_line(arm.name, *(cell(paired(records[arm.name], by_id, metric)) for metric in METRICS)))
    return "\n".join([*lines, "", *_cost_lines(out, shown, records)]) + "\n"


def _cost_lines(out: Path, shown: Sequence[Arm], records: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    path = out / "costs.json"
    costs: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    lines = [
        "Cost of a picture: UNet passes of either half of classifier-free guidance; operations and memory of one alone:",
        "",
    ]
    lines += _header("method", "forwards", "backwards", "operations / plain", "peak memory, MB")
    for arm in shown:
        passes = [fmean(int(row[name]) for row in records[arm.name]) for name in ("unet_forwards", "unet_backwards")]
        own, base = costs.get(arm.name), costs.get("plain")
        ratio = f"{own[0] / base[0]:.2f}" if own and base else ""
        lines.append(_line(arm.name, *(f"{one:.1f}" for one in passes), ratio, f"{own[1]:.0f}" if own else ""))
    return lines


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _header(*names: str) -> list[str]:
    return [_line(*names), _line(*("---" for _ in names))]


# ------------------------------------------------------------------------------------------------------------------ run


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=None, help="default: all")
    parser.add_argument("--settings", choices=("tuned", "paper"), default="tuned")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--layouts", default="benchmark", help="benchmark, development, or a CSV file")
    parser.add_argument("--categories", nargs="*", default=None)
    parser.add_argument("--prompts", type=int, default=None, help="as many of each category, spread evenly over it")
    parser.add_argument("--seeds", type=int, default=4, help="seeds a prompt")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cfg-scale", type=float, default=5.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_methods"))
    parser.add_argument("--costs", action="store_true", help="count operations and memory")
    parser.add_argument("--table-only", action="store_true", help="sample nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Sample what is missing, then print the tables."""
    args = parse_args(argv)
    try:
        chosen = arms(args.methods, args.settings)
    except ValueError as error:
        raise SystemExit(f"--methods: {error}") from error
    layouts = load_layouts(args.layouts)
    categories = args.categories or list(dict.fromkeys(layout.category for layout in layouts))
    layouts = choose_layouts(layouts, categories, args.prompts)
    if not layouts:
        raise SystemExit(f"--categories: no row of {args.layouts} is of {', '.join(categories)}")
    if not args.table_only:
        try:  # before a model is loaded
            check_options(config for arm in chosen for config in arm.methods)
            rows = {arm.name: rows_of(arm, layouts, args.seeds, args.steps, args.cfg_scale) for arm in chosen}
            if args.seeds < 1 or args.batch_size < 1:
                raise ValueError(f"--seeds and --batch-size must be at least 1; got {args.seeds} and {args.batch_size}")
        except ValueError as error:
            raise SystemExit(str(error)) from error
        model = load_model(args.model)
        for arm in chosen:
            print(f"sampling {arm.name}", file=sys.stderr)
            folder = args.out / arm.name
            run_benchmark(model, expected_of(arm, layouts), rows[arm.name], folder, batch_size=args.batch_size)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.costs:
        pair = next((row for row in layouts if row.category in EDITABLE and len(row.boxes) > 1), layouts[0])
        measure_costs(args, chosen, pair)
    text = table(args.out, chosen, layouts, args.seeds)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
