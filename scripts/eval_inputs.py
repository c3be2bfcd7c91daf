"""Compares img2img, inpainting and ControlNet with text to image: ``python scripts/eval_inputs.py --layouts 16 --seeds 4``.

Two objects of the embedded world in two boxes, one in each half of the picture:

* ``text``: from noise alone.
* ``canvas``: img2img from the bare background, at ``--strength``.
* ``img2img``: from the plain picture of the same prompt and seed, whose objects stand anywhere, at ``--strength``.
* ``inpaint``: the half with the first object is drawn by the renderer and kept; the other half is drawn anew.
* ``controlnet``: from noise, with the outlines of both objects for a ControlNet (``--controlnet``, see train_controlnet.py).

Each of them plain and under ``--method``, whose options follow as ``--option step_size=300``. Prints the share of objects that
the judge finds in their boxes, with an interval over prompts, and anywhere in the picture, which bounds it; and the largest
difference of pixels that inpainting should keep.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from attnguide.benchmark import bootstrap_interval
from attnguide.inputs import Control
from attnguide.metrics.scoring import shapes_scores
from attnguide.models.base import ModelAdapter
from attnguide.models.load import load_model
from attnguide.sampling.table import sample_rows
from attnguide.shapes.layouts import Layout, layout_scene, load_layouts, spread
from attnguide.shapes.renderer import outlines, render
from attnguide.types import MethodConfig, Region, Sample, SampleResult

METRIC = "region_hit"

KINDS = ("text", "canvas", "img2img", "inpaint", "controlnet")


def half_of(layout: Layout) -> tuple[float, float, float, float] | None:
    """The half of the picture that holds the second object's box but nothing of the first's; ``None`` if there is none."""
    first, second = layout.boxes[:2]
    halves = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0))
    for half in halves:
        apart = first[2] <= half[0] or first[0] >= half[2] or first[3] <= half[1] or first[1] >= half[3]
        inside = half[0] <= second[0] and half[1] <= second[1] and second[2] <= half[2] and second[3] <= half[3]
        if apart and inside:
            return half
    return None


@dataclass(frozen=True)
class Bench:
    """Settings of the rows.

    Attributes:
        folder: Folder of the input pictures.
        side: Side of the pictures in pixels.
        steps: Denoising steps.
        strength: Strength of img2img.
        method: Method of steered rows.
        controls: Whether there is a ControlNet.
        kinds: Kinds of rows to make.
    """

    folder: Path
    side: int
    steps: int
    strength: float
    method: MethodConfig
    controls: bool
    kinds: tuple[str, ...] = KINDS

    def text(self, layout: Layout, seed: int) -> Sample:
        regions = tuple(Region(phrase, box=box) for phrase, box in zip(layout.phrases, layout.boxes, strict=True))
        return Sample(f"{layout.id}-{seed}", layout.prompt, seed, regions, steps=self.steps)

    def rows(self, layout: Layout, seed: int, plain: SampleResult | None) -> dict[str, Sample]:
        """A row of each kind, without methods.

        Args:
            layout: Layout of two objects.
            seed: Seed of the noise.
            plain: Plain text-to-image picture; ``None`` if no kind starts from it.
        """
        base = self.text(layout, seed)
        found = re.search(r"on an? (\w+) background", layout.prompt)
        scene = layout_scene(layout, found[1] if found else "white")
        start, mask = self.folder / f"{base.id}-plain.png", self.folder / f"{layout.id}-mask.png"
        if plain is not None and plain.image is not None:
            plain.image.save(start)
        kept, shown = self.folder / f"{layout.id}-kept.png", replace(scene, objects=scene.objects[:1], relation=None)
        render(shown, self.side).save(kept)
        half = half_of(layout)
        assert half is not None
        white = Image.new("L", (self.side, self.side))
        x0, y0, x1, y1 = (round(edge * self.side) for edge in half)
        white.paste(255, (x0, y0, x1, y1))
        white.save(mask)
        canvas = self.folder / f"{scene.background}.png"
        render(replace(scene, objects=(), relation=None), self.side).save(canvas)
        rows = {
            "text": base,
            "canvas": replace(base, init_image=str(canvas), strength=self.strength),
            "img2img": replace(base, init_image=str(start), strength=self.strength),
            "inpaint": replace(base, init_image=str(kept), inpaint_mask=str(mask)),
        }
        if self.controls:
            edges = self.folder / f"{layout.id}-edges.png"
            outlines(scene, self.side).save(edges)
            rows["controlnet"] = replace(base, control=(Control("outlines", str(edges)),))
        return {kind: row for kind, row in rows.items() if kind in self.kinds}


def changed(result: SampleResult) -> int:
    """Largest difference of a pixel outside a row's inpainting mask from its init image, of 255."""
    row = result.sample
    paths = (str(row.init_image), str(row.inpaint_mask))
    before, mask = (np.asarray(Image.open(path).convert("RGB"), dtype=int) for path in paths)
    after = np.asarray(result.image, dtype=int)
    return int((np.abs(after - before) * (mask < 128)).max())


def line(kind: str, name: str, results: Sequence[SampleResult]) -> str:
    """Mean over rows of the metric, with an interval over prompts; a row that gave no picture counts as 0."""
    for result in results:
        if result.image is None:
            print(f"{result.sample.id}: {result.status}")
    by_prompt: dict[str, list[float]] = {}
    scores = [shapes_scores(result) for result in results]
    for result, found in zip(results, scores, strict=True):
        by_prompt.setdefault(result.sample.prompt, []).append(found.get(METRIC, 0.0))
    presence = statistics.fmean(found.get("presence", 0.0) for found in scores)
    means = [statistics.fmean(values) for values in by_prompt.values()]
    low, high = bootstrap_interval(means)
    passes = statistics.fmean(result.cost.unet_forwards + result.cost.unet_backwards for result in results)
    told = f"{kind:<11}{name:<22}{len(results):>4} pictures  {METRIC} {statistics.fmean(means):.3f} [{low:.3f}, {high:.3f}]"
    kept = (
        f"  kept pixels differ by {max(changed(result) for result in results if result.image is not None)}"
        if kind == "inpaint"
        else ""
    )
    return f"{told}  presence {presence:.3f}  {passes:.0f} passes{kept}"


def read_options(words: Sequence[str], method: str) -> dict[str, Any]:
    """Options of a method from ``NAME=VALUE``; ``stable`` makes one attempt, as a pipeline's call can be begun once."""
    pairs = [word.partition("=") for word in words]
    given = {name: yaml.safe_load(value) for name, _, value in pairs}
    return {"attempts": 1, **given} if method == "stable" else given


def chosen(number: int) -> list[Layout]:
    """Layouts of the benchmark with two objects in two halves."""
    fitting = [one for one in load_layouts() if len(one.boxes) == 2 and len(set(one.names)) == 2 and half_of(one) is not None]
    return spread(fitting, number)


def sampled(model: ModelAdapter, rows: Iterable[Sample]) -> dict[str, SampleResult]:
    return {result.sample.id: result for result in sample_rows(model, list(rows), batch_size=16)}


def evaluate(model: ModelAdapter, bench: Bench, layouts: Sequence[Layout], seeds: Sequence[int]) -> Iterator[str]:
    """One line for each kind of rows, plain and steered."""
    bench.folder.mkdir(parents=True, exist_ok=True)
    subjects = [(layout, seed) for layout in layouts for seed in seeds]
    needed = {"text", "img2img"} & set(bench.kinds)
    plain = sampled(model, (bench.text(layout, seed) for layout, seed in subjects if needed))
    tables = [bench.rows(layout, seed, plain.get(f"{layout.id}-{seed}")) for layout, seed in subjects]
    for kind in tables[0]:
        rows = [table[kind] for table in tables]
        made = plain if kind == "text" else sampled(model, rows)
        yield line(kind, "plain", list(made.values()))
        steered = sampled(model, (replace(row, methods=(bench.method,)) for row in rows))
        for id, result in steered.items():
            if result.image is not None:
                result.image.save(bench.folder / f"{id}-{kind}-{bench.method.name}.png")
        yield line(kind, bench.method.name, list(steered.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--strength", type=float, default=0.6)
    parser.add_argument("--method", default="forward_layout")
    parser.add_argument("--option", nargs="+", default=[], metavar="NAME=VALUE", help="options of the method")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--controlnet", help="folder of a ControlNet that reads outlines")
    parser.add_argument("--out", type=Path, default=Path("runs/inputs"))
    asked = parser.parse_args()
    model = load_model("shapes", controlnets={"outlines": asked.controlnet} if asked.controlnet else {})
    method = MethodConfig(asked.method, read_options(asked.option, asked.method))
    bench = Bench(
        asked.out, model.default_size[0], asked.steps, asked.strength, method, asked.controlnet is not None, tuple(asked.kinds)
    )
    for told in evaluate(model, bench, chosen(asked.layouts), range(asked.seeds)):
        print(told, flush=True)


if __name__ == "__main__":
    main()
