"""ConceptAttention: from inner products of blocks and steps to maps. The reader is no method, and has the name of its paper."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.figures.concepts import ConceptAttention
from attnguide.types import SampleResult, Step
from references.base import Comparison, Reference, compared
from references.foreign import load

HEIGHT, WIDTH, BLOCKS, STEPS, PIXELS = 6, 8, 19, 4, 16
CONCEPTS = ("cat", "grass", "sky")
CHOSEN = range(10, 18)
"""The published blocks of FLUX.1."""


def compare(clone: Path) -> Iterator[Comparison]:
    """Inner products of every block; those of the published blocks count, by the reader's own choice of depths."""
    names = ("aggregate_attention_over_timesteps", "compute_heatmaps_from_attention_dicts")
    known: dict[str, Any] = {"einops": importlib.import_module("einops")}
    theirs = load(clone / "concept_attention" / "heatmap_utils.py", names, known)["compute_heatmaps_from_attention_dicts"]
    for seed in range(4):
        source = torch.Generator().manual_seed(seed)
        scores = 3 * torch.randn(STEPS, BLOCKS, 1, len(CONCEPTS), HEIGHT * WIDTH, generator=source)
        given = [[{"concept_scores": block} for block in blocks] for blocks in scores]
        wanted = theirs(given, len(CONCEPTS), WIDTH * PIXELS, HEIGHT * PIXELS, list(CHOSEN), list(range(STEPS)))
        reader = ConceptAttention(CONCEPTS)
        paths = [f"transformer_blocks.{number}" for number in range(BLOCKS)]
        for index, blocks in enumerate(scores):
            context = pass_context(Step.at_sigma(index, STEPS, 999.0, 5.0), "denoise", [0], ("cond",))
            for path in reader._chosen(paths):
                site = Site(path, "cross", HEIGHT, WIDTH, 1, "block", 1)
                reader._record(site, blocks[paths.index(path)], context)
        reader.on_sample_end([cast(SampleResult, SimpleNamespace())])
        found = torch.stack([torch.as_tensor(reader[0].maps[concept]) for concept in CONCEPTS])
        yield compared(f"maps, seed {seed}", wanted, found)


REFERENCE = Reference("concept_attention", "helblazer811/ConceptAttention", compare, packages={"einops": "einops"})
