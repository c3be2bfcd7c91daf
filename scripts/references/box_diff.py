"""BoxDiff, with quirks="reference". Its blur kernel is computed in float32, hence up to 1e-7."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from attnguide.guidance.box_diff import BoxDiff
from attnguide.types import Box, Region
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import CROSS_16, mean_map, random_maps, step, targets

BOXES: tuple[tuple[Box, Box], ...] = (
    ((0, 0, 0.5, 1), (0.5, 0.25, 1, 0.875)),
    ((0.125, 0.25, 0.1875, 0.375), (0.0625, 0.5, 0.9375, 0.9375)),
)


def compare(clone: Path) -> Iterator[Comparison]:
    """The loss, and the one of refinements."""
    blur = load(clone / "utils/gaussian_smoothing.py", ["GaussianSmoothing"])
    terms, loss = "_compute_max_attention_per_index", "_compute_loss"
    theirs = load(clone / "pipeline/sd_pipeline_boxdiff.py", [terms, loss], blur)
    for seed in range(4):
        maps, boxes = random_maps(CROSS_16, seed), BOXES[seed % 2]
        found = BoxDiff(quirks="reference").loss(
            maps, targets([Region("cat", box=boxes[0]), Region("ball", box=boxes[1])]), step()
        )
        measured = theirs[terms](
            None,
            mean_map(maps),
            [3, 7],
            smooth_attentions=True,
            bbox=[[int(512 * side) for side in box] for box in boxes],
            config=SimpleNamespace(P=0.2, L=1),
        )
        refining, total = theirs[loss](*measured)
        assert found.refining is not None
        yield compared(f"loss, seed {seed}", total, found.loss, maps.probs.values())
        yield compared(f"loss of a refinement, seed {seed}", refining, found.refining, maps.probs.values())


REFERENCE = Reference("box_diff", "showlab/BoxDiff", compare)
