"""CONFORM, with quirks="reference". Its blur kernel is computed in float32, hence up to 1e-7."""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from attnguide.guidance.conform import Conform
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import CROSS_16, mean_map, random_maps, step, targets

PROMPT = "a big red cat and a blue ball on grass"
GROUPS = (("big", "red", "cat"), ("blue", "ball"))


def compare(clone: Path) -> Iterator[Comparison]:
    """The first step, and passes of the next one, which read the first one's maps too."""
    modules = {name: importlib.import_module(f"pytorch_metric_learning.{name}") for name in ("losses", "distances")}
    name = "_compute_contrastive_loss"
    theirs = load(clone / "pipeline_conform.py", ["GaussianSmoothing", name], modules)[name]
    for softmax, seed in itertools.product((False, True), range(3)):
        published = functools.partial(
            theirs, token_groups=[[2, 3, 4], [7, 8]], loss_type="ntxent", temperature=0.5, softmax_normalize=softmax
        )
        ours, aim = Conform(quirks="reference", softmax=softmax, refinements=0), targets(groups=GROUPS, prompt=PROMPT)
        before, now = random_maps(CROSS_16, seed), random_maps(CROSS_16, seed + 100)
        ours.start(aim)
        case = f"softmax {softmax}, seed {seed}"
        first = ours.loss(before, aim, step(0.1)).loss
        yield compared(f"first step, {case}", published(mean_map(before), None), first, before.probs.values())
        cached = mean_map(before).detach()  # each pass scales it in place, which ours repeats
        for number in range(3 if softmax else 1):
            loss = ours.loss(now, aim, step(0.12)).loss
            yield compared(f"pass {number} after it, {case}", published(mean_map(now), cached), loss, now.probs.values())


REFERENCE = Reference("conform", "gemlab-vt/CONFORM", compare, packages={"pytorch_metric_learning": "pytorch-metric-learning"})
