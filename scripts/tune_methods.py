"""Choose every method's settings for the embedded model, on the development file only, and write configs/methods/shapes/.

    python scripts/tune_methods.py                              # every method with a knob, see KNOBS
    python scripts/tune_methods.py --methods box_diff --prompts 8 --seeds 2

One knob after the other: the strength over powers of the published value, then how long. A setting's worth is its control
(region hits, or presence where no place is asked for) less twice what it loses of recognised foreground beyond two points of
plain sampling, so that nothing wins by ruining pictures. Resumable: pictures on disk are not made
again. OUT/tuning.csv holds all that was tried.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from bench_methods import CONFIGS, read_methods

from attnguide.benchmark import layout_samples, run_benchmark, values_of
from attnguide.methods import check_options, method_info, method_options
from attnguide.models.base import ModelAdapter
from attnguide.models.load import load_model
from attnguide.shapes.layouts import Layout, choose_layouts, load_layouts
from attnguide.types import MethodConfig

ALLOWANCE = 0.02
"""Share of recognised foreground that a setting may lose without being marked down."""


@dataclass(frozen=True)
class Knob:
    """One option that is tried out.

    Attributes:
        option: Its name.
        values: What to set it to.
        relative: Whether values are factors of the published one.
    """

    option: str
    values: tuple[float, ...]
    relative: bool = False

    def settings(self, published: Mapping[str, Any]) -> list[float]:
        """Values to try, the published one among them where they are relative."""
        return [float(f"{published[self.option] * value:.6g}") if self.relative else value for value in self.values]


_STEP = Knob("step_size", (0.0625, 0.25, 1.0, 4.0, 16.0), relative=True)
_STOP = Knob("stop", (0.3, 0.5, 0.8))
_SCALE = Knob("scale", (0.25, 0.5, 1.0, 2.0, 4.0), relative=True)

KNOBS: dict[str, tuple[Knob, ...]] = {
    "mask_guidance": (_STEP, _STOP),
    "stable": (Knob("room", (0.8, 0.9, 1.0)), Knob("fade", (0.0, 1.0)), Knob("inject_until", (1.0, 2.0, 3.0))),
    "attend_and_excite": (_STEP, _STOP),
    "box_diff": (_STEP, _STOP),
    "layout_guidance": (_STEP, _STOP),
    "divide_and_bind": (_STEP, _STOP),
    "syngen": (_STEP, _STOP),
    "a_star": (_STEP, _STOP),
    "conform": (_STEP, _STOP),
    "r_and_b": (_STEP, _STOP),
    "count_guidance": (_STEP, _STOP),
    "bounded_attention": (_STEP, _STOP),
    "self_guidance": (_STEP, _STOP),
    "initno": (_STEP, _STOP),
    "saga": (Knob("learning_rate", (0.25, 1.0, 4.0), relative=True),),
    **{f"inject{number}": (Knob("start", (0.95, 0.9, 0.8)), _SCALE) for number in range(1, 9)},
    "paint_with_words": (_SCALE,),
    "dense_diffusion": (Knob("cross_scale", (0.5, 1.0, 2.0, 4.0), relative=True), _STOP),
    "forward_layout": (Knob("scale", (0.4, 0.8, 1.0)), Knob("stop", (0.3, 0.5, 0.8))),
    "pag": (Knob("scale", (0.25, 0.5, 1.0), relative=True),),
}
"""What is tried, in this order. The editing methods have no strength: windows alone, which stay as published."""

FIXED: dict[str, dict[str, Any]] = {
    "attend_and_excite": {"max_refinements": 5},
    "bounded_attention": {"levels": [0, 1]},
    "box_diff": {"max_refinements": 5},
    "count_guidance": {"max_refinements": 5},
    "divide_and_bind": {"max_refinements": 5, "first_refinements": 10},
    "conform": {"refinements": 5},
    "initno": {"rounds": 2, "last_iterations": 10, "max_refinements": 5},
    "saga": {"iterations": 20},
}
"""What is set beforehand: fewer repetitions than published, so that a picture costs at most a few plain ones; and map levels
where the smallest boxes cover no cell of the coarsest maps."""


@dataclass(frozen=True)
class Trial:
    """A setting and what came of it.

    Attributes:
        options: Of the method.
        control: Mean of the aimed-at metric.
        explained: Mean share of recognised foreground.
    """

    options: Mapping[str, Any]
    control: float
    explained: float

    def worth(self, plain_explained: float) -> float:
        """Control, less twice the quality lost beyond the allowance."""
        return self.control - 2 * max(0.0, plain_explained - ALLOWANCE - self.explained)


@dataclass(frozen=True)
class Bench:
    """The rows that settings are tried on."""

    model: ModelAdapter
    layouts: Sequence[Layout]
    seeds: int
    steps: int
    batch_size: int
    out: Path

    def trial(self, name: str, options: Mapping[str, Any], metric: str) -> Trial:
        """Sample, judge, average."""
        methods = [MethodConfig(name, dict(options))] if name != "plain" else []
        rows = layout_samples(self.layouts, range(self.seeds), methods, steps=self.steps)
        label = "_".join(f"{key}-{value}" for key, value in sorted(options.items()) if isinstance(value, float))
        folder = self.out / name / (label or "published")
        records = run_benchmark(self.model, self.layouts, rows, folder, batch_size=self.batch_size)
        trial = Trial(options, fmean(values_of(records, metric)), fmean(values_of(records, "explained")))
        print(f"{name:<20} {label or 'published':<44} {metric} {trial.control:.3f} explained {trial.explained:.3f}", flush=True)
        return trial


def metric_of(name: str) -> str:
    """What a method is for."""
    return "region_hit" if method_info(name).needs_regions == "place" else "presence"


def tune(bench: Bench, name: str, published: Mapping[str, Any], plain: Trial, knobs: int | None = None) -> list[Trial]:
    """Every setting tried, the best one last; only the first ``knobs`` are turned."""
    known = {**method_options(name), **published}
    trials: list[Trial] = []
    best = {**published, **FIXED.get(name, {})}
    for knob in KNOBS[name][:knobs]:
        asked = [{**best, knob.option: value} for value in knob.settings(known)]
        trials += [
            bench.trial(name, options, metric_of(name)) for options in asked if options not in [t.options for t in trials]
        ]
        best = dict(max(trials, key=lambda trial: trial.worth(plain.explained)).options)
    return sorted(trials, key=lambda trial: trial.options == best)


def write_config(name: str, options: Mapping[str, Any], folder: Path) -> Path:
    """A configuration file like the published one, with the tuned options."""
    published = CONFIGS / f"{name}.yaml"
    content = yaml.safe_load(published.read_text(encoding="utf-8"))
    title = published.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ").split(":")[0]
    content["methods"] = [{"name": name, **options}]
    content.update(steps=30, cfg_scale=5.0)
    content.pop("scheduler", None)
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"# attnguide sample --config configs/methods/shapes/{name}.yaml\n"
    head += f"# {title}: tuned for the embedded model on its development layouts by scripts/tune_methods.py.\n"
    path.write_text(head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
    return path


def _log(path: Path, name: str, trials: Sequence[Trial], plain: Trial) -> None:
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["method", "options", "control", "explained", "worth", "chosen"])
        for trial in trials:
            own = [trial.control, trial.explained, trial.worth(plain.explained)]
            writer.writerow([name, dict(trial.options), *(f"{value:.4f}" for value in own), trial is trials[-1]])


def main(argv: Sequence[str] | None = None) -> None:
    """Tune the asked methods one by one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(KNOBS), choices=list(KNOBS), metavar="NAME")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--categories", nargs="*", default=["two_objects", "counting", "boxes", "overlapping_boxes"])
    parser.add_argument("--prompts", type=int, default=8, help="as many of each category, spread evenly over it")
    parser.add_argument("--seeds", type=int, default=1, help="seeds a prompt")
    parser.add_argument("--knobs", type=int, default=None, help="first knobs only, e.g. 1 for the strength alone")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/tune_methods"))
    parser.add_argument("--write", type=Path, default=CONFIGS / "shapes", help="folder of the tuned configurations")
    args = parser.parse_args(argv)

    layouts = choose_layouts(load_layouts("development"), args.categories, args.prompts)
    if not layouts:
        raise SystemExit(f"--categories: no row of the development file is of {', '.join(args.categories)}")
    try:  # before a model is loaded
        check_options(config for name in args.methods for config in read_methods(CONFIGS / f"{name}.yaml"))
        if args.seeds < 1 or args.batch_size < 1:
            raise ValueError(f"--seeds and --batch-size must be at least 1; got {args.seeds} and {args.batch_size}")
        layout_samples(layouts, range(args.seeds), steps=args.steps)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    bench = Bench(load_model(args.model), layouts, args.seeds, args.steps, args.batch_size, args.out)
    plain = {metric: bench.trial("plain", {}, metric) for metric in ("region_hit", "presence")}
    for name in args.methods:
        (config,) = read_methods(CONFIGS / f"{name}.yaml")
        trials = tune(bench, name, config.options, plain[metric_of(name)], args.knobs)
        _log(args.out / "tuning.csv", name, trials, plain[metric_of(name)])
        print(f"wrote {write_config(name, trials[-1].options, args.write)}", file=sys.stderr)


if __name__ == "__main__":
    main()
