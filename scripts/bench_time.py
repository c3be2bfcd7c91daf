"""What attend-and-excite costs: seconds and peak memory of the same run plain, with attnguide, and with diffusers' pipeline.

    python scripts/bench_time.py                                    # a small UNet on the CPU
    python scripts/bench_time.py --device cuda --full --dtype fp16 bf16 --batch 1 4 --steps 50 --repeats 5

The arms are those of ``bench_cost.py``, which counts operations instead. All of them run in one process in turn, again and
again, so that a machine that others use slows all alike; a ratio of times is the median over repeats, each against its own
neighbour. CPU seconds stand beside the clock's, as they are not disturbed by others at all.

Peak memory is what two guided steps need above the idle model: allocated tensors on a GPU; on a CPU the growth of the resident
memory of a process that runs this arm alone.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from bench_cost import ARMS, SD15, SMALL, Bench, Case, Parser, save, table

from attnguide.engine.ledger import high_water_mb
from attnguide.models.load import DTYPES

Seconds = dict[str, list[float]]
"""Of every arm, in the order of the repeats."""


def measure_time(bench: Bench, repeats: int) -> tuple[Seconds, Seconds]:
    """Seconds by the clock and of the CPU; the order of the arms turns round from one repeat to the next."""
    for arm in ARMS:
        bench.run(arm, 1, 1)
    clock: Seconds = {arm: [] for arm in ARMS}
    cpu: Seconds = {arm: [] for arm in ARMS}
    for repeat in range(repeats):
        for arm in ARMS if repeat % 2 == 0 else reversed(ARMS):
            start = time.perf_counter(), time.process_time()
            bench.run(arm)
            clock[arm].append(time.perf_counter() - start[0])
            cpu[arm].append(time.process_time() - start[1])
    return clock, cpu


def ratio(seconds: Seconds, arm: str, base: str) -> float:
    """Median of the ratios within a repeat."""
    return median(mine / its for mine, its in zip(seconds[arm], seconds[base], strict=True))


def cuda_peak_mb(bench: Bench, arm: str) -> float:
    """Memory of tensors that two guided steps add to the idle model's, in MB."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    idle = torch.cuda.memory_allocated()
    bench.run(arm, 2, 2)
    return (torch.cuda.max_memory_allocated() - idle) / 2**20


def resident_peak_mb(case: Case, arm: str) -> float:
    """The same on a CPU, by the high-water mark of this process; it must have run nothing before."""
    bench = Bench(case)
    idle = high_water_mb()
    bench.run(arm, 2, 2)
    return high_water_mb() - idle


def measure_memory(bench: Bench) -> dict[str, float]:
    """Peak MB of every arm."""
    if bench.case.device == "cuda":
        return {arm: cuda_peak_mb(bench, arm) for arm in ARMS}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as fresh:
        return {arm: fresh.submit(resident_peak_mb, bench.case, arm).result() for arm in ARMS}


def measure(case: Case, repeats: int) -> list[dict[str, Any]]:
    """One record per arm."""
    bench = Bench(case)
    peak = measure_memory(bench)
    clock, cpu = measure_time(bench, repeats)
    return [
        {
            "arm": arm,
            "seconds": median(clock[arm]),
            "x plain": ratio(clock, arm, "plain"),
            "x diffusers": ratio(clock, arm, "diffusers"),
            "CPU seconds": median(cpu[arm]),
            "CPU x plain": ratio(cpu, arm, "plain"),
            "CPU x diffusers": ratio(cpu, arm, "diffusers"),
            "peak MB": peak[arm],
            "MB x diffusers": peak[arm] / peak["diffusers"],
        }
        for arm in ARMS
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, every precision with every batch size."""
    parser = Parser(__doc__)
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    parser.add_argument("--full", action="store_true", help="the architecture of Stable Diffusion 1.5")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", nargs="+", default=["fp32"], choices=DTYPES, help="precision")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="rows sampled together")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    if min(*options.batch, options.repeats) < 1:
        parser.error("--batch and --repeats must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU here")
    base = replace(parser.case(options, SD15 if options.full else SMALL), device=options.device)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"UNet with channels {base.channels}, {base.latent}x{base.latent} latents, on {where}")
    print(f"{base.steps} steps, the first {base.guided} guided, no refinement; {options.repeats} repeats in turn, medians")
    results = []
    for case in [replace(base, dtype=dtype, batch=batch) for dtype in options.dtype for batch in options.batch]:
        results.append((case, measure(case, options.repeats)))
        print(f"\n{case.dtype}, batch {case.batch}\n{table(results[-1][1])}", flush=True)
        save(options.json, results)


if __name__ == "__main__":
    main()
