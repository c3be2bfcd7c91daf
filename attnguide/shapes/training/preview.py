"""Previews during training: judged pictures of prompts, for pairs and counts of held-out scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from diffusers import FluxPipeline, StableDiffusionPipeline
from PIL import Image

from attnguide.models.load import adapt
from attnguide.sampling.table import sample_rows
from attnguide.shapes.captions import caption
from attnguide.shapes.judge import judge
from attnguide.shapes.renderer import SIDE
from attnguide.shapes.scene import random_scene
from attnguide.types import Sample

KINDS = ("single", "pair", "count")
STEPS = 20
FLOW_GUIDANCE = 2.0


def preview(
    pipeline: StableDiffusionPipeline | FluxPipeline, seeds: Sequence[int], path: Path, columns: int = 8
) -> dict[str, float]:
    """Sample captions of held-out scenes (single objects: of scenes as in training), write a grid, and judge exact matches.

    Args:
        pipeline: Pipeline of the model in training.
        seeds: Scene seeds, one picture each; scene kinds take turns.
        path: File of the grid.
        columns: Pictures per line of the grid.

    Returns:
        Share of exact pictures by scene kind, and the mean share of foreground in recognised objects.
    """
    rows, wanted, kinds = [], [], []
    for index, seed in enumerate(seeds):
        kind = KINDS[index % len(KINDS)]
        scene = random_scene(seed, kind, held_out=kind != "single")
        rows.append(Sample(str(index), caption(scene, seed), seed=seed, steps=STEPS))
        wanted.append(Counter(obj.name for obj in scene.objects))
        kinds.append(kind)
    sheet = Image.new("RGB", (columns * SIDE, -(-len(rows) // columns) * SIDE))
    exact: dict[str, list[float]] = {kind: [] for kind in KINDS}
    explained = []
    for index, picture in enumerate(_pictures(pipeline, rows)):
        if picture is None:
            exact[kinds[index]].append(0.0)
            continue
        verdict = judge(picture)
        found = Counter(f"{d.color} {d.shape}" for d in verdict.detections)
        exact[kinds[index]].append(float(found == wanted[index]))
        explained.append(verdict.explained)
        sheet.paste(picture, ((index % columns) * SIDE, (index // columns) * SIDE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    scores = {f"preview/{kind}": fmean(values) for kind, values in exact.items() if values}
    return {**scores, "preview/explained": fmean(explained) if explained else 0.0}


def plain_preview(pipeline: StableDiffusionPipeline | FluxPipeline, seeds: Sequence[int], path: Path) -> dict[str, float]:
    """:func:`preview` in float32 and not compiled, regardless of the training's precision and compilation.

    The exported model runs like that, and a batch of another size would be recompiled, which takes longer than the pictures.
    """
    with torch.compiler.set_stance("force_eager"), torch.autocast(pipeline.device.type, enabled=False):
        return preview(pipeline, seeds, path)


def _pictures(pipeline: StableDiffusionPipeline | FluxPipeline, rows: Sequence[Sample]) -> Iterator[Image.Image | None]:
    if isinstance(pipeline, FluxPipeline):
        yield from draw_flux(pipeline, [row.prompt for row in rows], [row.seed for row in rows], STEPS)
    else:
        yield from (result.image for result in sample_rows(adapt(pipeline), rows, batch_size=len(rows)))


@torch.no_grad()
def draw_flux(
    pipeline: FluxPipeline, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float = FLOW_GUIDANCE
) -> list[Image.Image]:
    """Pictures by diffusers' own pipeline, one seed each; ``guidance`` is classifier-free, against the empty prompt."""
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = pipeline(
        prompt=[*prompts],
        negative_prompt=[""] * len(prompts),
        true_cfg_scale=guidance,
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        max_sequence_length=pipeline.tokenizer_2.model_max_length,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images
    return pictures
