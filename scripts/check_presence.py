"""Does the model itself tell which objects a picture lacks? Plain pictures, judged, beside maps and denoising errors.

    python scripts/check_presence.py                                 # pairs of the benchmark, 8 seeds a prompt
    python scripts/check_presence.py --model shapes-mmdit --true-cfg-scale 2

`contrast` is the least peak of a word's map over its mean, of a picture's words; `overlap` is the largest attention that two
words' maps have in common; `denoising` is the error with which the network denoises the finished picture, noised again a
little. For each the area under the ROC curve says how well it tells pictures that lack an object from those that show all: 0.5
is chance, 1 is certain. Then the best of k seeds by the contrast at the end and by the denoising error, as `best_of_k` with
`judge: attention` and `judge: denoising` keeps it, by the sum of their logs, and by the judge itself: share of the objects that
are there, and of the foreground that is recognised, as means over all choices of k among a prompt's seeds.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from attnguide.benchmark import layout_samples
from attnguide.figures.watch import Watch
from attnguide.judges.shapes import asked_from_layout, seen_shapes
from attnguide.metrics.functional import score
from attnguide.models.base import ModelAdapter
from attnguide.models.load import load_model
from attnguide.sampling.contrast import least_contrast
from attnguide.sampling.denoising import denoising_errors
from attnguide.sampling.table import sample_rows
from attnguide.shapes.layouts import Layout, choose_layouts, load_layouts
from attnguide.statistics import Mean, clustered_mean
from attnguide.types import Sample

PROGRESS = (0.1, 0.25, 0.5, 1.0)
DRAWS = 1000


class Picture(NamedTuple):
    """What is kept of a picture.

    Attributes:
        prompt: Its prompt.
        presence: Share of its objects that the judge found.
        explained: Share of its foreground that lies in recognised objects.
        contrast: Contrast at each of :data:`PROGRESS`.
        overlap: Attention that two words share at each of them.
        denoising: Log of the error of denoising the finished picture.
    """

    prompt: str
    presence: float
    explained: float
    contrast: tuple[float, ...]
    overlap: tuple[float, ...]
    denoising: float


CHOICES: tuple[Callable[[Picture], float], ...] = (
    lambda one: one.contrast[-1],
    lambda one: -one.denoising,
    lambda one: math.log(one.contrast[-1]) - one.denoising,
)
"""What the picture that is kept has most of."""

SCORES: dict[str, Callable[[Picture], float]] = {
    "share of the objects that are there": lambda one: one.presence,
    "share of the foreground that is recognised": lambda one: one.explained,
}


def contrast(maps: Sequence[np.ndarray]) -> float:
    """:func:`~attnguide.sampling.contrast.least_contrast` of maps ``height width``."""
    return least_contrast(torch.from_numpy(np.stack(maps)).flatten(1))


def overlap(maps: Sequence[np.ndarray]) -> float:
    """Largest mass that two of the maps ``height width`` share, each with a sum of 1; 0 for a single map."""
    shares = [values / max(values.sum(), 1e-12) for values in maps]
    return max((float(np.minimum(a, b).sum()) for a, b in itertools.combinations(shares, 2)), default=0.0)


def auc(lacking: Iterable[float], whole: Iterable[float]) -> float:
    """Area under the ROC curve: share of pairs in which ``lacking`` is above ``whole``, ties by half; NaN without pairs."""
    above = np.subtract.outer([*lacking], [*whole])
    return float(np.mean((above > 0) + 0.5 * (above == 0))) if above.size else float("nan")


def gather(model: ModelAdapter, layouts: Sequence[Layout], rows: Sequence[Sample], batch_size: int = 16) -> list[Picture]:
    """Sample and judge the rows; rows without a picture are left out."""
    asked = {layout.id: asked_from_layout(layout) for layout in layouts}
    watch = Watch()
    found = []
    for result in sample_rows(model, rows, batch_size=batch_size, observer=watch):
        watched = watch.rows.pop(0)
        if result.image is None:
            continue
        own = asked[result.sample.id.rpartition("-")[0]]
        scores = score(seen_shapes(result.image), own)
        steps = [max(0, round(share * result.sample.steps) - 1) for share in PROGRESS]
        maps = [[maps[step].astype(float) for maps in watched.maps.values()] for step in steps]
        ((error,), _) = denoising_errors(model, [result])
        judged = scores["presence"], scores["explained"]
        found.append(Picture(result.sample.prompt, *judged, tuple(map(contrast, maps)), tuple(map(overlap, maps)), error))
    return found


def area(pictures: Sequence[Picture], values: Sequence[float]) -> tuple[float, float, float]:
    """:func:`auc` of the values, higher where an object is lacking, with a 95 % bootstrap interval over prompts."""
    by_prompt: dict[str, list[int]] = {}
    for index, picture in enumerate(pictures):
        by_prompt.setdefault(picture.prompt, []).append(index)
    clusters = [*by_prompt.values()]
    draws = np.random.default_rng(0).integers(len(clusters), size=(DRAWS, len(clusters)))
    drawn = [_split(pictures, values, [index for which in draw for index in clusters[which]]) for draw in draws]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return _split(pictures, values, range(len(pictures))), float(low), float(high)


def _split(pictures: Sequence[Picture], values: Sequence[float], chosen: Iterable[int]) -> float:
    lacking: list[float] = []
    whole: list[float] = []
    for index in chosen:
        (whole if pictures[index].presence == 1 else lacking).append(values[index])
    return auc(lacking, whole)


def best_of(
    pictures: Sequence[Picture], k: int, by: Callable[[Picture], float], wanted: Callable[[Picture], float]
) -> Mean | None:
    """Mean score of the picture that is kept of ``k`` of a prompt, with an interval over prompts.

    Args:
        pictures: Pictures of all prompts.
        k: Number of pictures of which one is kept; the mean is over all choices of ``k`` among a prompt's pictures.
        by: Value that is highest for the picture that is kept.
        wanted: Score that is averaged.
    """
    by_prompt: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_prompt.setdefault(picture.prompt, []).append(picture)
    kept = {prompt: [wanted(max(some, key=by)) for some in itertools.combinations(own, k)] for prompt, own in by_prompt.items()}
    return clustered_mean(kept)


def main() -> None:
    """Sample, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--layouts", default="benchmark")
    parser.add_argument("--categories", nargs="*", default=["two_objects"])
    parser.add_argument("--prompts", type=int, default=None, help="as many of each category, spread evenly over it")
    parser.add_argument("--seeds", type=int, default=8, help="seeds a prompt")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--true-cfg-scale", type=float, default=None, help="for pipelines of FLUX.1's kind")
    args = parser.parse_args()

    layouts = choose_layouts(load_layouts(args.layouts), args.categories, args.prompts)
    settings: dict[str, Any] = {"steps": args.steps}
    if args.true_cfg_scale is not None:
        settings |= {"true_cfg_scale": args.true_cfg_scale, "negative_prompt": ""}
    pictures = gather(load_model(args.model), layouts, layout_samples(layouts, range(args.seeds), **settings))
    lacking = sum(picture.presence < 1 for picture in pictures)
    print(f"{len(pictures)} plain pictures of {len(layouts)} prompts; {lacking} lack an object\n")
    print(f"{'progress':<10}{'contrast':>22}{'overlap':>22}")
    for index, share in enumerate(PROGRESS):
        low = _cell(area(pictures, [-picture.contrast[index] for picture in pictures]))
        high = _cell(area(pictures, [picture.overlap[index] for picture in pictures]))
        print(f"{share:<10g}{low:>22}{high:>22}")
    print(f"{'denoising error':<32}{_cell(area(pictures, [picture.denoising for picture in pictures])):>22}")
    _print_best(pictures, [k for k in (1, 2, 4) if k <= args.seeds])


def _cell(found: tuple[float, float, float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def _print_best(pictures: Sequence[Picture], counts: Sequence[int]) -> None:
    for told, wanted in SCORES.items():
        print(f"\n{told}, in the best of k seeds")
        print(f"{'k':<10}{'by contrast':>22}{'by denoising':>22}{'by both':>22}{'by the judge':>22}")
        for k in counts:
            print(f"{k:<10}" + "".join(f"{_told(best_of(pictures, k, by, wanted)):>22}" for by in (*CHOICES, wanted)))


def _told(way: Mean | None) -> str:
    return _cell((way.mean, way.low, way.high)) if way else "-"


if __name__ == "__main__":
    main()
