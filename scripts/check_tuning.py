"""Compares the strength that `attnguide tune` picks without a judge with the judge's choice on the same pictures.

    python scripts/check_tuning.py                                   # mask_guidance and forward_layout, 12 development prompts
    python scripts/check_tuning.py --methods mask_guidance --values 0.25 0.5 1 2 4 --prompts 8 --seeds 2
    python scripts/check_tuning.py --model shapes-mmdit --true-cfg-scale 2

Every strength's pictures are measured both ways. Attention inside and strain decide for the command. The judge looks at places
by colour alone (boxes hit, objects that are there) and at shapes (recognised foreground): its choice is the least strength with
nine tenths of the largest gain in hits among those below the first that certainly loses: more than two points of the objects or
of the foreground, picture by picture, by a 95 % interval. OUT/tuning.csv holds the table.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from attnguide.benchmark import bootstrap_interval, layout_samples
from attnguide.judges.base import Asked
from attnguide.judges.patches import seen_patches
from attnguide.judges.shapes import asked_from_layout, seen_shapes
from attnguide.metrics.functional import score
from attnguide.models.base import ModelAdapter
from attnguide.models.load import load_model
from attnguide.shapes.layouts import Layout, choose_layouts, load_layouts
from attnguide.tuning import SATURATED, Trial, choose, trials
from attnguide.types import MethodConfig, Sample, SampleResult

VALUES = {"mask_guidance": (0.0625, 0.25, 1.0, 4.0), "forward_layout": (0.25, 0.5, 1.0)}
"""Strengths to try, by method; others need --values."""

ALLOWANCE = 0.02
"""Share of the objects and of the recognised foreground that a strength may certainly lose."""

CONTROL, GUARDS = "region_hit", ("presence", "explained")
"""Metrics of the judge: the one that is to rise, and those that are to stay."""

Judged = dict[float | None, dict[str, list[float]]]
Row = dict[str, Any]


def judged_choice(judged: Judged) -> float | None:
    """The least strength with enough gain in :data:`CONTROL`, among those below the first that does not keep :data:`GUARDS`.

    Scores of the same pictures stand at the same places of all lists.
    """
    plain = judged[None]
    kept = itertools.takewhile(
        lambda value: all(_keeps(judged[value][guard], plain[guard]) for guard in GUARDS),
        sorted(value for value in judged if value is not None),
    )
    gains = {value: fmean(judged[value][CONTROL]) - fmean(plain[CONTROL]) for value in kept}
    most = max(gains.values(), default=0.0)
    return min((value for value, gain in gains.items() if gain >= SATURATED * most), default=None) if most > 0 else None


def _keeps(steered: Sequence[float], plain: Sequence[float]) -> bool:
    """Whether no more is lost than the allowance, as far as these pictures can tell."""
    changes = [after - before for after, before in zip(steered, plain, strict=True)]
    return bootstrap_interval(changes)[1] >= -ALLOWANCE


class Watched:
    """Judge's scores of the pictures of each strength, ``None`` for plain.

    Args:
        layouts: Layouts of the rows, which say what each should show.
    """

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self.asked = {layout.id: asked_from_layout(layout) for layout in layouts}
        self.judged: Judged = {}

    def keep(self, value: float | None, results: Sequence[SampleResult]) -> None:
        """Judge the pictures of a strength, in the order of their rows; a missing picture counts as 0."""
        scores: dict[str, list[float]] = {metric: [] for metric in (CONTROL, *GUARDS)}
        for row, result in sorted({result.sample.id.removesuffix("-plain"): result for result in results}.items()):
            seen = {} if result.image is None else _scores(result.image, self.asked[row.rsplit("-", 1)[0]])
            for metric, found in scores.items():
                found.append(float(seen.get(metric, 0.0)))
        self.judged[value] = scores


def _scores(picture: Image.Image, asked: Asked) -> dict[str, float]:
    """Places by colour alone, which a badly drawn object has, too, and the foreground in recognised shapes."""
    return {**score(seen_patches(picture, asked), asked), "explained": score(seen_shapes(picture), asked)["explained"]}


def check(model: ModelAdapter, name: str, values: Sequence[float], rows: Sequence[Sample], watched: Watched) -> list[Row]:
    """Sample a method's strengths, measure both ways and print; returns the table's rows."""
    print(f"\n{name}, {len(rows)} pictures a strength")
    print(f"{'scale':>8}{'inside':>9}{'strain':>9}" + "".join(f"{metric:>22}" for metric in (CONTROL, *GUARDS)))
    found: list[Trial] = []
    for trial in trials(model, rows, MethodConfig(name), values, batch_size=16, keep=watched.keep):
        found.append(trial)
        cells = "".join(f"{_cell(scores):>22}" for scores in watched.judged[trial.value].values())
        print(f"{_label(trial.value):>8}{trial.inside:>9.3f}{trial.strain:>9.2f}{cells}", flush=True)
    chosen = choose(found[0], found[1:])
    picked, best = None if chosen is None else chosen.value, judged_choice(watched.judged)
    print(f"without a judge {_label(picked, 'none')}, by the judge {_label(best, 'none')}", flush=True)
    return [
        {
            "method": name,
            "scale": _label(trial.value),
            "inside": round(trial.inside, 4),
            "strain": round(trial.strain, 3),
            **{metric: round(fmean(scores), 4) for metric, scores in watched.judged[trial.value].items()},
            "without_judge": int(trial is chosen),
            "by_judge": int(trial.value is not None and trial.value == best),
        }
        for trial in found
    ]


def _label(value: float | None, absent: str = "plain") -> str:
    return absent if value is None else f"{value:g}"


def _cell(scores: Sequence[float]) -> str:
    low, high = bootstrap_interval(scores)
    return f"{fmean(scores):.3f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Check the methods one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(VALUES))
    parser.add_argument("--values", nargs="*", type=float, default=None, help="strengths to try, for all of the methods")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--layouts", default="development")
    parser.add_argument("--categories", nargs="*", default=["boxes", "small_boxes", "two_objects"])
    parser.add_argument("--prompts", type=int, default=4, help="as many of each category, spread evenly over it")
    parser.add_argument("--seeds", type=int, default=1, help="seeds a prompt")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cfg-scale", type=float, default=5.0)
    parser.add_argument(
        "--true-cfg-scale", type=float, default=None, help="for pipelines of FLUX.1's kind, instead of --cfg-scale"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/check_tuning"))
    args = parser.parse_args()
    if few := [name for name in ("prompts", "seeds") if getattr(args, name) < 1]:
        parser.error(f"--{few[0]} must be at least 1; got {getattr(args, few[0])}")
    if unknown := [name for name in args.methods if not args.values and name not in VALUES]:
        parser.error(
            f"--values must name the strengths to try of {', '.join(unknown)}; only {', '.join(VALUES)} have them by default"
        )
    guidance: dict[str, Any] = {"cfg_scale": args.cfg_scale}
    if args.true_cfg_scale is not None:
        guidance = {"true_cfg_scale": args.true_cfg_scale, "negative_prompt": ""}
    layouts = choose_layouts(load_layouts(args.layouts), args.categories, args.prompts)
    model = load_model(args.model)
    rows = layout_samples(layouts, range(args.seeds), steps=args.steps, **guidance)
    table: list[Row] = []
    for name in args.methods:
        table += check(model, name, args.values or VALUES[name], rows, Watched(layouts))
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "tuning.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
