"""Overhead of steering apart from the network: CPU seconds against diffusers' plain pipeline, with the same weights.

    python scripts/bench_overhead.py                           # the embedded model, batches of 8
    python scripts/bench_overhead.py --batch 1 8 --steps 30 --repeats 7 --arms plain inject5

Of every arm there is our own loop, and the pipeline's call inside ``attnguide.steer``: the plain call against the call outside
of the block, a steered one against our own loop.

All arms run in one process and one thread in turn, again and again, so that a machine that others use slows all alike.
Seconds are those of this process's CPU, and a ratio is the median over repeats, each against the run beside it that it is
compared with; ``fastest`` is the ratio of the quickest runs, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from bench_cost import table

import attnguide
from attnguide.models.load import load_model
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Region, Sample

PROMPT = "a red circle and a blue square"
REGIONS = (Region("red circle", box=(0.05, 0.2, 0.45, 0.8)), Region("blue square", box=(0.55, 0.2, 0.95, 0.8)))
CFG_SCALE = 5.0
METHODS: dict[str, tuple[MethodConfig, ...]] = {
    "plain": (),
    "forward_layout": (MethodConfig("forward_layout"),),
    "inject5": (MethodConfig("inject5"),),
    "stable": (MethodConfig("stable", {"attempts": 1}),),
    "mask_guidance": (MethodConfig("mask_guidance"),),
}
BASE, INSIDE = "diffusers", "steer: "


def arms(names: Sequence[str], batch: int, steps: int) -> dict[str, Callable[[], Any]]:
    """Name of an arm -> function that runs it; diffusers' pipeline is the first."""
    model = load_model(device="cpu", dtype="fp32")
    pipeline = model.pipeline  # type: ignore[attr-defined]
    pipeline.set_progress_bar_config(disable=True)

    def plain() -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
        return pipeline([PROMPT] * batch, num_inference_steps=steps, guidance_scale=CFG_SCALE, generator=generators)

    def inside(methods: tuple[MethodConfig, ...]) -> Callable[[], Any]:
        def run() -> Any:
            with attnguide.steer(pipeline, regions=REGIONS if methods else (), method=list(methods), maps=False):
                return plain()

        return run

    def steered(methods: tuple[MethodConfig, ...]) -> Callable[[], Any]:
        settings: dict[str, Any] = {"regions": REGIONS, "steps": steps, "cfg_scale": CFG_SCALE, "methods": methods}
        rows = [Sample(str(seed), PROMPT, seed, **settings) for seed in range(batch)]
        return lambda: sample_batch(model, rows)

    ours = {name: steered(METHODS[name]) for name in names}
    return {BASE: plain} | ours | {f"{INSIDE}{name}": inside(METHODS[name]) for name in names}


def measure(runs: dict[str, Callable[[], Any]], repeats: int) -> list[dict[str, Any]]:
    """One record per arm; the order of arms is reversed from one repeat to the next."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for repeat in range(repeats):
        for name in list(runs) if repeat % 2 == 0 else reversed(runs):
            gc.collect()
            start = time.process_time()
            runs[name]()
            seconds[name].append(time.process_time() - start)
    records = []
    for name, taken in seconds.items():
        counterpart = name.removeprefix(INSIDE) if name.startswith(INSIDE) and name != f"{INSIDE}plain" else BASE
        ratios = [mine / its for mine, its in zip(taken, seconds[counterpart], strict=True)]
        found = {
            "ratio": median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "fastest": min(taken) / min(seconds[counterpart]),
        }
        records.append({"arm": name, "CPU seconds": median(taken), "against": counterpart, **found})
    return records


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, one table per batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="rows sampled together")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arms", nargs="+", default=list(METHODS), choices=METHODS)

    options = parser.parse_args(arguments)
    if min(*options.batch, options.steps, options.repeats) < 1:
        parser.error("--batch, --steps and --repeats must be at least 1")
    torch.set_num_threads(1)
    for batch in options.batch:
        print(f"batch {batch}, {options.steps} steps, {options.repeats} repeats in turn, medians")
        print(table(measure(arms(options.arms, batch, options.steps), options.repeats)), flush=True)


if __name__ == "__main__":
    main()
