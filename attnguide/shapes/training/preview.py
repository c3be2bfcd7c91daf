"""A look at the model while it trains: pictures of prompts it never sees, judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from diffusers import StableDiffusionPipeline
from PIL import Image

from attnguide.models.load import adapt
from attnguide.sampling.table import sample_rows
from attnguide.shapes.captions import caption
from attnguide.shapes.judge import judge
from attnguide.shapes.renderer import SIDE
from attnguide.shapes.scene import random_scene
from attnguide.types import Sample

KINDS = ("single", "pair", "count")


def preview(pipeline: StableDiffusionPipeline, seeds: Sequence[int], path: Path, columns: int = 8) -> dict[str, float]:
    """Sample captions of held-out scenes (single objects: of any), write a grid, and judge which show exactly what was asked.

    Args:
        pipeline: The model as it is now.
        seeds: Scene seeds, one picture each; scene kinds take turns.
        path: Where the grid goes.
        columns: Pictures a row.

    Returns:
        Share of exact pictures by scene kind, and the mean share of foreground in recognised objects.
    """
    rows, wanted, kinds = [], [], []
    for index, seed in enumerate(seeds):
        kind = KINDS[index % len(KINDS)]
        scene = random_scene(seed, kind, held_out=kind != "single")
        rows.append(Sample(str(index), caption(scene, seed), seed=seed, steps=20))
        wanted.append(Counter(obj.name for obj in scene.objects))
        kinds.append(kind)
    sheet = Image.new("RGB", (columns * SIDE, -(-len(rows) // columns) * SIDE))
    exact: dict[str, list[float]] = {kind: [] for kind in KINDS}
    explained = []
    for index, result in enumerate(sample_rows(adapt(pipeline), rows, batch_size=len(rows))):
        if result.image is None:
            exact[kinds[index]].append(0.0)
            continue
        verdict = judge(result.image)
        found = Counter(f"{d.color} {d.shape}" for d in verdict.detections)
        exact[kinds[index]].append(float(found == wanted[index]))
        explained.append(verdict.explained)
        sheet.paste(result.image, ((index % columns) * SIDE, (index // columns) * SIDE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    scores = {f"preview/{kind}": fmean(values) for kind, values in exact.items() if values}
    return {**scores, "preview/explained": fmean(explained) if explained else 0.0}
